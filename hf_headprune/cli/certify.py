"""`headprune disagreements` and `headprune certify`: which texts need a label, and what the labels show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_headprune._certificate_file import CERTIFICATE_NAME
from hf_headprune.cli.columns import NamedColumns
from hf_headprune.cli.duration import shown
from hf_headprune.cli.examples import groups_of_rows
from hf_headprune.cli.gate import Junit, Summary, cases_of_certificate, report
from hf_headprune.cli.inspect import AsJson
from hf_headprune.cli.metrics import metric_named
from hf_headprune.cli.models import load_deployed, load_model, load_tokenizer, to_accelerator_
from hf_headprune.cli.output import new_csv, writable
from hf_headprune.cli.texts import LABEL, read_inputs, read_labelled, read_labels, read_texts, write_to_label
from hf_headprune.cli.vocabulary import own_reader
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify as certify_models
from hf_headprune.guarantee.disagreements import disagreements as disagreements_of
from hf_headprune.guarantee.external import is_external
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.wording import AGREEMENT
from hf_headprune.search.journal import set_aside
from hf_headprune.tasks.batches import Batching

Dense = Annotated[str, typer.Argument(metavar="DENSE", help="Folder or Hub name of the model compared with.")]
TextColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the text")]
PairColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the second text of a pair")]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the label")]
TokenizerName = Annotated[str | None, typer.Option(metavar="NAME", help="Tokenizer  [default: the dense model's]")]
Length = Annotated[int | None, typer.Option(metavar="N", help="Tokens of an example  [default: all the model reads]")]


def disagreements(  # noqa: PLR0913, PLR0917 - the options of the command
    dense: Dense,
    pruned: Annotated[list[str], typer.Argument(metavar="PRUNED...", help="Pruned models, or their .onnx or .xml.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Texts; labels in it are not read")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", callback=new_csv, help="New .csv file with the texts that need a label")
    ],
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    tokenizer: TokenizerName = None,
    max_length: Length = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Writes the texts on which models disagree, to label them.

    No other text needs a label.
    """
    model = to_accelerator_(load_model(dense))
    reading = load_tokenizer(tokenizer or dense, model)
    texts = read_texts(data, model, reading, NamedColumns(text_column, text_pair_column), max_length)
    found: dict[int, set[Any]] = {}
    for name in pruned:
        other = load_deployed(name)
        own = own_reader(model, other, Path(name), reading, max_length)
        whole, rows, tokens = model, texts, reading
        if own is not None:
            whole, rows, tokens = (model, texts), own.encode_again(texts), own.tokenizer
        split = CertificationData(rows, batching=Batching(processing_class=tokens))
        with shown([model, other], len(texts), f"Comparing with {name}"):
            compared = disagreements_of(whole, other, split)
        for index, answers in compared.items():
            found.setdefault(index, set()).update(answers)
    count = write_to_label(out, texts, {index: tuple(sorted(found[index])) for index in sorted(found)}, model)
    if as_json:
        typer.echo(json.dumps({"disagreements": count, "texts": len(texts), "file": str(out)}))
        return
    typer.echo(
        f"{count:,} of {len(texts):,} texts need a label; they are in {out}. Fill in the column 'label'; answers are "
        f"sorted, so that they don't tell which model gave which. Then: headprune certify ... --labels {out}"
    )


def certify(  # noqa: PLR0913, PLR0917 - the options of the command
    dense: Dense,
    pruned: Annotated[
        Path, typer.Argument(metavar="PRUNED", help="Folder of the pruned model; or its .onnx or .xml.", exists=True)
    ],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Unseen examples")],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labels of the disagreements, from headprune disagreements")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Metric of the task; 'agreement' needs no labels at all")
    ] = None,
    max_drop: Annotated[float, typer.Option(metavar="X", help="Drop to exclude; 0.01 is one point")] = 0.01,
    confidence: Annotated[float, typer.Option(metavar="X", help="Confidence level")] = 0.95,
    train: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Training examples, to check that none is among the data")
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    tokenizer: TokenizerName = None,
    max_length: Length = None,
    junit: Junit = None,
    summary: Summary = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Certifies that PRUNED loses less than a drop.

    The certificate is written beside its weights; an earlier one is kept under another name. Report and card stay.

    Exit code 0: PASS; 1: FAIL or INCONCLUSIVE, and the certificate is written all the same.
    """
    if labels is not None and metric == AGREEMENT:
        raise InvalidSettingError(f"certify: --metric {AGREEMENT} needs no labels and reads none. Leave --labels out.")
    place = (pruned if pruned.is_dir() else pruned.parent) / CERTIFICATE_NAME
    writable(place)
    models = [load_deployed(name) for name in (dense, pruned)]
    reading = load_tokenizer(tokenizer or dense, models[0])
    named = NamedColumns(text_column, text_pair_column, label_column)
    rows = _rows(data, models[0], reading, named, max_length, is_labelled=labels is None and metric != AGREEMENT)
    known = None if labels is None else read_labels(labels, rows, models[0], label_column or LABEL)
    is_file = is_external(models[1])
    chosen = (metric, "") if is_file or metric == AGREEMENT else metric_named(metric, models[0])
    seen = None if train is None else read_inputs(train, models[0], reading, named, max_length)
    whole, own = models[0], own_reader(models[0], models[1], pruned, reading, max_length)
    if own is not None:
        whole, reading = (models[0], rows), own.tokenizer
        rows, seen = own.encode_again(rows), None if seen is None else own.encode_again(seen)
    batching = Batching(processing_class=reading)
    split = CertificationData(rows, train=seen, groups=groups_of_rows(rows), labels=known, batching=batching)
    with shown(models, len(rows), "Certifying"):
        certificate = certify_models(whole, models[1], split, chosen[0], max_drop, confidence)
    earlier = _written(certificate, place)
    content = {
        "verdict": certificate.verdict,
        "statement": certificate.statement,
        "file": str(place),
        "earlier": earlier,
    }
    report(f"Certificate of {pruned.name}", cases_of_certificate(certificate), junit, summary)
    kept = "" if earlier is None else f" (the earlier certificate is now {earlier})"
    typer.echo(json.dumps(content) if as_json else f"{content['statement']}\nWritten: {content['file']}{kept}")
    raise typer.Exit(0 if certificate.verdict == "PASS" else 1)


def _written(certificate: Certificate, place: Path) -> str | None:
    """Writes a certificate; returns where an earlier one is now.

    Raises:
        InvalidSettingError: It can't be written, and the earlier one stays.
    """
    earlier = set_aside(place) if place.exists() else None
    try:
        certificate.save(place.parent)
    except OSError as error:
        if earlier is not None:
            earlier.replace(place)
        raise InvalidSettingError(
            f"{place}: it can't be written: {error.strerror or error}. Make room there. It would say: "
            f"{certificate.statement}"
        ) from error
    return None if earlier is None else str(earlier)


def _rows(
    file: Path, model: Any, tokenizer: Any, named: NamedColumns, max_length: int | None, *, is_labelled: bool
) -> Any:
    if not is_labelled:
        return read_texts(file, model, tokenizer, named, max_length)
    encoded = read_labelled(file, model, tokenizer, named, max_length)
    if encoded.unlabelled:
        raise InvalidSettingError(
            f"{file}: {encoded.unlabelled:,} rows have no label. Label the disagreements alone, with headprune "
            "disagreements and --labels, or remove these rows."
        )
    return encoded.rows
