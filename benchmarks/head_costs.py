"""What pruning heads alone can save of BERT-base: counted, not measured, from the anatomy of the model.

Run: python -m benchmarks.head_costs [--smoke]
"""

from __future__ import annotations

import argparse

import torch
from transformers import BertConfig, BertModel

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune import PruningPlan, anatomy_of, cost_of

KEPT_PER_LAYER = (9, 6, 3, 1, 0)
LENGTH = 128


def main() -> None:
    """Counts and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="no result file")
    options = parser.parse_args()
    with torch.device("meta"):
        anatomy = anatomy_of(BertModel(BertConfig()))
    full = PruningPlan.full(anatomy)
    dense = cost_of(full, anatomy, seq_len=LENGTH)
    results = []
    for kept in KEPT_PER_LAYER:
        cost = cost_of(full.replace(kept_heads=dict.fromkeys(full.num_heads, range(kept))), anatomy, seq_len=LENGTH)
        row = {"kept_heads": kept * len(full.num_heads), "parameters_removed": 1 - cost.parameters / dense.parameters}
        results.append({**row, "speed_up_bound": dense.macs / cost.macs})
        print(f"{row['kept_heads']:3} heads kept: {row['parameters_removed']:.1%} of the parameters go, ", end="")
        print(f"at most {results[-1]['speed_up_bound']:.2f}x faster at length {LENGTH}")
    if not options.smoke:
        write_json(RESULTS / "head_costs.json", {**environment(), "length": LENGTH, "results": results})


if __name__ == "__main__":
    main()
