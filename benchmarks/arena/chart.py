"""Draws docs/images/arena.svg: points lost against the weights that are kept, without training, from the arena's file.

Run: python -m benchmarks.arena.chart
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.readme_chart import INK, PAPER, style
from benchmarks.results_file import RESULTS, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "arena.svg"
TITLES = {"sst2": "Sentiment (sst2), points of accuracy", "snli": "Inference (snli), points of accuracy"}
MOST = 12.0  # points; what loses more leaves the panel
WAYS = {  # color of Okabe and Ito, and marker of matplotlib
    "ours": ("#0072b2", "o"),
    "ours, 4,096 examples": ("#56b4e9", "P"),
    "K-prune": ("#009e73", "X"),
    "Kwon et al.": ("#d55e00", "^"),
    "ZipLM's price": ("#e69f00", "s"),
    "Torch-Pruning": ("#000000", "<"),
    "layers dropped": ("#cc79a7", "D"),
    "magnitude": ("#7f7f7f", "v"),
    "uniform width": ("#b8b000", ">"),
}


def series(rows: list[dict[str, Any]], task: str, way: str) -> list[tuple[float, float]]:
    """Returns `(percent of the weights kept, points lost)` of one way on one task, without training."""
    mine = [row for row in rows if (row["task"], row["training"], row["way"]) == (task, "none", way)]
    return sorted(((100 * row["density"], row["drop"]["mean"]) for row in mine), reverse=True)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws one panel per task, the legend below, and saves the picture.

    Args:
        rows: Summary of the result file.
        file: Where the picture is saved.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "hf_headprune", "font.size": 11, "text.color": INK}):
        figure = Figure(figsize=(9.6, 4.6), facecolor=PAPER)
        panels = figure.subplots(1, len(TITLES))
        figure.subplots_adjust(left=0.055, right=0.985, top=0.92, bottom=0.31, wspace=0.14)
        for panel, (task, title) in zip(panels, TITLES.items(), strict=True):
            _draw_task(panel, rows, task)
            panel.set_title(title, fontsize=11.5, loc="left")
        figure.text(0.515, 0.215, "attention and FFN weights that are kept, %", ha="center", fontsize=11)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=10.5)
        figure.savefig(file, metadata={"Creator": None, "Date": None})


def _draw_task(panel: Axes, rows: list[dict[str, Any]], task: str) -> None:
    for way, (color, marker) in WAYS.items():
        points = series(rows, task, way)
        is_ours = way.startswith("ours")
        panel.plot(
            [kept for kept, _ in points],
            [lost for _, lost in points],
            label=way,
            color=color,
            marker=marker,
            linewidth=3 if is_ours else 1.5,
            zorder=5 if is_ours else 3,
        )
    panel.set_ylim(MOST, -0.4)
    panel.set_xlim(78, 7)
    panel.set_xticks([75, 50, 35, 25, 15, 10])
    style(panel)


def main() -> None:
    """Draws the picture of docs/results.md."""
    draw(read_json(RESULTS / "arena.json")["summary"], IMAGE)
    print(f"wrote {IMAGE}")


if __name__ == "__main__":
    main()
