"""What each shortcut of the search earns: the same whole A* search with one of them off.

MiniLM, fine-tuned on sst2, is searched over heads and FFN units with a refit, as the default does, on a part of dev.
Each row is the same search without one shortcut. The search with all of them is measured first and last, and ratios are
to the mean of the two. Seconds are CPU seconds of the search, without the second moments that the refit needs.

Run: python -m benchmarks.search_ablation [--smoke] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from benchmarks.finetuned import batches_of, fine_tuned, some_of
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.tasks import load_task
from hf_headprune import AStarSearch, PruningPlan, anatomy_of
from hf_headprune.search import plans
from hf_headprune.search.evaluation.closed_units import ClosedUnits
from hf_headprune.search.evaluation.early_stop import EarlyStopper
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.plans import search_over_plans

if TYPE_CHECKING:
    from hf_headprune.search.results import PlanSearchResult

RESULT = RESULTS / "search_ablation.json"
EXAMPLES, EVALUATIONS = 300, 150  # as many as a search has when nothing is said
NOTHING = "nothing"


def never(*_: Any, **__: Any) -> bool:
    """Says no."""
    return False


def switched_off(target: Any, name: str, by: Callable[..., Any] = never) -> Any:
    """Returns what replaces a function of the library for a while."""
    return mock.patch.object(target, name, by)


# For each row what is switched off.
ROWS: dict[str, tuple[Callable[[], Any], ...]] = {
    NOTHING: (),
    "early stop": (lambda: switched_off(EarlyStopper, "_verdict", lambda *_, **__: None),),
    "weight slices": (lambda: switched_off(ClosedUnits, "can_take_out"),),
    "order of the costs": (lambda: switched_off(plans, "has_sensitivities"),),
    f"{NOTHING}, again": (),
}


def searched(model: Any, split: Any, calibration: Any, search: AStarSearch, row: str) -> dict[str, Any]:
    """Runs one search and returns what it took and found."""
    evaluator = ExampleEvaluator(model, batches_of(model, split), calibration=calibration)
    recorded = evaluator.use_refit(PruningPlan.of(model), ffn=True)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(evaluator, "use_refit", return_value=recorded))
        for off in ROWS[row]:
            stack.enter_context(off())
        started = time.process_time()
        found: PlanSearchResult = search_over_plans(anatomy_of(model), evaluator, search)
        seconds = time.process_time() - started
    stopper = evaluator._stopper
    return {
        "off": row,
        "cpu_seconds": seconds,
        "examples": 0 if stopper is None else stopper.examples_seen,
        "gain": found.gain,
        "metric": found.metric,
        "plan": found.plan.to_json(),
    }


def main() -> None:
    """Runs every row and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="where fine-tuned models are kept")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--smoke", action="store_true", help="64 rows, 6 evaluations, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("sst2", limit=64 if options.smoke else None)
    model = fine_tuned(task, 0, options.work, smoke=options.smoke)
    dev = task.dev.select(range(min(len(task.dev), EXAMPLES)))
    calibration = batches_of(model, some_of(task.train, 0))
    search = AStarSearch(max_evaluations=EVALUATIONS)
    if options.smoke:
        search = replace(search, max_evaluations=6)
    found = []
    for row in options.rows:
        found.append(searched(model, dev, calibration, search, row))
        print(f"{row}: {found[-1]['cpu_seconds']:.1f} s, gain {found[-1]['gain']:,.0f}", flush=True)
    whole = [row for row in found if row["off"].startswith(NOTHING)]
    base = sum(row["cpu_seconds"] for row in whole) / max(len(whole), 1)
    plan = found[0]["plan"]
    rows = [
        {
            **row,
            "plan": "same" if row["plan"] == plan else "other",
            "ratio": row["cpu_seconds"] / base if base else None,
        }
        for row in found
    ]
    if not options.smoke:
        settings = {"seed": 0, "examples": len(dev), "evaluations": EVALUATIONS}
        write_json(RESULT, {**environment(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
