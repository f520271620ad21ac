"""The smallest certified model of a task: vocabulary, heads and FFN units pruned, a recovery, int8.

The models are those of `benchmarks.default_run`; `examples/smallest.py` makes a file of a given size of each, and
certifies it, at 95 %, on dev and test together, none of which it has looked at.

Run: OMP_NUM_THREADS=1 python -m benchmarks.smallest [--tasks sst2] [--seeds 0] [--sizes 26.5] [--work FOLDER] [--smoke]
     python -m benchmarks.smallest --collect
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.default_run import plain_run
from benchmarks.plain_models import parsed, parser_for, work_or_collect
from benchmarks.results_file import RESULTS, over_seeds
from benchmarks.tasks import SNLI_TRAIN_PAIRS, data_folder, load_task

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # examples find what they share beside them

from smallest import SMOKE, Scale, Texts, rows_of, run

RESULT = RESULTS / "smallest.json"
TASKS = ("sst2", "snli")
SEEDS = (0, 1, 2)
SIZES = (26.5, 35.0, 45.0)  # MB of the file in fp32; the dense one has 90.9


@dataclass(frozen=True)
class Run:
    """One model, and the size of its file."""

    task: str
    seed: int
    size: float


def perform(asked: Run, *, work: Path, smoke: bool) -> dict[str, Any]:
    """Makes the file and its certificates."""
    plain_run(load_task(asked.task, limit=400 if smoke else None), asked.seed, work, smoke=smoke)
    splits = rows_of(data_folder(asked.task))
    if asked.task == "snli":
        splits["train"] = first(splits["train"], SNLI_TRAIN_PAIRS)
    scale = replace(SMOKE, layers=6, size_mb=asked.size) if smoke else Scale(size_mb=asked.size)
    if smoke:
        splits = {name: first(split, 40) for name, split in splits.items()}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as output:
        found = run(splits, scale, Path(output), dense_folder=work / f"{asked.task}-{asked.seed}", seed=asked.seed)
    dense, pruned = (100 * found["accuracy_on_test"][name] for name in ("dense", "fp32"))
    bounds = {name: 100 * it["drop_at_most"] for name, it in found["certified"].items()}
    return {
        "test": pruned,
        "dense_test": dense,
        "drop": dense - pruned,
        "mb": found["mb"]["fp32"],
        "int8_mb": found["mb"]["int8"],
        "drop_at_most": bounds["fp32"],
        "int8_drop_at_most": bounds["int8"],
        "cpu_seconds": time.process_time() - started,
    }


def first(split: Texts, count: int) -> Texts:
    """Returns the first examples of a split."""
    return Texts(split.texts[:count], split.labels[:count])


def summarised(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and how many are certified."""
    summary = []
    for task in TASKS:
        for size in SIZES:
            mine = [it for it in runs if (it["task"], it["size"]) == (task, size)]
            if mine:
                names = ("dense_test", "test", "drop", "mb", "int8_mb", "cpu_seconds")
                certified = {
                    f"{kind}certified": {
                        str(points): sum(it[f"{kind}drop_at_most"] < points for it in mine) for points in (1, 2)
                    }
                    for kind in ("", "int8_")
                }
                summary.append(
                    {"task": task, "size": size, "seeds": len(mine), **over_seeds(mine, *names), **certified}
                )
    return summary


def line(row: dict[str, Any]) -> str:
    """Says what a row of the summary says."""
    return (
        f"{row['task']} {row['mb']['mean']:.1f} MB ({row['int8_mb']['mean']:.1f} in int8): drop "
        f"{row['drop']['mean']:.2f}, certified {row['certified']}, in int8 {row['int8_certified']}"
    )


def main() -> None:
    """Works through the runs, or collects."""
    parser = parser_for(__doc__ or "", TASKS, SEEDS)
    parser.add_argument("--sizes", nargs="+", type=float, choices=SIZES, default=SIZES, help="of these sizes alone")
    options = parsed(parser)
    runs = [
        Run(task, seed, size)
        for seed in SEEDS
        for task in TASKS
        for size in SIZES
        if options.collect or size in options.sizes
    ]
    work_or_collect(
        options,
        runs,
        smoke=Run("sst2", 0, 3.0),
        result=RESULT,
        perform=perform,
        summarise=summarised,
        line=line,
        cache="smallest",
    )


if __name__ == "__main__":
    main()
