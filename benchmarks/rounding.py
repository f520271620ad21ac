"""How far bf16 moves the answers of a model, which is what the search's bf16 twin relies on.

MiniLM, fine-tuned on sst2 and on snli, loses heads in the order of gradient importance, and FFN units by a random
choice of a third besides; all dev examples are answered by each of these models and by its copy in bf16, in the same
batches. The search looks again at every answer whose distance to the next one is below a band in bf16, which is a share
of the size of margins. So what counts is: errors within the band, where bf16 is trusted as long as none exceeds it; and
answers beyond the band that are turned nevertheless, which the search could not see.

Run: python -m benchmarks.rounding [--seed 0] [--smoke] [--work FOLDER]
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.finetuned import batches_of, fine_tuned, plans_by_gradient
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.tasks import load_task
from hf_headprune import PruningPlan, masked
from hf_headprune.masking import evaluating
from hf_headprune.search.evaluation.screening import half_precision_twin, rough_band
from hf_headprune.tasks.answers import Answers
from hf_headprune.tasks.classification import ClassScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULT = RESULTS / "rounding.json"
TASKS = ("sst2", "snli")
REMOVED = (0, 12, 24, 36, 48, 60)


def without_ffn_units(plan: PruningPlan, share: float, seed: int) -> PruningPlan:
    """Returns a plan without a share of its FFN units, drawn at random."""
    draws = np.random.default_rng(seed)
    kept = {
        site: tuple(sorted(map(int, draws.permutation(units)[: round(len(units) * (1 - share))])))
        for site, units in plan.kept_ffn.items()
    }
    return plan.replace(kept_ffn=kept)


def answers(model: Any, plan: PruningPlan, batches: Sequence[dict[str, torch.Tensor]], scorer: ClassScorer) -> Answers:
    """Returns what a plan of a model answers to all examples."""
    with ExitStack() as stack:
        stack.enter_context(masked(model, plan))
        stack.enter_context(evaluating(model))
        return Answers.joined([scorer.answers(model(**scorer.inputs(batch)), batch) for batch in batches])


def compared(own: Answers, rounded: Answers, band: float) -> dict[str, float]:
    """Compares answers in bf16, doubted within a band, with those of the model itself."""
    error = np.abs(own.margins - rounded.margins)
    near = rounded.gaps < band
    turned = own.scores != rounded.scores
    return {
        "examples": len(error),
        "band": band,
        "accuracy": float(own.scores.mean()),
        "median_error": float(np.median(error)),
        "largest_error": float(error.max()),
        "looked_at_again": float(near.mean()),
        "largest_error_of_those": float(error[near].max(initial=0.0)),
        "turned": int(turned.sum()),
        "turned_unseen": int((turned & ~near).sum()),
        "largest_gap_turned": float(rounded.gaps[turned].max(initial=0.0)),
    }


def main() -> None:
    """Compares all plans of both tasks and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="fine-tuned models")
    parser.add_argument("--seed", type=int, default=0, help="of the models' fine-tuning, and of the choice of units")
    parser.add_argument("--smoke", action="store_true", help="sst2, 64 examples, two plans, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in TASKS[:1] if options.smoke else TASKS:
        task = load_task(name, limit=64 if options.smoke else None)
        model = fine_tuned(task, options.seed, options.work, smoke=options.smoke)
        twin, batches = half_precision_twin(model), batches_of(model, task.dev)
        scorer, removed = ClassScorer(model.config.num_labels), REMOVED[:2] if options.smoke else REMOVED
        for heads, plan in zip(removed, plans_by_gradient(model, task.dev, removed), strict=True):
            for ffn, cut in ((0.0, plan), (1 / 3, without_ffn_units(plan, 1 / 3, options.seed))):
                own, rounded = (answers(each, cut, batches, scorer) for each in (model, twin))
                row = compared(own, rounded, rough_band(scorer, own.margins))
                rows.append({"task": name, "heads_removed": heads, "ffn_removed": ffn, **row})
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if not options.smoke:
        write_json(RESULT, {**environment(), "seed": options.seed, "results": rows})


if __name__ == "__main__":
    main()
