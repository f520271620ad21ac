"""Peak memory of training with pruning over that of the same plain Trainer, on BERT-base shapes.

Each measurement is a fresh process that takes a few steps; its peak resident memory is what the system counts, less
what the process held before the model existed. Measurements of all parts alternate; reported are the medians.

Run: python -m benchmarks.memory_cost [--smoke] [--parts "second order"]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from benchmarks.results_file import RESULTS, environment, read_json, write_json
from benchmarks.step_cost import bert_base, build
from benchmarks.tasks import minilm
from hf_headprune import BlockMovement, Distillation, HeadPruneCallback, SecondOrder, SubsetGates
from hf_headprune.learn.gates.settings import GateTuning
from hf_headprune.refit.settings import SecondOrderTuning

SHAPES = {"BERT-base shapes": (8, 128), "MiniLM": (2, 8)}
STEPS = 5
REPETITIONS = 3
EARLY = {"warmup_ratio": 0.0, "freeze_at": 1.0}  # everything learns from the first step to the last
PARTS = ("plain", "gates", "hybrid", "32 x 32 blocks and units", "second order", "hybrid and teacher")


def callback_of(part: str, name: str) -> list[HeadPruneCallback]:
    """Builds the callback of one part of the comparison."""
    if part == "second order":
        costs = SecondOrder(density=0.5, freeze_at=0.5, tuning=SecondOrderTuning(scoring_examples=16))
        return [HeadPruneCallback(second_order=costs, search=None)]
    gates = SubsetGates(warmup_ratio=0.0, freeze_at=1.0, tuning=GateTuning(scoring_examples=8))
    units = BlockMovement.ffn_units(0.5, **EARLY)
    if part == "plain":
        return []
    if part == "gates":
        return [HeadPruneCallback(gates=gates)]
    if part == "hybrid":
        return [HeadPruneCallback(gates=gates, movement=units)]
    if part == "hybrid and teacher":
        return [HeadPruneCallback(gates=gates, movement=units, distillation=Distillation(model_of(name)))]
    return [HeadPruneCallback(movement=BlockMovement(**EARLY))]


def model_of(name: str) -> torch.nn.Module:
    """Builds a model for two labels."""
    return minilm(2) if name == "MiniLM" else bert_base(2)


def peak_of(part: str, name: str) -> float:
    """Trains a few steps in this process and returns the growth of its peak resident memory, in MB."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    callbacks = callback_of(part, name)
    trainer = build(model_of(name), SHAPES[name], STEPS, callbacks, bf16=False)
    for callback in callbacks:
        callback.on_train_end = lambda *a, **k: None  # only training counts, not the cut
    trainer.train()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000


def measured_in_fork(part: str, name: str) -> float:
    """Measures one part in a copy of this process, which saves the imports: for a smoke run, less exact."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(quiet_peak_of, (part, name))


def quiet_peak_of(part: str, name: str) -> float:
    """Measures as `peak_of` does, without what the Trainer prints."""
    with redirect_stdout(StringIO()):
        return peak_of(part, name)


def measured(part: str, name: str) -> float:
    """Measures one part in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory_cost", "--part", part, "--model", name]
    environment_ = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment_)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures all parts and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one small shape, once")
    parser.add_argument("--parts", nargs="+", choices=PARTS[1:], default=PARTS[1:], help="measure these alone anew")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=tuple(SHAPES), default="BERT-base shapes", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.part:
        print(peak_of(options.part, options.model))
        return
    torch.set_num_threads(1)  # as the fresh processes do; the result file says so
    name = "MiniLM" if options.smoke else options.model
    peaks: dict[str, list[float]] = {part: [] for part in ("plain", *options.parts)}
    for _ in range(1 if options.smoke else REPETITIONS):
        for part in peaks:
            peaks[part].append((measured_in_fork if options.smoke else measured)(part, name))
    plain = peaks["plain"]
    results = [
        {"part": part, "megabytes": values, "plain": plain, "ratio": median(values) / median(plain)}
        for part, values in peaks.items()
    ]
    for row in results:
        print(f"{row['part']:28} {row['ratio']:.3f}", flush=True)
    out = options.out or (None if options.smoke else RESULTS / "memory_cost.json")
    if out is not None:
        kept = [row for row in read_json(out).get("results", []) if row["part"] not in peaks]
        results = sorted(kept + results, key=lambda row: PARTS.index(row["part"]))
        shape = {"model": name, "shape": SHAPES[name], "steps": STEPS, "seed": 0}
        write_json(out, {**environment(), **shape, "results": results})


if __name__ == "__main__":
    main()
