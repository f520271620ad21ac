"""What training on after the cut wins back: the pruned model, taught by the dense one, as `headprune prune --recover`.

The models are those of `benchmarks.default_run`, which trains them where they are missing. Each is pruned to a share of
its attention and FFN weights, refitted, and trained on for some epochs on the same training examples; zero epochs is
pruning alone. Scores are of the untouched test, on which certificates compare classifiers with the fine-tuned model.

Run: OMP_NUM_THREADS=1 python -m benchmarks.recovery [--tasks sst2] [--seeds 0] [--work FOLDER] [--smoke]
     python -m benchmarks.recovery --collect
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.default_run import plain_run, plain_seconds, recipe_of, trained
from benchmarks.plain_models import parsed, parser_for, verdicts, work_or_collect
from benchmarks.results_file import RESULTS, over_seeds
from benchmarks.tasks import load_task
from benchmarks.training import build_trainer, score
from hf_headprune import anatomy_of, linear_density, plan_for_budget, prune_model_
from hf_headprune.callback.plain_recovery import PlainRecovery
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from transformers import Trainer

RESULT = RESULTS / "recovery.json"
DENSITIES = {"sst2": (0.25, 0.1), "snli": (0.25, 0.1), "qamr": (0.25,)}
TASKS = tuple(DENSITIES)
SEEDS = (0, 1, 2)
EPOCHS = (0.0, 2.0)
LEARNING_RATE = 2e-4  # of `headprune prune --recover`


@dataclass(frozen=True)
class Run:
    """One model, the share of its weights that is kept, and for how long it trains on."""

    task: str
    seed: int
    density: float
    epochs: float


def perform(run: Run, *, work: Path, smoke: bool) -> dict[str, Any]:
    """Prunes a model, trains it on, and scores it."""
    task = load_task(run.task, limit=400 if smoke else None)
    plain = plain_run(task, run.seed, work, smoke=smoke)
    plain_cpu = plain_seconds(task, run.seed, work, smoke=smoke)
    dense, model = (trained(task, run.seed, work) for _ in range(2))
    recover = PlainRecovery(task.train, Batching(), run.epochs, LEARNING_RATE) if run.epochs else None
    started = time.process_time()
    found = plan_for_budget(model, task.train, density=run.density, recover=recover)
    prune_model_(model, found)
    seconds = time.process_time() - started
    trainers = [
        build_trainer(task, recipe_of(task, smoke=smoke), seed=0, callback=None, model=it) for it in (dense, model)
    ]
    scores = score(trainers[1], task)
    return {
        **scores,
        "dense_test": plain["test"],
        "drop": plain["test"] - scores["test"],
        "density_reached": linear_density(found.plan, anatomy_of(dense)),
        "certified": certified(trainers, task.test) if task.num_labels else {},
        "cpu_ratio": seconds / plain_cpu,
    }


def certified(trainers: list[Trainer], test: Any) -> dict[str, str]:
    """Returns the verdicts on the answers of the dense and of the pruned model."""
    outputs = [trainer.predict(test) for trainer in trainers]
    if any(output.label_ids.tolist() != list(test["labels"]) for output in outputs):
        raise RuntimeError("The answers are in another order than the examples.")
    dense, pruned = (output.predictions.argmax(-1).tolist() for output in outputs)
    return verdicts(dense, pruned, test)


def summarised(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    summary = []
    for task in TASKS:
        for density in DENSITIES[task]:
            for epochs in EPOCHS:
                cell = task, density, epochs
                mine = [run for run in runs if (run["task"], run["density"], run["epochs"]) == cell]
                if mine:
                    values = over_seeds(mine, "dense_test", "test", "drop", "cpu_ratio")
                    passed = {
                        name: sum(run["certified"][name] == "PASS" for run in mine) for name in mine[0]["certified"]
                    }
                    named = {"task": task, "density": density, "epochs": epochs, "seeds": len(mine)}
                    summary.append({**named, **values, "certified": passed})
    return summary


def line(row: dict[str, Any]) -> str:
    """Says what a row of the summary says."""
    passed = "".join(f", certified at {most} points: {count}" for most, count in row["certified"].items())
    return (
        f"{row['task']}, density {row['density']}, {row['epochs']:g} epochs: {row['dense_test']['mean']:.2f} -> "
        f"{row['test']['mean']:.2f} %, {row['cpu_ratio']['mean']:.2f} of plain training, seeds: {row['seeds']}{passed}"
    )


def main() -> None:
    """Works through the runs, or collects."""
    options = parsed(parser_for(__doc__ or "", TASKS, SEEDS))
    runs = [
        Run(task, seed, density, epochs)
        for seed in SEEDS
        for epochs in EPOCHS
        for task in TASKS
        for density in DENSITIES[task]
    ]
    work_or_collect(
        options,
        runs,
        smoke=Run("sst2", 0, 0.1, 2.0),
        result=RESULT,
        perform=perform,
        summarise=summarised,
        line=line,
        cache="recovery",
    )


if __name__ == "__main__":
    main()
