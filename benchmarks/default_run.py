"""What `HeadPruneCallback()` gives: size, drop on untouched test examples, certificate, and time beside plain training.

Each run fine-tunes MiniLM for three epochs with a plain Trainer, keeps that model, and lets a Trainer with the callback
go on from it: the callback leaves training alone (checked once per task by `--whole`: the weights that it begins to
prune are those of the plain run, bit for bit), so that both share the training. Times are CPU seconds of one thread;
since even these depend on what else a machine does, plain training is `TIMED` of its steps, timed right before the
callback's run in the same process, times their number.

Run: OMP_NUM_THREADS=1 python -m benchmarks.default_run [--tasks sst2] [--seeds 0] [--work FOLDER] [--smoke]
     python -m benchmarks.default_run --collect
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, TrainerCallback

from benchmarks.plain_models import parsed, parser_for, work_or_collect
from benchmarks.results_file import RESULTS, over_seeds, read_json, write_json
from benchmarks.tasks import Task, copied, load_task
from benchmarks.training import Recipe, build_trainer, score
from hf_headprune import AStarSearch, HeadPruneCallback, anatomy_of, linear_density

RESULT = RESULTS / "default_run.json"
TASKS = ("sst2", "snli", "qamr")
SEEDS = (0, 1, 2)
# What a user types, by the name of the row.
WAYS: dict[str, dict[str, Any]] = {
    "HeadPruneCallback()": {},
    "HeadPruneCallback(max_drop=0.02, confidence=0.95)": {"max_drop": 0.02, "confidence": 0.95},
    "HeadPruneCallback(search=AStarSearch(max_drop=0.01))": {"search": AStarSearch(max_drop=0.01)},
    "HeadPruneCallback(density=0.5)": {"density": 0.5},
}
RECIPE = Recipe(epochs=3.0)
TIMED = 50  # steps: batches of 50 at a time are sorted by length


@dataclass(frozen=True)
class Run:
    """One way on one task."""

    task: str
    seed: int
    way: str


def recipe_of(task: Task, *, smoke: bool) -> Recipe:
    """Returns the recipe of plain training."""
    recipe = replace(RECIPE, attention_dropout=bool(task.num_labels))  # long texts train faster without
    return replace(recipe, max_steps=4) if smoke else recipe


def plain_run(task: Task, seed: int, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Fine-tunes without the callback, keeps the model, and returns its scores and the number of steps."""
    folder = work / f"{task.name}-{seed}"
    if not (folder / "run.json").exists():
        trainer = build_trainer(task, recipe_of(task, smoke=smoke), seed=seed, callback=None)
        trainer.train()
        trainer.save_model(str(folder))
        write_json(folder / "run.json", {**score(trainer, task), "steps": trainer.state.global_step})
    return read_json(folder / "run.json")


class StepClock(TrainerCallback):
    """Measures the CPU seconds of the steps of a run.

    Attributes:
        seconds: From the first step's beginning to the last one's end.
    """

    def __init__(self) -> None:
        """Begins with nothing."""
        self.seconds = 0.0
        self._started: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts at the first."""
        if self._started is None:
            self._started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reads the clock."""
        self.seconds = time.process_time() - (self._started or 0.0)


def plain_seconds(task: Task, seed: int, work: Path, *, smoke: bool) -> float:
    """Returns the CPU seconds of all steps of plain training, from some of them as the machine is now."""
    recipe, clock = recipe_of(task, smoke=smoke), StepClock()
    timed = 4 if smoke else TIMED
    build_trainer(task, replace(recipe, max_steps=timed), seed=seed, callback=clock).train()
    return clock.seconds / timed * int(plain_run(task, seed, work, smoke=smoke)["steps"])


def trained(task: Task, seed: int, work: Path) -> Any:
    """Returns the model of the plain run."""
    kind: Any = AutoModelForSequenceClassification if task.num_labels else AutoModelForQuestionAnswering
    return copied(kind, work / f"{task.name}-{seed}")


def perform(run: Run, *, work: Path, smoke: bool) -> dict[str, Any]:
    """Prunes the model of a plain run, or trains anew where the way prunes during training."""
    task = load_task(run.task, limit=400 if smoke else None)
    plain = plain_run(task, run.seed, work, smoke=smoke)
    settings = WAYS[run.way]
    callback = HeadPruneCallback(latency=None, **settings)
    recipe, model = recipe_of(task, smoke=smoke), None
    prunes_after = callback.settings.follows
    if prunes_after:  # a step at a rate of zero changes no weight
        recipe, model = replace(recipe, max_steps=1, learning_rate=0.0), trained(task, run.seed, work)
    plain_cpu = plain_seconds(task, run.seed, work, smoke=smoke)
    trainer = build_trainer(task, recipe, seed=run.seed, callback=callback, model=model)
    if not callback.settings.is_one_point:  # the drop is of a metric from 0 to 1, and this one is in percent
        trainer.compute_metrics = None
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    dense = anatomy_of(trained(task, run.seed, work))
    assert callback.result is not None and callback.report is not None  # noqa: S101, PT018 - training has ended
    certificate, report = callback.certificate, callback.report
    scores = score(trainer, task)
    return {
        **scores,
        "dense_dev": plain["dev"],
        "dense_test": plain["test"],
        "drop": plain["test"] - scores["test"],
        "density": linear_density(callback.result.plan, dense),
        "file": report.after.size_bytes / report.before.size_bytes,
        "file_mb": report.after.size_mb,
        "heads": callback.result.plan.num_kept_heads,
        "evaluations": report.effort.evaluations,
        "plain_cpu_seconds": plain_cpu,
        "cpu_ratio": (seconds + plain_cpu * prunes_after) / plain_cpu,
        "verdict": None if certificate is None else certificate.evidence.verdict,
        "upper_bound": None if certificate is None else certificate.evidence.upper_bound,
        "unseen": None if report.unseen is None else asdict(report.unseen),
        "searched": None if report.metric is None else asdict(report.metric),
        "words": report.certificate,
    }


class Weights(TrainerCallback):
    """Keeps a copy of the weights with which training ended, before another callback changes them."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self.state: dict[str, torch.Tensor] = {}

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copies the weights."""
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_training(task: Task, seed: int, work: Path, *, smoke: bool) -> bool:
    """Trains with the callback from the start and tells whether its weights are those of the plain run, bit for bit."""
    plain_run(task, seed, work, smoke=smoke)
    trainer = build_trainer(task, recipe_of(task, smoke=smoke), seed=seed, callback=HeadPruneCallback(latency=None))
    weights = Weights()
    trainer.callback_handler.callbacks.insert(0, weights)
    trainer.train()
    expected = trained(task, seed, work).state_dict()
    return all(torch.equal(expected[name], tensor) for name, tensor in weights.state.items())


def summarised(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    summary = []
    for way in WAYS:
        for task in TASKS:
            mine = [run for run in runs if (run["way"], run["task"]) == (way, task)]
            if not mine:
                continue
            passed = [run for run in mine if run["verdict"] == "PASS"]
            allowed = 100 * WAYS[way].get("max_drop", 0.01)  # a search's is its default, the same
            summary.append(
                {
                    "way": way,
                    "task": task,
                    "seeds": len(mine),
                    **over_seeds(mine, "drop", "density", "file", "cpu_ratio", "dense_test", "test"),
                    "certified": len(passed),
                    "certified_wrongly": sum(run["drop"] >= allowed for run in passed),
                }
            )
    return summary


def line(row: dict[str, Any]) -> str:
    """Says what a row of the summary says."""
    return (
        f"{row['way']} {row['task']}: {100 * row['density']['mean']:.1f} % of the weights, drop "
        f"{row['drop']['mean']:.2f}, {row['cpu_ratio']['mean']:.2f} x plain, certified {row['certified']}"
    )


def main() -> None:
    """Works through the runs, or collects."""
    parser = parser_for(__doc__ or "", TASKS, SEEDS)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), help="of these ways alone")
    parser.add_argument("--whole", action="store_true", help="check that the callback leaves training alone")
    options = parsed(parser)
    if options.whole:
        for name in options.tasks:
            task = load_task(name, limit=400 if options.smoke else None)
            print(name, "same weights:", same_training(task, 0, options.work, smoke=options.smoke), flush=True)
        return
    default, *others = WAYS
    runs = [Run(task, seed, default) for seed in SEEDS for task in TASKS]
    runs += [Run(task, SEEDS[0], way) for way in others for task in TASKS[:2]]
    work_or_collect(options, runs, smoke=runs[0], result=RESULT, perform=perform, summarise=summarised, line=line)


if __name__ == "__main__":
    main()
