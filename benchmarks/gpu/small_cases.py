"""Compares the arithmetic of `benchmarks.gpu.arithmetic` with what small models take on this machine.

Memory of the moments is counted in the tensors themselves; passes are timed in CPU time, so that others on the machine
count little. What the arithmetic must show is that the same rate explains all sizes.

Run: python -m benchmarks.gpu.small_cases [--smoke]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.gpu.arithmetic import GIB, LENGTH, Size
from benchmarks.gpu.costs import rows
from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune import anatomy_of, scores_of
from hf_headprune.refit.moments import record_moments_by_gradient

WIDTHS, LAYERS, BATCH = (128, 256, 384), 2, 16


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="one tiny model, into a scratch file")
    is_smoke = parser.parse_args().smoke
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "results.json") if is_smoke else RESULTS / "gpu_small_cases.json"
        cases = {str(width): case(width, 16 if is_smoke else 32) for width in ((64,) if is_smoke else WIDTHS)}
        shape = {"layers": LAYERS, "length": LENGTH, "batch": BATCH}
        write_json(file, {"environment": environment(), **shape, "cases": cases})
    for width, found in cases.items():
        sys.stdout.write(f"width {width}: {found}\n")


def case(width: int, count: int) -> dict[str, float]:
    """Returns the memory of moments, measured and by arithmetic, and the rate of the passes in GFLOP/s."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=LAYERS, **sizes)).eval()
    size = Size("BERT", 0, LAYERS, width, width, 4 * width)
    examples, tokens = rows(count, 0), count * LENGTH
    recorded: list[Any] = []
    backward = _cpu_seconds(lambda: recorded.append(_moments(model, examples)))
    forward = _cpu_seconds(lambda: scores_of(model, examples))
    return {
        "moments_mib": round(sum(_bytes(each) for each in recorded[-1].values()) / 2**20, 2),
        "moments_mib_by_arithmetic": round(size.moments_gib * GIB / 2**20, 2),
        "gflops_forward": round(2 * size.linear_weights * tokens / forward / 1e9, 1),
        "gflops_forward_and_backward": round(2 * size.linear_weights * 3 * tokens / backward / 1e9, 1),
    }


def _moments(model: Any, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Records moments of the losses of all examples, as removal costs need them."""
    batches = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
    losses = (
        model(**{name: torch.tensor([row[name] for row in batch]) for name in batch[0]}).loss * len(batch)
        for batch in batches
    )
    return record_moments_by_gradient(model, anatomy_of(model).sites, losses)


def _bytes(moments: Any) -> int:
    """Returns what the moments of one site hold."""
    held = [*moments.inputs.blocks, *([] if moments.sensitivity is None else [moments.sensitivity])]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _cpu_seconds(run: Callable[[], Any]) -> float:
    """Returns the CPU time of the second of two runs."""
    run()
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()
