"""`headprune`: prune a fine-tuned model, look into a pruned one, verify its certificate, from a shell.

Exit codes: 0 what was asked for holds; 1 it does not; 2 bad input, in one line; 3 a fault of this program, likewise.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from hf_headprune.errors import HeadPruneError

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT, INTERRUPTED, FAULT = 2, 130, 3
SHOWS_TRACEBACK = "HEADPRUNE_TRACEBACK"
# typer brings its own copy of click, or imports it: this is the base of all complaints about words on the command line
UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

# Each command, the module of its function, and the first sentence of its help: to list them imports no torch.
_COMMANDS = (
    ("prune", "prune", "Prunes MODEL, a folder or Hub name, into OUTPUT."),
    ("show", "inspect", "Says what a saved model has kept, its size and certificate."),
    ("bench", "inspect", "Times a pruned model against the dense one, in turns."),
    ("export", "export", "Writes MODEL for a mode of loading, or as ONNX or OpenVINO."),
    ("card", "card", "Writes README.md from the report of a saved model."),
    ("migrate", "migrate", "Writes SOURCE, which another tool has pruned, into OUTPUT."),
    ("disagreements", "certify", "Writes the texts on which models disagree, to label them."),
    ("certify", "certify", "Certifies that PRUNED loses less than a drop."),
    ("verify", "verify", "Verifies a certificate against its models and its data."),
    ("monitor", "monitor", "Says if the models disagree more often than when certified."),
    ("power", "inspect", "Says what a number of examples can certify."),
)

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


def _register(name: str, module: str, summary: str) -> None:
    class Later(TyperCommand):
        """Imports the module of the command once it is called, or asked for its help."""

        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
            _silence_dependencies()
            loaded = typer.Typer(rich_markup_mode=None, add_completion=False)
            loaded.command()(getattr(import_module(f"hf_headprune.cli.{module}"), name))
            return typer.main.get_command(loaded).make_context(info_name, args, parent, **extra)

    app.command(name, help=summary, cls=Later)(lambda: None)


for command in _COMMANDS:
    _register(*command)


def main(words: Sequence[str] | None = None) -> None:
    """Runs a command and exits; a problem is one line, and never a traceback.

    Args:
        words: Of the command line; those of the process when left out.
    """
    arguments = list(sys.argv[1:] if words is None else words)
    raise SystemExit(_code(arguments or ["--help"]))


def _silence_dependencies() -> None:
    datasets, transformers = map(import_module, ("datasets", "transformers"))
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


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
