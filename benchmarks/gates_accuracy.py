"""Accuracy of pruned MiniLM against the dense model, and of the ways to choose heads against each other.

Three groups of runs, 3 seeds each, and 5 more where 3 are not enough (the headline without retraining, whose loss is
smaller than their spread; `sigmoid` and `dsp` pipelined on snli, which differ by less than it); within a group all runs
share data, steps, learning rate and batch order:

- headline: sst2, 3 epochs; dense; gates with 43 and 29 of 72 heads kept, which close over 120 steps (the default), at
  once, late (until they are decided), or only after a third of the run, and with the dense model as a teacher;
  second-order removal, in the run and after it; and the dense model after an A* search on dev, output projections
  refitted on 1 024 training examples, without any retraining (`certified_pruning` has more of that).
- joint: sst2, 1 epoch; dense, and 36, 18, 9 heads kept by each estimator, by second-order removal and by the baselines.
- pipelined: sst2 and snli; a dense fine-tuned model is frozen and 18 or 9 heads are chosen; beside it second-order
  removal, which trains nothing, but refits.

Every run is cached in `--work`, so a killed benchmark goes on where it was, and several processes share the queue.
Runs in the committed result file count as done; delete it to measure anew:

    OMP_NUM_THREADS=1 python -m benchmarks.gates_accuracy & OMP_NUM_THREADS=1 python -m benchmarks.gates_accuracy
    python -m benchmarks.gates_accuracy --collect          # writes benchmarks/results/gates_accuracy.json
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.finetuned import some_of
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.run_queue import RunQueue, key_of, summary
from benchmarks.tasks import Task, load_task
from benchmarks.training import Recipe, build_trainer, score, train_and_score
from hf_headprune import (
    AStarSearch,
    Distillation,
    HeadPruneCallback,
    PruningPlan,
    SecondOrder,
    SubsetGates,
    prune_model_,
    search_plan,
)
from hf_headprune._checks import with_tuning
from hf_headprune.learn.gates.settings import GateTuning, Mode
from hf_headprune.plan import RefittedPlan
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.plans_between import plans_between
from hf_headprune.refit.settings import SecondOrderTuning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import Trainer

RESULT = RESULTS / "gates_accuracy.json"
SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4, 5, 6, 7)
TASKS = ("sst2", "snli")
BUDGETS = (36, 18, 9)
DENSE = "dense"
HEADS = 72
ESTIMATORS: dict[str, dict[str, Any]] = {
    "ste": {"estimator": "ste", "score_learning_rate": 0.5},
    "sigmoid": {"estimator": "sigmoid", "score_learning_rate": 0.1},
    "dsp": {"estimator": "dsp", "temperature": (10.0, 0.1), "score_learning_rate": 0.5},
    "hard_concrete": {"estimator": "hard_concrete", "score_learning_rate": 0.1},
}
CLOSED = {"warmup_ratio": 0.0, "freeze_at": 0.0}
JOINT: dict[str, dict[str, Any]] = ESTIMATORS | {
    "gradient at the start": {"tuning": GateTuning(initial_scores="gradient", ramp_steps=0), **CLOSED},
    "random": {"tuning": GateTuning(initial_scores="random", ramp_steps=0), **CLOSED},
}
AT_ONCE = {"sigmoid, at once": ESTIMATORS["sigmoid"] | {"tuning": GateTuning(ramp_steps=0)}}
LATE = {f"{name}, late": ESTIMATORS[name] | {"tuning": GateTuning(ramp_steps=1_000_000)} for name in ("ste", "sigmoid")}
AFTER_A_THIRD = {"ste, open for a third": ESTIMATORS["ste"] | {"warmup_ratio": 1 / 3}}
ABLATION = AT_ONCE | LATE | AFTER_A_THIRD
PIPELINED: dict[str, dict[str, Any]] = {
    "ste": ESTIMATORS["ste"],
    "sigmoid": {"estimator": "sigmoid", "temperature": (10.0, 0.1), "score_learning_rate": 0.5},
    "sigmoid, as joint": {"estimator": "sigmoid", "temperature": (3.0, 0.05), "score_learning_rate": 0.1},
    "dsp": ESTIMATORS["dsp"],
    "gradient": {"score_learning_rate": 1e-9},
}
CONTENDERS = ("ste", "sigmoid")
CLOSE = ("sigmoid", "sigmoid, as joint", "dsp")
TEACHER = "ste, teacher"
SECOND_ORDER, ONE_SHOT = "second order", "second order, one-shot"
SEARCHED = "A*, one-shot"
SEARCH = AStarSearch(max_drop=0.01, max_evaluations=100, units=("heads",), objective="heads")
HEADLINE_RECIPE = Recipe(epochs=3.0)
JOINT_RECIPE = Recipe(epochs=1.0)
PIPELINED_RECIPE = Recipe(max_steps=100, warmup_steps=0)


@dataclass(frozen=True)
class Run:
    """One training run."""

    group: str
    task: str
    method: str
    kept_heads: int
    seed: int


def all_runs() -> Iterator[Run]:
    """Yields every run, seed by seed, so that an unfinished benchmark has whole seeds."""
    headline = [("headline", "sst2", *cell) for cell in [(DENSE, 72), *product(CONTENDERS, (43, 29))]]
    dense = [("joint", task, DENSE, 72) for task in TASKS]
    contenders = [("joint", "sst2", *cell) for cell in product(CONTENDERS, BUDGETS)]
    pipelined = [("pipelined", *cell) for cell in product(TASKS, PIPELINED, (18, 9))]
    others = [("joint", "sst2", *cell) for cell in product(JOINT.keys() - CONTENDERS, BUDGETS)]
    taught = [("headline", "sst2", TEACHER, kept) for kept in (43, 29)]
    ablation = [("headline", "sst2", *cell) for cell in product(AT_ONCE, (43, 29))]
    costs = [("headline", "sst2", *cell) for cell in product((SECOND_ORDER, ONE_SHOT), (43, 29))]
    costs += [("joint", "sst2", SECOND_ORDER, kept) for kept in BUDGETS]
    costs += [("pipelined", *cell) for cell in product(TASKS, (ONE_SHOT,), (18, 9))]
    for cells in (headline, dense + contenders, pipelined, costs, sorted(others), taught, ablation):
        for seed, cell in product(SEEDS, cells):
            yield Run(*cell, seed)
    for seed, cell in product(SEEDS[:2], product(LATE | AFTER_A_THIRD, (43, 29))):
        yield Run("headline", "sst2", *cell, seed)
    for kept in BUDGETS:  # in one epoch gates close as late as they can
        yield Run("joint", "sst2", *AT_ONCE, kept, SEEDS[0])
    searched = [("headline", "sst2", SEARCHED, kept) for kept in (43, 29)]
    again = [("headline", "sst2", *cell) for cell in [(DENSE, 72), *product((ONE_SHOT,), (43, 29))]]
    again += [("joint", "snli", DENSE, 72), *(("pipelined", "snli", *cell) for cell in product(CLOSE, (18, 9)))]
    for seeds, cells in ((SEEDS, searched), (MORE_SEEDS, again + searched)):
        for seed, cell in product(seeds, cells):
            yield Run(*cell, seed)


@cache
def cached_task(name: str, limit: int | None) -> Task:
    """Loads a task once per process."""
    return load_task(name, limit=limit)


def perform(run: Run, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Trains and scores one run; a dense one of the joint group leaves its model for the pipelined ones."""
    task = cached_task(run.task, 64 if smoke else None)
    recipe = {"headline": HEADLINE_RECIPE, "joint": JOINT_RECIPE, "pipelined": PIPELINED_RECIPE}[run.group]
    recipe = replace(recipe, max_steps=4) if smoke else recipe
    callback, model, distillation = None, None, None
    source = source_of(run)
    if source is not None:
        model = AutoModelForSequenceClassification.from_pretrained(work / key_of(source))
    if run.method == TEACHER and model is not None:
        model, distillation = None, Distillation(model)
    if run.method == SECOND_ORDER:
        callback = HeadPruneCallback(second_order=SecondOrder(kept_heads=run.kept_heads), search=None, latency=None)
    elif run.method not in (DENSE, ONE_SHOT, SEARCHED):
        mode: Mode = "pipelined" if run.group == "pipelined" else "joint"
        methods = PIPELINED if mode == "pipelined" else JOINT | ABLATION | {TEACHER: ESTIMATORS["ste"]}
        gates = SubsetGates(kept_heads=run.kept_heads, mode=mode, **with_tuning(methods[run.method], GateTuning))
        callback = HeadPruneCallback(gates=gates, search=None, distillation=distillation, latency=None)
    trainer = build_trainer(task, recipe, seed=run.seed, callback=callback, model=model)
    if run.method == ONE_SHOT:
        return cut_at_once(run, trainer, task)
    if run.method == SEARCHED:
        return cut_by_search(run, trainer, task, work)
    result: dict[str, Any] = {**train_and_score(trainer, task), "steps": trainer.state.global_step}
    if run.method == DENSE:
        trainer.save_model(str(work / key_of(run)))
    else:
        result["heads_per_layer"] = [len(kept) for kept in callback.plan.kept_heads.values()]  # type: ignore[union-attr]
    return result


def cut_at_once(run: Run, trainer: Trainer, task: Task) -> dict[str, Any]:
    """Cuts by second-order costs on training examples, without any training, and scores."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    settings = SecondOrder(kept_heads=run.kept_heads, tuning=SecondOrderTuning(scoring_examples=1024, seed=run.seed))
    found = second_order_plan(model, task.train, settings)
    prune_model_(model, found)
    return {**score(trainer, task), "heads_per_layer": [len(kept) for kept in found.plan.kept_heads.values()]}


def cut_by_search(run: Run, trainer: Trainer, task: Task, work: Path) -> dict[str, Any]:
    """Searches on dev without any training, cuts and scores.

    Of the plans on the way to what the search found, on which the heads that cost least leave first, the one that keeps
    as many heads as the run is cut: a rule that looks at dev alone. Both budgets share a search by its journal.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    found = search_plan(
        model,
        task.dev,
        search=replace(SEARCH, seed=run.seed),
        calibration=some_of(task.train, run.seed),
        data_collator=trainer.data_collator,
        journal=work / f"{key_of(replace(run, kept_heads=0))}.jsonl",
        progress=False,
    )
    plans = plans_between(PruningPlan.of(model), found.plan, found.refit)
    plan = next((plan for plan in plans if plan.num_removed_heads == HEADS - run.kept_heads), None)
    if plan is None:
        raise SystemExit(f"{key_of(run)}: the search removed no more than {found.plan.num_removed_heads} heads.")
    prune_model_(model, RefittedPlan(plan, found.refit))
    source: Any = source_of(run)
    return {
        **score(trainer, task),
        "dense_test": RunQueue((source,), work, RESULT).result_of(source)["test"],  # of this very model
        "heads_per_layer": [len(heads) for heads in plan.kept_heads.values()],
        "evaluations": found.evaluations,
    }


def source_of(run: Run) -> Run | None:
    """Returns the dense run whose model a run starts from or learns from."""
    if run.group == "pipelined":
        return replace(run, group="joint", method=DENSE, kept_heads=72)
    return replace(run, method=DENSE, kept_heads=72) if run.method in (TEACHER, ONE_SHOT, SEARCHED) else None


def queue(work: Path, *, smoke: bool, only: str | None, methods: list[str] | None, seeds: list[int]) -> RunQueue[Run]:
    """Builds the queue of a group, of some methods and seeds, or of a smoke run, which knows no finished ones."""
    runs = [run for run in all_runs() if only in (None, run.group) and (methods is None or run.method in methods)]
    runs = [run for run in runs if run.seed in seeds]
    if smoke:
        chosen = {"headline": {DENSE}, "joint": {DENSE, "sigmoid"}, "pipelined": {"dsp"}}
        runs = [r for r in runs if r.seed == 0 and r.task == "sst2" and r.method in chosen[r.group]][:6]
        runs = [r for r in runs if r.group != "headline"] + [Run("pipelined", "sst2", "dsp", 9, 0)]
    return RunQueue(tuple(runs), work, Path("no such file") if smoke else RESULT)


def model_of(run: Run, work: Path) -> Path | None:
    """Returns where a dense run leaves its model."""
    return work / key_of(run) if run.method == DENSE else None


def collect(work: Path) -> dict[str, Any]:
    """Reads all finished runs and summarises them: mean and spread over seeds."""
    waiting = RunQueue(tuple(all_runs()), work, RESULT)
    fields = (*Run.__dataclass_fields__, "dev", "test", "dense_test", "steps", "train_seconds", "heads_per_layer")
    finished = [{name: result[name] for name in fields if name in result} for result in waiting.finished()]
    dense = {run["seed"]: run["test"] for run in finished if (run["group"], run["method"]) == ("headline", DENSE)}
    compared = [with_drop(run, dense) for run in finished]
    rows = summary(compared, ("group", "task", "method", "kept_heads"), ("dev", "test", "drop"))
    return {"missing": len(waiting.runs) - len(finished), "summary": rows, "runs": finished}


def with_drop(run: dict[str, Any], dense: dict[int, float]) -> dict[str, Any]:
    """Adds the drop of test accuracy to a run of the headline.

    It is compared with the dense model that it started from, if it says so, else with that of the same seed.
    """
    if run["group"] != "headline" or run["method"] == DENSE or run["seed"] not in dense:
        return run
    return {**run, "drop": run.get("dense_test", dense[run["seed"]]) - run["test"]}


def main() -> None:
    """Works through the queue, or collects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/gates_accuracy"), help="cache of finished runs")
    parser.add_argument("--only", choices=("headline", "joint", "pipelined"))
    parser.add_argument("--methods", nargs="+", help="of these methods alone, such as 'second order'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[*SEEDS, *MORE_SEEDS], help="of these seeds alone")
    parser.add_argument("--collect", action="store_true", help="summarise what is finished")
    parser.add_argument("--smoke", action="store_true", help="four steps of a few runs on 64 rows")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if not options.collect:
        chosen = {"only": options.only, "methods": options.methods, "seeds": options.seeds}
        waiting = queue(options.work, smoke=options.smoke, **chosen)
        waiting.work_through(
            partial(perform, work=options.work, smoke=options.smoke),
            source_of=source_of,
            model_of=partial(model_of, work=options.work),
        )
    content = collect(options.work)
    print(json.dumps([{k: row[k] for k in ("group", "task", "method", "kept_heads")} for row in content["summary"]]))
    if options.collect and not options.smoke:
        write_json(RESULT, {**environment(), "seeds": [*SEEDS, *MORE_SEEDS], **content})


if __name__ == "__main__":
    main()
