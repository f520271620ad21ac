"""Draws docs/images/accuracy.svg, the chart of README: accuracy against the weights that are kept.

Every point comes from benchmarks/results/density_accuracy.json; nothing is typed by hand.

Run: python -m benchmarks.readme_chart
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results_file import RESULTS, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "accuracy.svg"
GROUP = "budget"
DENSE = "dense"
PANELS = {"sst2": "Sentiment (sst2), accuracy", "snli": "Inference (snli), accuracy", "qamr": "Questions (qamr), F1"}
# The palette of Okabe and Ito, which readers with any colour vision tell apart; each way has a marker of its own, too.
INK, PAPER, GRID = "#24292f", "#ffffff", "#d8dee4"
HALO = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.8}


@dataclass(frozen=True)
class Way:
    """How one way to prune is drawn.

    Attributes:
        method: Its name in the result file.
        label: Its name in the legend.
        color: Of line and marker.
        marker: Of matplotlib.
        is_ours: Whether it is the library's default, which is drawn on top and wider.
    """

    method: str
    label: str
    color: str
    marker: str
    is_ours: bool = False


WAYS = (
    Way("second order, one-shot", "hf_headprune: removal costs, refit, no training", "#0072b2", "o", is_ours=True),
    Way("hybrid", "learned gates + movement", "#e69f00", "s"),
    Way("movement", "movement pruning", "#cc79a7", "D"),
    Way("magnitude", "magnitude", "#7f7f7f", "v"),
    Way("random units", "random units", "#56b4e9", "P"),
    Way("Fisher, one-shot", "Fisher scores, no training", "#d55e00", "^"),
)
DODGE = 0.9  # percent of the weights between neighbouring ways, so that equal results stay visible
FALLEN = "Fisher, one-shot"  # falls so far that the other ways would be squeezed together: the panels end above it


def series(rows: list[dict[str, Any]], task: str, method: str) -> list[tuple[float, float, float]]:
    """Returns `(percent of the weights kept, mean, standard deviation)` of one way on one task, the dense model first.

    Args:
        rows: Summary of the result file.
        task: Name of the task.
        method: Name of the way.
    """
    mine = [row for row in rows if (row["group"], row["task"]) == (GROUP, task) and row["method"] in (DENSE, method)]
    found = [(100 * row["density"], row["test"]["mean"], row["test"]["standard_deviation"] or 0.0) for row in mine]
    return sorted(found, reverse=True)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws one panel per task, the legend below, and saves the picture.

    Args:
        rows: Summary of the result file.
        file: Where the picture is saved; its ending says the format.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "hf_headprune", "font.size": 11, "text.color": INK}):
        figure = Figure(figsize=(9.6, 4.2), facecolor=PAPER)
        panels = figure.subplots(1, len(PANELS))
        figure.subplots_adjust(left=0.045, right=0.985, top=0.92, bottom=0.27, wspace=0.2)
        for panel, (task, title) in zip(panels, PANELS.items(), strict=True):
            _draw_task(panel, rows, task, title)
        figure.text(0.515, 0.165, "attention and FFN weights that are kept, %", ha="center", fontsize=11)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=10.5)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Creator": None, "Date": None} if file.suffix == ".svg" else None, dpi=110)


def _draw_task(panel: Axes, rows: list[dict[str, Any]], task: str, title: str) -> None:
    for place, way in enumerate(WAYS):
        points = series(rows, task, way.method)
        shift = 0.0 if way.is_ours else DODGE * (place - len(WAYS) / 2)
        panel.errorbar(
            [kept + shift * (kept < 100) for kept, _, _ in points],  # noqa: PLR2004 - all begin with the dense model
            [mean for _, mean, _ in points],
            yerr=[spread for _, _, spread in points],
            label=way.label,
            color=way.color,
            marker=way.marker,
            markersize=8 if way.is_ours else 5.5,
            linewidth=3.2 if way.is_ours else 1.5,
            elinewidth=1.0,
            zorder=5 if way.is_ours else 3,
        )
    dense = series(rows, task, DENSE)[0][1]
    floor = min(
        mean - spread for way in WAYS if way.method != FALLEN for _, mean, spread in series(rows, task, way.method)
    )
    panel.set_ylim(dense - 1.06 * (dense - floor), dense + 0.13 * (dense - floor))
    panel.axhline(dense, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    note = {"textcoords": "offset points", "ha": "right", "fontsize": 10}
    panel.annotate(f"unpruned {dense:.1f}", (20, dense), xytext=(0, 5), va="bottom", **note)
    ours = series(rows, task, WAYS[0].method)
    for kept, mean, _ in ours[1:]:
        panel.annotate(
            f"{mean:.1f}",
            (kept, mean),
            xytext=(-8, -9),
            va="top",
            color=WAYS[0].color,
            weight="bold",
            bbox=HALO,
            **note,
        )
    panel.set_title(title, fontsize=11.5, loc="left")
    panel.set_xlim(103, 19)
    panel.set_xticks([100, 75, 50, 25])
    style(panel)


def style(panel: Axes) -> None:
    """Gives a panel the lines and colors of all charts."""
    panel.grid(axis="y", color=GRID, linewidth=0.7)
    panel.tick_params(colors=INK, length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(GRID)


def main() -> None:
    """Draws the chart."""
    draw(read_json(RESULTS / "density_accuracy.json")["summary"], IMAGE)


if __name__ == "__main__":
    main()
