"""What it costs to choose and refit without training, and how that grows with layers, width and examples.

BERT shapes with random weights look at random texts of 32 tokens, and are pruned to half of their attention and FFN
weights. *costs* records moments and gradients and orders what may leave; *refit* fits all linear modules in order;
*pass* is one forward and backward pass of training over the same examples. Seconds are of CPU, of one thread, the least
of several turns.

Run: OMP_NUM_THREADS=1 python -m benchmarks.one_shot_cost [--smoke]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune import PruningPlan, SecondOrder
from hf_headprune.refit.choice import choose
from hf_headprune.refit.one_shot import ExampleLosses
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.refit.settings import SecondOrderTuning

RESULT = RESULTS / "one_shot_cost.json"
LENGTH, HEAD = 32, 32
MINILM = (6, 384, 1024)  # layers, width, examples
OTHERS = ((3, 384, 1024), (12, 384, 1024), (6, 192, 1024), (6, 768, 1024), (6, 384, 256), (6, 384, 2048))
TURNS = 2


def measured(layers: int, width: int, examples: int, turns: int) -> dict[str, Any]:
    """Measures one shape."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        intermediate_size=4 * width,
        num_labels=2,
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 1000, (examples, LENGTH)).tolist()
    rows = [{"input_ids": row, "label": number % 2} for number, row in enumerate(ids)]
    settings = SecondOrder(density=0.5, tuning=SecondOrderTuning(scoring_examples=examples))
    full, taken = PruningPlan.of(model), {"pass": [], "costs": [], "refit": []}
    for _ in range(turns):
        losses = ExampleLosses(model, rows, examples, 0)
        started = time.process_time()
        for loss in losses:
            loss.backward()
        model.zero_grad()
        taken["pass"].append(time.process_time() - started)
        started = time.process_time()
        plan, refit = choose(model, settings, full, losses)
        chosen = time.process_time()
        RefitInOrder(refit, plan, full, losses.runs()).fit()
        taken["costs"].append(chosen - started)
        taken["refit"].append(time.process_time() - chosen)
    return {"layers": layers, "width": width, "examples": examples, **{name: min(it) for name, it in taken.items()}}


def main() -> None:
    """Measures all shapes and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one small shape, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in ((2, 64, 64),) if options.smoke else (MINILM, *OTHERS):
        rows.append(measured(*shape, turns=1 if options.smoke else TURNS))
        print(" ".join(f"{name}={value:.4g}" for name, value in rows[-1].items()), flush=True)
    if not options.smoke:
        write_json(RESULT, {**environment(), "seed": 0, "length": LENGTH, "results": rows})


if __name__ == "__main__":
    main()
