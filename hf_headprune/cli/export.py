"""`headprune export`: a pruned model for one way of loading it, or as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_headprune.cli.models import load_model, load_tokenizer
from hf_headprune.cli.output import OutputFolder
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.publish.onnx import export_onnx
from hf_headprune.shrink.export import export_model


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", hidden=True)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", hidden=True)],
    mode: Annotated[str, typer.Option(metavar="NAME", help="remote, native or plain")] = "remote",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write onnx/model.onnx instead")] = False,  # noqa: FBT002
    int8: Annotated[bool, typer.Option("--int8", help="Of --onnx: matrices in int8")] = False,  # noqa: FBT002
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUTPUT")] = False,  # noqa: FBT002
) -> None:
    """Writes MODEL, a pruned folder or Hub name, into OUTPUT: for one mode of loading, or as ONNX."""
    if int8 and not onnx:
        raise InvalidSettingError("export: --int8 is for ONNX files. Pass --onnx, too.")
    if onnx and mode != "remote":
        raise InvalidSettingError(f"export: an ONNX file has no --mode, received {mode}. Leave one of them out.")
    folder = OutputFolder(output, overwrite)
    folder.check([model])
    loaded = load_model(model)
    with folder.staged() as staging:
        if onnx:
            found = export_onnx(loaded, staging, int8=int8)
            said = f"it differs from torch by {found.difference:.1g} of the largest output"
        else:
            export_model(loaded, staging, mode=mode)  # type: ignore[arg-type] # checked there
            said = f"mode {mode}"
        copy_tokenizer(model, loaded, staging)
    typer.echo(f"Saved in {output}; {said}.")


def copy_tokenizer(source: str, model: object, folder: Path) -> None:
    """Saves the tokenizer beside the model, if there is one."""
    try:
        load_tokenizer(source, model).save_pretrained(folder)
    except HeadPruneError as error:
        typer.echo(f"No tokenizer was saved: {error}", err=True)
