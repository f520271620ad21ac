"""`headprune migrate`: a checkpoint that was pruned elsewhere, as one of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_headprune.cli.explanation import sites_of
from hf_headprune.cli.export import copy_tokenizer
from hf_headprune.cli.inspect import AsJson
from hf_headprune.cli.output import OutputFolder
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.migration import migrate_checkpoint


def migrate(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", hidden=True, exists=True, file_okay=False)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", hidden=True)],
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .bin and .pt files")] = False,  # noqa: FBT002
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUTPUT")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Writes SOURCE, which another tool has pruned, into OUTPUT.

    The tools are Transformers 4, TextPruner, nn_pruning and CoFi; or the heads are those of a head mask.
    """
    folder = OutputFolder(output, overwrite)
    folder.check([str(source)])
    model = migrate_checkpoint(source, allow_pickle=allow_pickle)
    with folder.staged() as staging:
        model.save_pretrained(staging)
        copy_tokenizer(str(source), model, staging)
    plan = PruningPlan.of(model)
    if as_json:
        content = {"output": str(output), "class": type(model).__name__, "sites": sites_of(model)}
        typer.echo(json.dumps(content))
        return
    typer.echo(f"Saved in {output}; {plan.num_kept_heads:,} heads and {plan.num_kept_ffn:,} FFN units are kept.")
