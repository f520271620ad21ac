"""`headprune export`: a pruned model for one way of loading it, or as files for onnxruntime and OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from hf_headprune.cli.inspect import AsJson
from hf_headprune.cli.models import NoTokenizerError, load_model, load_tokenizer
from hf_headprune.cli.output import OutputFolder
from hf_headprune.errors import HeadPruneError, InvalidSettingError
from hf_headprune.publish.onnx import export_onnx
from hf_headprune.publish.openvino import export_openvino
from hf_headprune.shrink.export import export_model


def export(  # noqa: PLR0913, PLR0917 - the options of the command
    model: Annotated[str, typer.Argument(metavar="MODEL", hidden=True)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", hidden=True)],
    mode: Annotated[str, typer.Option(metavar="NAME", help="remote, native or plain")] = "remote",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write onnx/model.onnx instead")] = False,  # noqa: FBT002
    int8: Annotated[bool, typer.Option("--int8", help="Of --onnx: matrices in int8")] = False,  # noqa: FBT002
    openvino: Annotated[bool, typer.Option("--openvino", help="Write openvino/openvino_model.xml instead")] = False,  # noqa: FBT002
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUTPUT")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Writes MODEL for a mode of loading, or as ONNX or OpenVINO.

    MODEL is a pruned folder or Hub name, OUTPUT a new folder.
    """
    if int8 and not onnx:
        raise InvalidSettingError("export: --int8 is for ONNX files. Pass --onnx, too.")
    if (onnx or openvino) and mode != "remote":
        raise InvalidSettingError(
            f"export: ONNX and OpenVINO files have no --mode, received {mode}. Leave one of them out."
        )
    folder = OutputFolder(output, overwrite)
    folder.check([model])
    loaded = load_model(model)
    if (onnx or openvino) and loaded.dtype in (torch.float16, torch.bfloat16):
        typer.echo(f"The weights are in {loaded.dtype}; the file computes in torch.float32.", err=True)
        loaded.float()
    with folder.staged() as staging:
        found = [export_onnx(loaded, staging, int8=int8)] if onnx else []
        found += [export_openvino(loaded, staging)] if openvino else []
        if not found:
            export_model(loaded, staging, mode=mode)  # type: ignore[arg-type] # checked there
        copy_tokenizer(model, loaded, staging)
        files = [(it, str(output / it.path.relative_to(staging))) for it in found]
    if as_json:
        content: dict[str, Any] = {"output": str(output), "mode": None if found else mode}
        content["files"] = [{"path": path, "difference": it.difference, "changed": it.changed} for it, path in files]
        typer.echo(json.dumps(content))
        return
    said = [f"{path} differs from torch by {it.difference:.1g} of the largest output" for it, path in files]
    typer.echo(f"Saved in {output}; {', '.join(said) or f'mode {mode}'}.")


def copy_tokenizer(source: str, model: object, folder: Path) -> None:
    """Saves the tokenizer beside the model, if there is one; says where there is none, or why it can't be used."""
    try:
        load_tokenizer(source, model).save_pretrained(folder)
    except NoTokenizerError:
        typer.echo(f"No tokenizer was saved: there is none beside {source}.", err=True)
    except HeadPruneError as error:
        typer.echo(f"No tokenizer was saved: {error}", err=True)
