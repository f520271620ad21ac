"""What each way to search finds with equally many evaluations: what is removed within 1 % on dev, and the drop on test.

MiniLM, fine-tuned on sst2 and on snli with three seeds, is searched without retraining: on dev by A*, greedy backward
elimination, a beam, the orders of gradient and of Fisher importance, and random orders, with 100, 300 and 1000
evaluations each. The test split is looked at once, with the plan found. What is removed most of is heads; and, on sst2
with 100 and 300 evaluations, parameters, of heads and chunks of 128 FFN units together.

Every search keeps a journal in `--work`, so that a larger budget goes on from a smaller one and a killed benchmark from
where it was.

Run: python -m benchmarks.search_quality [--smoke] [--work FOLDER] [--tasks sst2] [--seeds 0] [--budgets 100]
     [--units heads]
     python -m benchmarks.search_quality --collect
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.finetuned import evaluator_on, fine_tuned
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.run_queue import RunQueue, key_of
from benchmarks.search_baselines import at_random, beam, greedy, in_order, loss_effects
from benchmarks.tasks import SEARCH_EXAMPLES, load_task
from hf_headprune import AStarSearch, PruningPlan, anatomy_of, linear_density
from hf_headprune.search.astar import search
from hf_headprune.search.plans import order_by_costs, search_over_plans
from hf_headprune.search.settings import SearchTuning
from hf_headprune.search.units import gains_of, units_of_search

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from benchmarks.tasks import Task
    from hf_headprune.search.evaluation.evaluator import ExampleEvaluator

RESULT = RESULTS / "search_quality.json"
TASKS = ("sst2", "snli")
SEEDS = (0, 1, 2)
BUDGETS = (100, 300, 1000)
STRATEGIES: dict[str, Any] = {
    "A*": search,
    "greedy": greedy,
    "beam": beam,
    "gradient": in_order,
    "Fisher": in_order,
    "random": at_random,
}
HEADS, BOTH = "heads", "heads and FFN"
CELLS_OF_BOTH = ("sst2",), (100, 300), ("A*", "greedy", "beam", "Fisher", "random")
MAX_DROP = 0.01
SMOKE_BUDGETS = (4, 8)


@dataclass(frozen=True)
class Run:
    """One search of one fine-tuned model."""

    task: str
    seed: int
    strategy: str
    budget: int
    units: str = HEADS


def all_runs(
    tasks: Container[str] = TASKS,
    seeds: Iterable[int] = SEEDS,
    budgets: Container[int] = BUDGETS,
    units: Container[str] = (HEADS, BOTH),
) -> tuple[Run, ...]:
    """Returns every run, seed by seed; a larger budget comes after a smaller one, whose journal it goes on with."""
    cells = [*product(TASKS, BUDGETS, STRATEGIES, [HEADS]), *product(*CELLS_OF_BOTH, [BOTH])]
    return tuple(
        Run(task, seed, strategy, budget, kind)
        for seed in seeds
        for task, budget, strategy, kind in cells
        if task in tasks and budget in budgets and kind in units
    )


def follows(run: Run, work: Path, waiting: RunQueue[Run]) -> bool:
    """Tells whether no other process writes the journal of a run: those with smaller budgets are finished."""
    budgets = {other.budget for other in waiting.runs if other.budget < run.budget and other.units == run.units}
    smaller = [replace(run, budget=budget) for budget in budgets]
    done = waiting.published()
    return all(key_of(other) in done or (work / f"{key_of(other)}.json").exists() for other in smaller)


@cache
def cached_task(name: str, limit: int | None) -> Task:
    """Loads a task once per process."""
    return load_task(name, limit=limit)


def order_of(run: Run, evaluator: ExampleEvaluator, model: Any) -> Any:
    """Returns the order that a baseline follows, from the gate gradient of each example's loss, per parameter.

    Source: gradient: Michel et al., arXiv 1905.10650, equation 2; Fisher: Kwon et al., arXiv 2204.09656, equation 6.
    """
    if run.strategy not in ("gradient", "Fisher"):
        return None
    full, anatomy, settings = PruningPlan.of(model), anatomy_of(model), settings_of(run)
    recorded = evaluator.use_refit(full, ffn=run.units == BOTH, apply=False)
    units = units_of_search(anatomy, full, settings, order_by_costs(recorded, full, settings))
    effects = loss_effects(model, evaluator, units)
    power = np.abs(effects) if run.strategy == "gradient" else np.square(effects)
    ranked = np.argsort(power.mean(axis=1) / gains_of(anatomy, units, settings)[0], kind="stable")
    return [(part.site, part.indices) for (part,) in (units[number] for number in ranked)]


@lru_cache(maxsize=1)
def searched(name: str, seed: int, work: Path, *, smoke: bool) -> tuple[Any, ExampleEvaluator, float]:
    """Returns a fine-tuned model, its test split, and its accuracy there: the same for every search of the model."""
    task = cached_task(name, 32 if smoke else None)
    model = fine_tuned(task, seed, work, smoke=smoke)
    on_test = evaluator_on(model, task.test)
    return model, on_test, on_test(PruningPlan.of(model)).metric


def settings_of(run: Run) -> AStarSearch:
    """Returns what is searched."""
    settings = AStarSearch(
        max_drop=MAX_DROP, max_evaluations=run.budget, seed=run.seed, tuning=SearchTuning(refit=False)
    )
    return settings if run.units == BOTH else replace(settings, units=("heads",), objective="heads")


def perform(run: Run, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Runs one search on dev and measures its plan on test."""
    model, on_test, dense = searched(run.task, run.seed, work, smoke=smoke)
    dev = cached_task(run.task, 32 if smoke else None).dev
    evaluator = evaluator_on(model, dev.select(range(min(len(dev), SEARCH_EXAMPLES))))
    started = time.process_time()
    found = search_over_plans(
        anatomy_of(model),
        evaluator,
        settings_of(run),
        order=order_of(run, evaluator, model),
        journal=work / f"{key_of(replace(run, budget=0))}.jsonl",
        fingerprint=evaluator.fingerprint(),
        algorithm=STRATEGIES[run.strategy],
    )
    seconds = time.process_time() - started
    pruned = on_test(found.plan).metric
    anatomy = anatomy_of(model)
    return {
        "evaluations": found.evaluations,
        "removed": found.gain,
        "density": linear_density(found.plan, anatomy),
        "dev_drop": found.drop,
        "test_drop": dense - pruned,
        "dev": 100 * found.metric,
        "test": 100 * pruned,
        "dense_test": dense,
        "cpu_seconds_beyond_the_journal": seconds,
    }


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    rows = []
    for units, task, budget, name in product((HEADS, BOTH), TASKS, BUDGETS, STRATEGIES):
        wanted = (units, task, budget, name)
        cell = [r for r in results if (r.get("units", HEADS), r["task"], r["budget"], r["strategy"]) == wanted]
        if cell:
            row = {"units": units, "task": task, "budget": budget, "strategy": name, "seeds": [r["seed"] for r in cell]}
            for field in ("removed", "evaluations", "dev_drop", "test_drop", "density"):
                values = [r[field] for r in cell if field in r]
                if values:
                    row[field] = float(np.mean(values))
            rows.append(row)
    return rows


def main() -> None:
    """Runs what is missing, then summarises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="models, journals and finished runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--budgets", nargs="+", type=int, choices=BUDGETS, default=BUDGETS, help="numbers of evaluations"
    )
    parser.add_argument("--units", nargs="+", choices=(HEADS, BOTH), default=(HEADS, BOTH))
    parser.add_argument("--collect", action="store_true", help="only summarise what is finished")
    parser.add_argument("--smoke", action="store_true", help="32 rows of sst2, two small budgets")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    runs = all_runs(options.tasks, options.seeds, options.budgets, options.units)
    if not runs:
        parser.error(
            "none of the runs is of these tasks, seeds, budgets and units: FFN units are searched on sst2 alone"
        )
    if options.smoke:  # one task and seed, 4 evaluations in place of 100, and 8 for the one that goes on from there
        few = dict(zip(BUDGETS, SMOKE_BUDGETS, strict=False))
        asked = all_runs(TASKS[:1], SEEDS[:1], few)
        asked = tuple(run for run in asked if run.budget == BUDGETS[0] or run.strategy == "A*")
        runs = tuple(replace(run, budget=few[run.budget]) for run in asked)
    waiting = RunQueue(runs, options.work, Path("no such file") if options.smoke else RESULT)
    if not options.collect:
        can_start = partial(follows, work=options.work, waiting=waiting)
        waiting.work_through(partial(perform, work=options.work, smoke=options.smoke), can_start=can_start)
    elif not options.smoke:
        waiting = RunQueue(all_runs(), options.work, RESULT)
        found = waiting.finished()
        settings = {"seeds": SEEDS, "max_drop": MAX_DROP, "missing": len(waiting.runs) - len(found)}
        write_json(RESULT, {**environment(), **settings, "summary": summary(found), "runs": found})


if __name__ == "__main__":
    main()
