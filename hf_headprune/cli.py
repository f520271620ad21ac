"""`headprune`: what can be asked of a saved model and of the examples that are there, from a shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import transformers
import typer
from safetensors import SafetensorError

from hf_headprune._certificate_file import CERTIFICATE_NAME
from hf_headprune.anatomy import anatomy_of
from hf_headprune.cost import cost_of
from hf_headprune.errors import CertificateError, HeadPruneError, InvalidSettingError, UnsupportedModelError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.planner import Expectation, promise_in_words
from hf_headprune.guarantee.records import record_of
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.prunable import class_names, prunable_named

if TYPE_CHECKING:
    from torch import nn

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Pruned Transformers: look at them, check them.",
)
Folder = Annotated[Path, typer.Argument(help="Folder of a saved model.", exists=True, file_okay=False)]


@app.command()
def show(folder: Folder, length: Annotated[int, typer.Option(help="Tokens that MACs are counted for.")] = 128) -> None:
    """Prints what a saved model holds in each layer, what it costs, and what its certificate says."""
    model = _model(folder)
    anatomy, plan = anatomy_of(model), PruningPlan.of(model)
    cost = cost_of(plan, anatomy, seq_len=length)
    typer.echo(type(model).__name__)
    for title, kept in (("heads", plan.kept_heads), ("FFN units", plan.kept_ffn)):
        typer.echo(f"{title}: {' '.join(str(len(units)) for units in kept.values())}")
    typer.echo(f"{cost.parameters:,} parameters, {cost.macs / 1e6:,.0f} million MACs at length {length}")
    if not (folder / CERTIFICATE_NAME).exists():
        typer.echo("No certificate.")
        return
    certificate = Certificate.load(folder)
    is_about_these = certificate.pruned.weights == record_of(model).weights
    typer.echo(certificate.statement if is_about_these else "The certificate in this folder is about other weights.")


@app.command()
def verify(
    certificate: Annotated[Path, typer.Argument(help="A certificate, or the folder of the model that it is in.")],
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of the pruned model; that of the certificate."),
    ] = None,
    dense: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the model that it was compared with.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The certification split, tokenized, as Dataset.to_json writes it.")
    ] = None,
) -> None:
    """Checks a certificate as far as what is given reaches. Exit code 0: it holds; 1: it does not; 2: unreadable."""
    beside = certificate if certificate.is_dir() else certificate.parent
    if model is None and (beside / "config.json").exists():
        model = beside
    result = verify_certificate(
        certificate,
        None if model is None else _model(model),
        None if data is None else _examples(data),
        dense=None if dense is None else _model(dense),
    )
    typer.echo(result.to_text())
    if not result.holds:
        raise typer.Exit(1)


@app.command()
def promise(
    examples: Annotated[int, typer.Argument(help="Labelled examples that nothing has seen.", min=1)],
    max_drop: Annotated[
        float, typer.Option(help="Drop of the accuracy that is to be excluded, 0.01 for a point.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(help="Of the certificate.")] = 0.95,
    disagreement: Annotated[float, typer.Option(help="Share of the answers that pruning will change.")] = 0.03,
    true_drop: Annotated[float, typer.Option(help="Drop that the pruned model really has.")] = 0.0,
) -> None:
    """Says what so many examples can certify, before anything is searched."""
    if not 0.5 < confidence < 1:  # noqa: PLR2004
        raise InvalidSettingError(f"--confidence must be above 0.5 and below 1, received {confidence}. Pass 0.95.")
    if not 0 < max_drop < 1:
        raise InvalidSettingError(f"--max-drop must be above 0 and below 1, received {max_drop}. A point is 0.01.")
    expected = Expectation(disagreement=disagreement, true_drop=true_drop, alpha=1 - confidence)
    typer.echo(promise_in_words(examples, max_drop, expected))


def main() -> None:
    """Runs the command; an error that the user can mend is one line and exit code 2."""
    transformers.utils.logging.disable_progress_bar()
    try:
        app()
    except HeadPruneError as error:
        typer.echo(f"headprune: {error}", err=True)
        raise SystemExit(2) from error


def _model(folder: Path) -> nn.Module:
    """Loads a model as the class that its configuration names."""
    try:
        return _loaded(folder)
    except HeadPruneError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first_line = str(error).partition("\n")[0]
        raise UnsupportedModelError(f"{folder}: no model can be read from this folder: {first_line}") from error


def _loaded(folder: Path) -> nn.Module:
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or ["none"])[0]
    kind = prunable_named(name) if name in class_names() else getattr(transformers, name, None)
    if kind is None:
        raise UnsupportedModelError(
            f"{folder}: its configuration names the class {name!r}, which nothing here provides."
        )
    return kind.from_pretrained(folder).eval()


def _examples(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise CertificateError(f"--data {file} must hold one JSON object per line: {error}") from error
