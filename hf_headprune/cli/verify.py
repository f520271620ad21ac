"""`headprune verify`: whether a certificate holds, on the examples as `headprune prune` and `certify` read them."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_headprune._beside_weights import CONFIG_NAME
from hf_headprune._certificate_file import CERTIFICATE_NAME
from hf_headprune._strict_json import parse
from hf_headprune.cli.certify import LabelColumn, Length, PairColumn, TextColumn, TokenizerName
from hf_headprune.cli.columns import NamedColumns
from hf_headprune.cli.duration import shown
from hf_headprune.cli.examples import groups_of_rows
from hf_headprune.cli.files import read_file
from hf_headprune.cli.gate import Junit, Summary, cases_of_verification, report
from hf_headprune.cli.inspect import AsJson
from hf_headprune.cli.models import load_deployed, load_model, load_tokenizer
from hf_headprune.cli.texts import LABEL, read_labelled, read_labels, read_texts, say_notes
from hf_headprune.cli.vocabulary import folder_of, own_reader
from hf_headprune.errors import CertificateError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.examples import INPUT_BYTES, TOKENS, ExampleFingerprints
from hf_headprune.guarantee.external import file_named, is_external
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.guarantee.wording import WITHOUT_LABELS
from hf_headprune.publish.onnx import FILE as ONNX_FILE
from hf_headprune.publish.openvino import FILE as OPENVINO_FILE
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from datasets import Dataset


def verify(  # noqa: PLR0913, PLR0917 - the options of the command
    certificate: Annotated[Path, typer.Argument(help="Certificate, or the folder of its model.")],
    model: Annotated[
        Path | None,
        typer.Option(exists=True, help="Pruned model, or its .onnx or .xml [default: what lies beside]."),
    ] = None,
    dense: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model that it was compared with: folder or Hub name")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The unseen examples, as prune or certify read them.")
    ] = None,
    dense_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="If --data is tokenized, and the dense model's tokenizer is another one."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labels of the disagreements, if certify was given some")
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
    """Verifies a certificate against its models and its data.

    Rows of the data that the certificate does not use, such as copies of training examples, are left out.

    Exit code 0: it holds, whatever it says; 1: it does not.
    """
    file = file_of(certificate)
    found = Certificate.load(file)
    about = _beside(found, file.parent) if model is None else model
    whole = None if dense is None else load_model(dense)
    deployed, rows = None if about is None else load_deployed(about), None if data is None else _read(data)
    models = [whole, deployed]
    is_text = _are_texts(found, rows)
    of_texts: dict[str, Any] = {"labels": labels, "text-column": text_column, "text-pair-column": text_pair_column}
    of_texts |= {"label-column": label_column, "tokenizer": tokenizer, "max-length": max_length}
    unused = {} if is_text else of_texts
    if is_text or data is None:
        unused["dense-data"] = dense_data
    _check_unused(unused, data, is_text=is_text)
    if data is not None and is_text:
        texts = Texts(data, NamedColumns(text_column, text_pair_column, label_column), labels, max_length)
        reads = tokenizer or dense or (None if about is None else folder_of(about))
        whole, rows = texts.as_certified(found, whole, deployed, about, reads)
    elif dense_data is not None:
        if whole is None:
            raise InvalidSettingError(f"--dense-data {dense_data}: no model reads it. Pass --dense, or leave it out.")
        whole = whole, _read(dense_data)
    with shown(models, len(found.examples), "Verifying") if rows else nullcontext():
        result = verify_certificate(found, deployed, rows, dense=whole)
    report(f"Verification of {certificate.name}", cases_of_verification(result), junit, summary)
    typer.echo(json.dumps({"holds": result.holds, **dataclasses.asdict(result)}) if as_json else result.to_text())
    if not result.holds:
        raise typer.Exit(1)


def _are_texts(certificate: Certificate, rows: Any) -> bool:
    """Tells whether rows are still to be tokenized, to be those of a certificate."""
    if not rows or certificate.examples.kind != TOKENS:
        return False
    return isinstance(rows[0], dict) and TOKENS not in rows[0]


def _check_unused(options: dict[str, Any], data: Path | None, *, is_text: bool) -> None:
    """Refuses options that were passed though nothing reads them.

    Args:
        options: Values by name; None for those that were not passed.
        data: File of the examples, or None.
        is_text: Whether it holds texts.
    """
    passed = [f"--{name}" for name, value in options.items() if value is not None]
    if passed:
        held = "no --data is given" if data is None else f"{data} holds {'texts' if is_text else 'tokenized examples'}"
        raise InvalidSettingError(
            f"verify: {' and '.join(passed)} would not be read, since {held}. Leave them out, or pass other data."
        )


@dataclass(frozen=True)
class Texts:
    """Examples that are not tokenized, and how the options say that they are read.

    Attributes:
        file: That holds them.
        named: Columns that the user named.
        labels: File with labels of some; None where each has one, or none is needed.
        max_length: Tokens of an example; None for as many as the model reads.
    """

    file: Path
    named: NamedColumns
    labels: Path | None
    max_length: int | None

    def as_certified(
        self, certificate: Certificate, dense: Any, pruned: Any, place: Path | None, reads: Any
    ) -> tuple[Any, CertificationData]:
        """Tokenizes those that a certificate is about, as `headprune prune` and `certify` do.

        Args:
            certificate: By whose fingerprints they are found.
            dense: The model compared with, or None.
            pruned: The pruned model, its exported file, or None.
            place: Where the pruned one was loaded from.
            reads: Name or folder of the tokenizer, or None.

        Returns:
            The dense model, with rows of its own where the pruned one has another vocabulary; and the examples.

        Raises:
            InvalidSettingError: There is no model or no tokenizer to read them by, or they can't be read.
        """
        model = pruned if dense is None else dense
        if model is None or is_external(model):
            raise InvalidSettingError(
                f"{self.file}: it holds texts, and no model is given that tells how to read them. Pass --dense."
            )
        tokenizer = load_tokenizer(reads, model)
        rows = self._rows(certificate, model, tokenizer)
        known = None if self.labels is None else read_labels(self.labels, rows, model, self.named.label or LABEL)
        own = None if dense is None or place is None else own_reader(dense, pruned, place, tokenizer, self.max_length)
        others = None
        if own is not None:
            others, tokenizer, rows = rows, own.tokenizer, own.encode_again(rows)
        chosen = self._chosen(certificate, rows)
        rows, whole = rows.select(chosen), dense if others is None else (dense, others.select(chosen))
        if known is not None:
            known = {row: known[index] for row, index in enumerate(chosen) if index in known}
        batching = Batching(processing_class=tokenizer)
        return whole, CertificationData(rows, groups=groups_of_rows(rows), labels=known, batching=batching)

    def _rows(self, certificate: Certificate, model: Any, tokenizer: Any) -> Dataset:
        """Returns all rows that can be used; those without a label can't, where labels count."""
        is_labelled = self.labels is None and certificate.claim.scored not in WITHOUT_LABELS
        if is_labelled and certificate.examples.labelled is not None:
            raise InvalidSettingError(
                f"{self.file}: the certificate knows labels of the disagreements alone. Pass the file that certify was "
                "given, --labels."
            )
        if not is_labelled:
            return read_texts(self.file, model, tokenizer, self.named, self.max_length)
        encoded = read_labelled(self.file, model, tokenizer, self.named, self.max_length)
        if encoded.unlabelled:
            say_notes(self.file, [f"{encoded.unlabelled:,} rows have no label and are left out."])
        return encoded.rows

    def _chosen(self, certificate: Certificate, rows: Dataset) -> list[int]:
        """Returns the places of the rows whose inputs the certificate knows; all where none is known."""
        prints, parts = ExampleFingerprints.of(rows), certificate.parts()
        inputs = {key[:INPUT_BYTES] for part in parts for key in part.examples.key_list()}
        chosen = [place for place, digest in enumerate(prints.kinds[prints.kind]) if digest[:INPUT_BYTES] in inputs]
        if certificate.unused or not chosen:  # what was left unused has no fingerprint there
            return [*range(len(rows))]
        if left := len(rows) - len(chosen):
            note = f"{left:,} of {len(rows):,} rows are not among the certificate's examples, and are left out."
            say_notes(self.file, [note])
        return chosen


def file_of(place: Path) -> Path:
    """Returns the certificate's file; of an exported folder, the one beside its ONNX or OpenVINO file.

    Raises:
        CertificateError: Several files in the folder have one.
    """
    if not place.is_dir():
        return place
    folders = place, *(place / file.parent for file in (ONNX_FILE, OPENVINO_FILE))
    own, *others = (folder / CERTIFICATE_NAME for folder in folders)
    exported = [file for file in others if file.exists() and not own.exists()]
    if exported[1:]:
        raise CertificateError(f"{place}: there are several certificates. Pass one: {', '.join(map(str, exported))}.")
    return exported[0] if exported else own


def _beside(certificate: Certificate, folder: Path) -> Path | None:
    """Returns what a certificate is about, if it lies in this folder: a model of torch, or a file for a runtime."""
    if certificate.pruned.config is None:  # no model of torch has none
        return file_named(certificate.pruned.name, folder)
    return folder if (folder / CONFIG_NAME).exists() else None


def _read(file: Path) -> Any:
    """Returns the rows of a file: of one with an object a line as they are, tokenized or not."""
    if file.suffix.lower() != ".jsonl":
        return read_file(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidSettingError(f"{file}: it can't be read: {error}.") from error
    return [parse(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]
