"""`headprune monitor`: whether live inputs are still like those of a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_headprune.cli.columns import listed
from hf_headprune.cli.files import read_file
from hf_headprune.cli.inspect import AsJson
from hf_headprune.cli.labels import whole_number
from hf_headprune.cli.verify import file_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.monitor import Monitor

COLUMNS = ("dense", "pruned")


def monitor(
    certificate: Annotated[Path, typer.Argument(help="Certificate, or the folder of its model.")],
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Answers since deployment, in order: columns dense and pruned")
    ],
    confidence: Annotated[float, typer.Option(help="One minus the chance of a false alarm, ever.")] = 0.95,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Says if the models disagree more often than when certified.

    No labels are needed. Exit code 0: nothing has risen; 1: the certificate no longer covers the inputs.
    """
    watched = Monitor(Certificate.load(file_of(certificate)), confidence)
    rows = read_file(data)
    if missing := [name for name in COLUMNS if name not in rows.column_names]:
        raise InvalidSettingError(
            f"{data}: the columns {listed(missing)} are missing, among {listed(rows.column_names)}. Write the answers "
            "of both models to each input there."
        )
    is_raised = watched.update(*([_spelt_alike(value) for value in rows[name]] for name in COLUMNS))
    content: dict[str, Any] = {"covered": not is_raised, "examples": watched.examples, "changed": watched.changed}
    content |= {"alarm_at": watched.alarm_at, "certified_rate": watched.rate}
    typer.echo(json.dumps(content) if as_json else watched.to_text())
    raise typer.Exit(1 if is_raised else 0)


def _spelt_alike(value: Any) -> Any:
    """Returns the whole number that a value spells, or a name without differences of letter case and spacing."""
    if (number := whole_number(value)) is not None:
        return number
    return value.strip().casefold() if isinstance(value, str) else value
