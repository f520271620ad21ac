"""Whether a speed-up that was asked for is the one that is measured, and what it leaves beside whole layers dropped.

The model is one of `benchmarks.default_run`, on sst2. Some of its layers are dropped, and it is measured in turns with
the whole one; `plan_for_budget(speedup=, latency=)` is then asked for that very speed-up. What it returns is cut, and
measured anew in turns with the whole model.

Run: OMP_NUM_THREADS=1 python -m benchmarks.measured_speed [--work FOLDER] [--smoke]
"""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.default_run import plain_run, trained
from benchmarks.plain_models import parsed, parser_for
from benchmarks.results_file import RESULTS, environment, write_json
from benchmarks.tasks import load_task
from hf_headprune import LatencySettings, anatomy_of, linear_density, measure_latency, plan_for_budget
from hf_headprune.pipeline.holdout import pruned_copy

RESULT = RESULTS / "measured_speed.json"
BATCHES = ((1, 128), (8, 128))
LAYERS = (4, 3, 2)
EXAMPLES = 256  # that the costs are computed on: what is asked here is how fast a plan is


def fewer_layers(model: Any, count: int) -> Any:
    """Drops the last layers of a BERT, in place; which ones makes no difference to its speed."""
    model.bert.encoder.layer = nn.ModuleList(list(model.bert.encoder.layer)[:count])
    model.config.num_hidden_layers = count
    return model


def speed_up(dense: Any, other: Any, settings: LatencySettings) -> float:
    """Measures how many times faster a model is."""
    found = measure_latency(dense, other, settings)
    return found.before.median_ms / found.after.median_ms


def main() -> None:
    """Measures all batches and numbers of layers, and writes the result."""
    options = parsed(parser_for(__doc__ or "", ("sst2",), (0,)))
    task = load_task("sst2", limit=400 if options.smoke else None)
    plain_run(task, 0, options.work, smoke=options.smoke)
    model, rows = trained(task, 0, options.work).eval(), []
    some = task.train.shuffle(seed=0).select(range(32 if options.smoke else EXAMPLES))
    for batch_size, seq_len in ((2, 16),) if options.smoke else BATCHES:
        settings = LatencySettings(batch_size, seq_len, runs=5 if options.smoke else 40, threads=1)
        for layers in LAYERS[:1] if options.smoke else LAYERS:
            wanted = speed_up(model, fewer_layers(trained(task, 0, options.work).eval(), layers), settings)
            found = plan_for_budget(model, some, speedup=max(wanted, 1.05), latency=settings)
            row = {
                "batch_size": batch_size,
                "seq_len": seq_len,
                "layers": layers,
                "asked": wanted,
                "reached": speed_up(model, pruned_copy(model, found), settings),
                "weights_of_layers": layers / len(model.bert.encoder.layer),
                "weights": linear_density(found.plan, anatomy_of(model)),
            }
            rows.append(row)
            print(" ".join(f"{key}={value:.4g}" for key, value in row.items()), flush=True)
    if not options.smoke:
        write_json(RESULT, {**environment(), "seed": 0, "missing": 0, "results": rows})


if __name__ == "__main__":
    main()
