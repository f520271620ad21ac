"""What each way to search finds with equally many evaluations: heads removed within 1 % on dev, and the drop on test.

MiniLM, fine-tuned on sst2 and on snli with three seeds, is searched without retraining: on dev by A*, greedy backward
elimination, a beam, the orders of gradient and of Fisher importance, and random orders, with 100, 300 and 1000
evaluations each. The test split is looked at once, with the plan found.

Every search keeps a journal in `--work`, so that a larger budget goes on from a smaller one and a killed benchmark from
where it was.

Run: python -m benchmarks.search_quality [--smoke] [--work FOLDER] [--tasks sst2] [--collect]
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.finetuned import evaluator_on, fine_tuned
from benchmarks.results_file import RESULTS, environment, read_json, write_json
from benchmarks.tasks import SEARCH_EXAMPLES, load_task
from hf_headprune import AStarSearch, PruningPlan, anatomy_of
from hf_headprune.search.astar import search
from hf_headprune.search.baselines import at_random, beam, greedy, in_order
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.units import units_of_search

if TYPE_CHECKING:
    from benchmarks.tasks import Task
    from hf_headprune.search.evaluator import ExampleEvaluator

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
MAX_DROP = 0.01


def importance(name: str, evaluator: ExampleEvaluator, model: Any) -> np.ndarray | None:
    """Returns the scores whose order a baseline follows, from the gate gradient of each example's loss.

    Source: gradient: Michel et al., arXiv 1905.10650, equation 2; Fisher: Kwon et al., arXiv 2204.09656, equation 6.
    """
    if name not in ("gradient", "Fisher"):
        return None
    full = PruningPlan.of(model)
    effects = evaluator.unit_effects(full, units_of_search(anatomy_of(model), full, AStarSearch(), None), of="loss")
    return np.abs(effects).mean(axis=1) if name == "gradient" else np.square(effects).mean(axis=1)


def perform(task: Task, seed: int, name: str, budget: int, work: Path, *, smoke: bool) -> dict[str, Any]:
    """Runs one search on dev and measures its plan on test."""
    model = fine_tuned(task, seed, work, smoke=smoke)
    dev = task.dev.select(range(min(len(task.dev), SEARCH_EXAMPLES)))
    evaluator, on_test = evaluator_on(model, dev), evaluator_on(model, task.test)
    started = time.process_time()
    run = partial(
        search_over_plans,
        anatomy_of(model),
        evaluator,
        AStarSearch(max_drop=MAX_DROP, max_evaluations=budget, seed=seed),
        head_scores=importance(name, evaluator, model),
        journal=work / f"{task.name}-{seed}-{name.replace('*', 'star')}.jsonl",
        fingerprint=evaluator.fingerprint(),
    )
    found = run(strategy=STRATEGIES[name])
    seconds = time.process_time() - started
    dense, pruned = on_test(found.start).metric, on_test(found.plan).metric
    return {
        "task": task.name,
        "seed": seed,
        "strategy": name,
        "budget": budget,
        "evaluations": found.evaluations,
        "removed": found.gain,
        "dev_drop": found.drop,
        "test_drop": dense - pruned,
        "dense_test": dense,
        "cpu_seconds_beyond_the_journal": seconds,
    }


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    rows = []
    for task, budget, name in product(TASKS, BUDGETS, STRATEGIES):
        cell = [r for r in results if (r["task"], r["budget"], r["strategy"]) == (task, budget, name)]
        if cell:
            row = {"task": task, "budget": budget, "strategy": name, "seeds": [r["seed"] for r in cell]}
            for field in ("removed", "evaluations", "dev_drop", "test_drop"):
                row[field] = float(np.mean([r[field] for r in cell]))
            rows.append(row)
    return rows


def main() -> None:
    """Runs what is missing, then summarises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="models, journals and finished runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--collect", action="store_true", help="only summarise what is finished")
    parser.add_argument("--smoke", action="store_true", help="32 rows of sst2, two small budgets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks, seeds, budgets = (("sst2",), (0,), (4, 8)) if options.smoke else (options.tasks, SEEDS, BUDGETS)
    results = []
    for seed, name in product(seeds, tasks):
        task = load_task(name, limit=32 if options.smoke else None)
        for budget, strategy in product(budgets, STRATEGIES):
            path = options.work / f"{name}-{seed}-{strategy.replace('*', 'star')}-{budget}.json"
            if not path.exists() and not options.collect:
                write_json(path, perform(task, seed, strategy, budget, options.work, smoke=options.smoke))
                result = read_json(path)
                print(name, seed, strategy, budget, f"removed {result['removed']:g}", flush=True)
            results += [read_json(path)] if path.exists() else []
    if not options.smoke:
        missing = len(TASKS) * len(SEEDS) * len(BUDGETS) * len(STRATEGIES) - len(results)
        settings = {"seeds": SEEDS, "max_drop": MAX_DROP, "missing": missing}
        write_json(RESULT, {**environment(), **settings, "summary": summary(results), "runs": results})


if __name__ == "__main__":
    main()
