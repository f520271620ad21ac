"""`headprune`: prune a fine-tuned model, look into a pruned one, verify its certificate, from a shell.

Exit codes: 0 what was asked for holds; 1 it does not; 2 bad input, in one line; 3 a fault of this program, likewise.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import datasets
import transformers
import typer

from hf_headprune.cli.card import card
from hf_headprune.cli.certify import certify, disagreements
from hf_headprune.cli.export import export
from hf_headprune.cli.inspect import bench, power, show
from hf_headprune.cli.migrate import migrate
from hf_headprune.cli.monitor import monitor
from hf_headprune.cli.prune import prune
from hf_headprune.cli.verify import verify
from hf_headprune.errors import HeadPruneError

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT, INTERRUPTED, FAULT = 2, 130, 3
SHOWS_TRACEBACK = "HEADPRUNE_TRACEBACK"
# typer brings its own copy of click, or imports it: this is the base of all complaints about words on the command line
UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)


def _say_version(asked: bool) -> None:  # noqa: FBT001 - as typer calls it
    if asked:
        typer.echo(metadata.version("hf-headprune"))
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[  # noqa: FBT002
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Prunes fine-tuned Transformers, inspects pruned ones, and verifies their certificates."""


for command in (prune, show, bench, export, card, migrate, disagreements, certify, verify, monitor, power):
    app.command()(command)


def main(words: Sequence[str] | None = None) -> None:
    """Runs a command and exits; a problem is one line, and never a traceback.

    Args:
        words: Of the command line; those of the process when left out.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    arguments = list(sys.argv[1:] if words is None else words)
    raise SystemExit(_code(arguments or ["--help"]))


def _code(arguments: list[str]) -> int:
    try:
        return app(arguments, prog_name="headprune", standalone_mode=False) or 0
    except typer.Abort:
        return _said("interrupted.", INTERRUPTED)
    except UsageProblem as problem:
        return _said(problem.format_message(), BAD_INPUT)
    except (HeadPruneError, OSError) as error:
        return _said(str(error), BAD_INPUT)
    except Exception as error:
        if os.environ.get(SHOWS_TRACEBACK):
            raise
        return _said(f"{type(error).__name__}: {error} (a fault; {SHOWS_TRACEBACK}=1 shows where it is)", FAULT)


def _said(message: str, code: int) -> int:
    typer.echo(f"headprune: {' '.join(message.split())}", err=True)
    return code
