"""How well a table of measured latencies, block by block, tells what a cut model will take.

A table of MiniLM is measured as `measure_latency_table` does it. Models cut by random plans then run in turns with the
dense one, and what they take is compared with what the table says: the dense model's time less what each block saves.
Of the time, only the quality of the guess is reported: it is what a search with the objective "latency" rests on.

Run: python -m benchmarks.latency_table [--smoke] [--seed 0]
"""

from __future__ import annotations

import argparse
import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.tasks import minilm
from hf_headprune import LatencySettings, PruningPlan, measure_latency, measure_latency_table, prune_model_

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULT = RESULTS / "latency_table.json"
BATCHES = ((1, 128), (8, 128), (8, 32))
PLANS = 8
FFN_STEP = 32


def random_plan(full: PruningPlan, draws: np.random.Generator) -> PruningPlan:
    """Returns a plan that keeps a random share of all heads and FFN units, and in each block more or less than it."""
    share = draws.uniform(0.1, 0.9)

    def some(units: int, step: int) -> range:
        wanted = np.clip(draws.normal(share, 0.2), 0.0, 1.0) * units
        return range(min(units, step * round(wanted / step)))

    return full.replace(
        kept_heads={site: some(units, 1) for site, units in full.num_heads.items()},
        kept_ffn={site: some(units, FFN_STEP) for site, units in full.num_ffn.items()},
    )


def saved_ms(table: Mapping[str, Mapping[int, float]], plan: PruningPlan) -> float:
    """Returns what a table says that a plan saves."""
    kept = {**plan.kept_heads, **plan.kept_ffn}
    return sum(
        max(ms.values()) - float(np.interp(len(kept[site]), list(ms), list(ms.values()))) for site, ms in table.items()
    )


def main() -> None:
    """Measures tables and models, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the plans")
    parser.add_argument("--smoke", action="store_true", help="one batch, two plans, short runs, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = minilm(2).eval()
    full, rows = PruningPlan.of(model), []
    for batch_size, seq_len in BATCHES[-1:] if options.smoke else BATCHES:
        settings = LatencySettings(batch_size=batch_size, seq_len=seq_len, runs=5 if options.smoke else 30, threads=1)
        table = measure_latency_table(model, settings, points=2 if options.smoke else 6, progress=False)
        draws = np.random.default_rng(options.seed)
        for _ in range(2 if options.smoke else PLANS):
            plan = random_plan(full, draws)
            found = measure_latency(model, prune_model_(copy.deepcopy(model), plan), settings)
            dense = found.before.median_ms
            row = {
                "batch_size": batch_size,
                "seq_len": seq_len,
                "kept_heads": plan.num_kept_heads,
                "kept_ffn": plan.num_kept_ffn,
                "dense_ms": dense,
                "measured": found.after.median_ms / dense,
                "predicted": 1 - saved_ms(table, plan) / dense,
            }
            rows.append(row)
            print(" ".join(f"{key}={value:.4g}" for key, value in row.items()), flush=True)
    if not options.smoke:
        write_json(RESULT, {**environment(), "seed": options.seed, "results": rows})


if __name__ == "__main__":
    main()
