"""Every way of the arena on the same fine-tuned models: accuracy on untouched test examples at equal size.

The models are those of `benchmarks.default_run`, which trains them where they are missing. Every way is given the same
training examples to look at, cuts the model for real, and is scored as it is, after 300 further steps on the labels, or
after two epochs with the dense model as teacher, both at the learning rate of `headprune prune --recover`. What is no
part of these ways' cut is left out: training is the same for all. Ways that prune during training have as many steps,
and the same labels or the same teacher, from whom they learn as their papers say.

Embedding models (stsb) are left out: their training examples have no labels, which most of the ways need.

Run: OMP_NUM_THREADS=1 python -m benchmarks.arena [--tasks sst2] [--seeds 0] [--ways ours] [--trainings none]
     python -m benchmarks.arena --collect
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arena.case import Case, weights_of
from benchmarks.arena.during import DURING
from benchmarks.arena.training import Training
from benchmarks.arena.ways import WAYS
from benchmarks.default_run import plain_run, recipe_of, trained
from benchmarks.plain_models import parsed, parser_for, work_or_collect
from benchmarks.results_file import RESULTS, over_seeds
from benchmarks.tasks import load_task
from benchmarks.training import build_trainer
from hf_headprune import anatomy_of

RESULT = RESULTS / "arena.json"
TASKS = ("sst2", "snli", "qamr")
SEEDS = (0, 1, 2)
DENSITIES = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1)
TRAININGS = {"none": DENSITIES, "300 steps": (0.5, 0.25, 0.1), "2 epochs": (0.5, 0.25, 0.1)}
NAMES = (*WAYS, *DURING)
DEAR = ("ours, 3 rounds", "ours, 4,096 examples", "ours, 3 rounds, 4,096 examples")  # look at more, or more often
DEEP = (0.25, 0.1)


@dataclass(frozen=True)
class Run:
    """A way at a density on one model."""

    task: str
    seed: int
    way: str
    density: float
    training: str


def all_runs() -> list[Run]:
    """Returns all there are, seed by seed.

    A way that prunes during training has no run without any; what a longer look is worth is seen without training, at
    small sizes.
    """
    return [
        Run(task, seed, way, density, training)
        for seed in SEEDS
        for training, densities in TRAININGS.items()
        for task in TASKS
        for density in densities
        for way in NAMES
        if way in WAYS or training != "none"
        if way not in DEAR or (training == "none" and density in DEEP)
    ]


def perform(run: Run, *, work: Path, smoke: bool) -> dict[str, Any]:
    """Makes a model smaller, trains it on where that is asked for, and scores it."""
    task = load_task(run.task, limit=400 if smoke else None)
    plain = plain_run(task, run.seed, work, smoke=smoke)
    dense, model = (trained(task, run.seed, work).eval() for _ in range(2))
    case = Case(model, task, run.density, run.seed)
    training = Training(run.training, task, dense, smoke=smoke)
    started = time.process_time()
    if run.way in DURING:
        DURING[run.way](case, training)
    else:
        WAYS[run.way](case)
    seconds = time.process_time() - started  # training included where it prunes
    if run.way in WAYS and run.training != "none":
        training.after_cut(model)
    trainer = build_trainer(task, recipe_of(task, smoke=smoke), seed=0, callback=None, model=model)
    trainer.compute_metrics = task.scorers["test"]
    test = trainer.evaluate(task.test)[f"eval_{task.metric}"]
    weights = [sum(weights_of(site) * site.units for site in anatomy_of(it).sites) for it in (dense, model)]
    return {
        "test": test,
        "dense_test": plain["test"],
        "drop": plain["test"] - test,
        "density_reached": weights[1] / weights[0],
        "cpu_seconds": seconds,
    }


def summarised(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    summary = []
    for task in TASKS:
        for training, densities in TRAININGS.items():
            for way in NAMES:
                for density in densities:
                    cell = task, training, way, density
                    mine = [r for r in runs if (r["task"], r["training"], r["way"], r["density"]) == cell]
                    if mine:
                        named = {"task": task, "training": training, "way": way, "density": density}
                        values = over_seeds(mine, "dense_test", "test", "drop", "density_reached", "cpu_seconds")
                        summary.append({**named, "seeds": len(mine), **values})
    return summary


def line(row: dict[str, Any]) -> str:
    """Says what a row of the summary says."""
    return (
        f"{row['task']}, {row['training']}, density {row['density']:g}, {row['way']}: {row['test']['mean']:.2f} % "
        f"({-row['drop']['mean']:+.2f}), {row['cpu_seconds']['mean']:.0f} s"
    )


def main() -> None:
    """Works through the runs, or collects."""
    parser = parser_for(__doc__ or "", TASKS, SEEDS)
    parser.add_argument("--ways", nargs="+", choices=NAMES, default=NAMES, help="of these alone")
    parser.add_argument("--trainings", nargs="+", choices=tuple(TRAININGS), default=tuple(TRAININGS))
    parser.add_argument("--densities", nargs="+", type=float, choices=DENSITIES, default=DENSITIES)
    options = parsed(parser)
    runs = [
        run
        for run in all_runs()
        if options.collect or (run.training in options.trainings and run.density in options.densities)
    ]
    work_or_collect(
        options,
        runs,
        smoke=Run("sst2", 0, "K-prune", 0.25, "2 epochs"),
        result=RESULT,
        perform=perform,
        summarise=summarised,
        line=line,
        cache="arena",
    )


if __name__ == "__main__":
    main()
