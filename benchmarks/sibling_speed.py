"""What it gains to measure several children of a set in one pass, on the same children one after the other in turns.

MiniLM, fine-tuned on sst2; sets of growing size with seven children each, which remove one head more, asked about as a
search asks. Every number of siblings has an evaluator of its own, so each pays for its parent's hidden states. The
verdicts must be the same, or the benchmark ends with an error. Seconds are CPU seconds on a CPU, else wall seconds.

Run: python -m benchmarks.sibling_speed [--device cuda] [--smoke] [--work FOLDER]
A run on another device than the CPU writes no result file, but prints what it found.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.finetuned import evaluator_on, fine_tuned
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.tasks import load_task
from hf_headprune import PruningPlan
from hf_headprune.search.evaluation.probing import Probing
from hf_headprune.search.problem import Question

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
    from hf_headprune.search.problem import Measurement

SIBLINGS = (1, 2, 4, 7)
CHILDREN = 7
REMOVED = (0, 4, 8, 12, 16, 20, 24, 28)
MAX_DROP = 0.01


def families(model: Any, evaluator: ExampleEvaluator, sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Yields children of random sets of so many removed heads, each with the question of a search."""
    full, rng = PruningPlan.of(model), np.random.default_rng(0)
    heads = [(site, head) for site, count in full.num_heads.items() for head in range(count)]
    floor = evaluator(full).metric - MAX_DROP
    for size in sizes:
        order = [heads[i] for i in rng.permutation(len(heads))]
        base = without(full, order[:size])
        margins = evaluator(base).margins
        question: Any = Question(base, margins, margins, floor)  # type: ignore[arg-type]
        yield [(without(base, [head]), question) for head in order[size : size + CHILDREN]]


def without(plan: PruningPlan, heads: Sequence[tuple[str, int]]) -> PruningPlan:
    """Returns a plan without some heads."""
    gone = set(heads)
    kept = {site: [head for head in kept if (site, head) not in gone] for site, kept in plan.kept_heads.items()}
    return plan.replace(kept_heads=kept)


def measured(evaluator: ExampleEvaluator, family: list[Any], siblings: int) -> tuple[list[Measurement], float]:
    """Returns what a family's children are found to be, so many at once, and the seconds that it took."""
    clock = time.process_time if not torch.cuda.is_initialized() else time.perf_counter
    started = clock()
    found: list[Measurement] = []
    for first in range(0, len(family), siblings):
        found += evaluator.probe_siblings(family[first : first + siblings])
    return found, clock() - started


def check(found: list[Measurement], expected: list[Measurement], floor: float) -> None:
    """Ends the benchmark where a verdict depends on the number of siblings."""
    for one, other in zip(found, expected, strict=True):
        exact = one.kind == other.kind == "exact"
        if (one.metric != other.metric) if exact else ((one.metric < floor) != (other.metric < floor)):
            raise SystemExit(f"Alone a child measures {other.kind} {other.metric}, among siblings {one.metric}.")


def main() -> None:
    """Measures every family with every number of siblings, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="where fine-tuned models are kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="64 rows, two sets, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("sst2", limit=64 if options.smoke else None)
    model = fine_tuned(task, 0, options.work, smoke=options.smoke).to(options.device)
    evaluators = {n: evaluator_on(model, task.dev, probing=Probing(siblings=n)) for n in SIBLINGS}
    seconds: dict[int, list[float]] = {n: [] for n in SIBLINGS}
    sizes = REMOVED[:2] if options.smoke else REMOVED
    for place, family in enumerate(families(model, evaluators[1], sizes)):
        found = {}
        for turn in range(len(SIBLINGS)):
            siblings = SIBLINGS[(place + turn) % len(SIBLINGS)]
            found[siblings], taken = measured(evaluators[siblings], family, siblings)
            seconds[siblings].append(taken)
        for measurements in found.values():
            check(measurements, found[1], family[0][1].floor)
    rows = []
    for siblings in SIBLINGS:
        ratios = np.array(seconds[1]) / np.array(seconds[siblings])
        quartiles = [float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75])]
        rows.append({"siblings": siblings, "seconds": float(np.mean(seconds[siblings])), "ratio": quartiles})
        print(
            f"{siblings} at once: {rows[-1]['seconds']:.2f} s a family, alone / together {quartiles[1]:.2f}", flush=True
        )
    if not options.smoke and options.device == "cpu":
        result = {**environment(), "seed": 0, "examples": len(task.dev), "families": len(sizes), "rows": rows}
        write_json(RESULTS / "sibling_speed.json", result)


if __name__ == "__main__":
    main()
