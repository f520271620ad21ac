"""A table of the rungs of a ladder, one row for each size of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.publish.report import PruningReport

_WORDS = {"PASS": "yes", None: "no"}
_HEAD = ("weights", "million", "MB", "metric", "drop, points", "ms", "faster", "certified")
_LONGEST_NAME = 26  # so that a row has at most 100 columns
_WIDTHS = (9, 9, 9, 9, 14, 9, 9, 11)


@dataclass(frozen=True)
class Rung:
    """One size of a model.

    Attributes:
        name: Of the rung, such as the density that was asked for.
        report: What was counted and measured.
        verdict: Of its certificate; None without one.
    """

    name: str
    report: PruningReport
    verdict: str | None


def ladder_table(rungs: Sequence[Rung]) -> str:
    """Returns a table with a row for the whole model and for each rung.

    "weights" are those of the attention and FFN matrices, "million" all parameters. A rung without a verdict was not
    certified.
    """
    first = rungs[0].report
    unseen, latency = first.unseen, first.latency
    head = [name if name != "metric" or unseen is None else unseen.name[:_LONGEST_NAME] for name in _HEAD]
    whole = ["whole", f"{first.before.parameters / 1e6:.2f}", f"{first.before.size_mb:.1f}"]
    whole += ["" if unseen is None else f"{unseen.before:.4f}", "", "", "", ""]
    if latency is not None:
        whole[5] = f"{latency.before.median_ms:.1f}"
    widths = [max(width, len(name) + 2) for width, name in zip(_WIDTHS, head, strict=True)]
    return "\n".join(_line(cells, widths) for cells in (head, whole, *map(_cells, rungs)))


def _cells(rung: Rung) -> list[str]:
    report = rung.report
    share = "" if report.linear_density is None else f"{100 * report.linear_density:.1f} %"
    cells = [share, f"{report.after.parameters / 1e6:.2f}", f"{report.after.size_mb:.1f}"]
    if report.unseen is None:
        cells += ["", ""]
    else:
        cells += [f"{report.unseen.after:.4f}", f"{100 * (report.unseen.before - report.unseen.after):+.2f}"]
    if report.latency is None:
        cells += ["", ""]
    else:
        factor = report.latency.speed_up
        cells += [f"{report.latency.after.median_ms:.1f}", "" if factor is None else f"{factor:.2f}x"]
    return [*cells, "" if report.unseen is None else _WORDS.get(rung.verdict, "no")]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
