"""Writes the numbers of README, between two markers, from benchmarks/results/*.json.

`benchmarks.results_page` calls it. A number whose result file is missing is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results_file import RESULTS, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- numbers: written by benchmarks.results_page -->", "<!-- end of numbers -->"
TASKS = {"sst2": "sentiment (sst2)", "snli": "inference (snli)"}
DEFAULT_WAY = "HeadPruneCallback()"
OURS = "second order"  # how the names of our ways begin
HALF, QUARTER = 0.5, 0.25
BATCH, TORCH, INT8 = 8, "torch fp32", "ONNX int8"
EPOCHS, SEEDS = 2, 3  # of recovery
HALF_WAY = "50 % of the weights"
ELSEWHERE = {
    "images": ("a ViT on digits (accuracy, %)", 1),
    "embeddings": ("all-MiniLM-L6-v2 on STS-B (Spearman)", 3),
    "translation": ("German to English (BLEU)", 1),
    "summarization": ("abstracts in one sentence (ROUGE-1)", 1),
}


def write(file: Path = README) -> None:
    """Rewrites the numbers of a page in place.

    Args:
        file: With both markers.
    """
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    parts = (before + BEGIN, table(), *speed(), *elsewhere(), END + after)
    file.write_text("\n\n".join(parts), encoding="utf-8")


def table() -> str:
    """Returns the table that README shows."""
    lines = [("MiniLM, 6 layers", *TASKS.values())]
    for rows in (_default(), _half(), _recovered(), _certified(), _smallest()):
        lines += list(rows)
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def speed() -> Iterator[str]:
    """The time of a batch by the weights that are kept, in torch, and in int8; where it was measured."""
    rows = {
        (row["runtime"], row["density"]): row["ms"]
        for row in read_json(RESULTS / "runtimes.json").get("results", ())
        if row["batch"] == BATCH
    }
    found = [rows.get(cell) for cell in (*((TORCH, density) for density in (1.0, HALF, QUARTER)), (INT8, QUARTER))]
    if None not in found:
        dense, half, quarter, int8 = (f"{ms:.0f}" for ms in found)
        yield (
            f"A batch of {BATCH} texts of 128 tokens takes {dense} ms on one core. With half of the attention and FFN\n"
            f"weights it takes {half} ms, with a quarter {quarter} ms, and with a quarter in int8 (ONNX) {int8} ms."
        )


def elsewhere() -> Iterator[str]:
    """What half of the weights costs on other tasks, without training; where all were measured."""
    rows = {r["task"]: r for r in read_json(RESULTS / "other_tasks.json").get("summary", ()) if r["way"] == HALF_WAY}
    if set(ELSEWHERE) <= rows.keys():
        found = (
            f"{words} {rows[task]['dense_test']['mean']:.{digits}f} → {rows[task]['test']['mean']:.{digits}f}"
            + " (one seed)" * (rows[task]["seeds"] == 1)
            for task, (words, digits) in ELSEWHERE.items()
        )
        yield "Half of the weights removed, no further training, on other tasks:\n" + ";\n".join(found) + "."


def _default() -> Iterator[Sequence[str]]:
    """The default: how much is removed, what is lost on test, and the time."""
    rows = {r["task"]: r for r in read_json(RESULTS / "default_run.json").get("summary", ()) if r["way"] == DEFAULT_WAY}
    if not set(TASKS) <= rows.keys():
        return
    mine = [rows[task] for task in TASKS]
    yield "`HeadPruneCallback()`: weights removed", *(f"**{100 * (1 - row['density']['mean']):.0f} %**" for row in mine)
    yield "… points of accuracy lost on the test set", *(f"{row['drop']['mean']:.2f}" for row in mine)
    yield "… CPU time, plain training = 1", *(f"{row['cpu_ratio']['mean']:.2f}" for row in mine)


def _half() -> Iterator[Sequence[str]]:
    """Accuracy with half of the weights, beside the unpruned model and the best of the other ways."""
    rows = [row for row in read_json(RESULTS / "density_accuracy.json")["summary"] if row["group"] == "budget"]
    cells: dict[str, dict[str, float]] = {task: {} for task in TASKS}
    for row in rows:
        if row["task"] in cells and row["density"] in (1.0, HALF):
            cells[row["task"]][row["method"]] = row["test"]["mean"]
    ours = [f"{cell['dense']:.1f} → **{cell['second order, one-shot']:.1f}**" for cell in cells.values()]
    rivals = [
        {name: it for name, it in cell.items() if not name.startswith(("dense", OURS))} for cell in cells.values()
    ]
    others = [max(cell.values()) for cell in rivals]
    yield "Accuracy, unpruned → half of the weights removed, no further training", *ours
    yield "… with the best of the other ways", *(f"{value:.1f}" for value in others)


def _recovered() -> Iterator[Sequence[str]]:
    """What deep cuts lose once the pruned model has trained on; where all tasks and seeds are there."""
    rows = [row for row in read_json(RESULTS / "recovery.json").get("summary", ()) if row["epochs"] == EPOCHS]
    for density in sorted({row["density"] for row in rows}, reverse=True):
        lost = {row["task"]: row["drop"]["mean"] for row in rows if (row["density"], row["seeds"]) == (density, SEEDS)}
        if set(TASKS) <= lost.keys():
            name = f"{100 * (1 - density):.0f} % of the weights removed, {EPOCHS} epochs of recovery: points lost"
            yield name, *(f"{lost[task]:.2f}" for task in TASKS)


def _certified() -> Iterator[Sequence[str]]:
    """How much can be removed with a certificate at 95 %."""
    content = read_json(RESULTS / "certified_pruning.json")
    rows = [r for r in content["results"] if r["way"] == "second order, one-shot" and r["max_drop"] == 0.01]  # noqa: PLR2004
    name = f"Weights removed, certified at {100 * (1 - content['alpha']):.0f} % to lose less than one percentage point"
    yield name, *(_range(row for row in rows if row["task"] == task) for task in TASKS)


def _smallest() -> Iterator[Sequence[str]]:
    """The smallest files that were tried, in fp32 and in int8, and how many runs are certified at 95 %."""
    rows = read_json(RESULTS / "smallest.json").get("summary", ())
    smallest = {row["task"]: row for row in sorted(rows, key=lambda row: -row["mb"]["mean"]) if row["task"] in TASKS}
    if TASKS.keys() != smallest.keys():
        return
    found = [smallest[task] for task in TASKS]
    dense = next(run["file_mb"] / run["file"] for run in read_json(RESULTS / "default_run.json")["runs"])
    sizes = [f"{row['mb']['mean']:.1f} MB, {row['int8_mb']['mean']:.1f} MB in int8" for row in found]
    yield f"Smallest file tried, of {dense:.1f} MB", *sizes
    for points, words in {"1": "one percentage point", "2": "two"}.items():
        certified = [f"{row['certified'][points]} of {row['seeds']}" for row in found]
        yield f"… runs that are certified at 95 % to lose less than {words}", *certified


def _range(rows: Iterable[dict[str, Any]]) -> str:
    removed = [100 * row["weights_removed"] for row in rows]
    return f"{min(removed):.0f} to {max(removed):.0f} %"
