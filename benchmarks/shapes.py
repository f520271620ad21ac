"""Speed-up of published pruned shapes on BERT-base, cut, saved, reloaded with AutoModel, beside the bound by MACs.

The shapes are those of the block-pruned models of Lagunas et al. 2021 (arXiv 2109.04838) on SQuAD v1: heads and FFN
units kept per layer; beside each of them the same with its FFN widths rounded up to multiples of 32, as this library
chooses them. Weights are random: speed does not depend on them. Dense and pruned models run in turns in one process;
reported are the ratio of median CPU seconds of the running thread and that of wall seconds, and from a profile the
share of the time that each model spends outside matrix products, which the bound knows nothing of.

Run: python -m benchmarks.shapes [--smoke]
"""

from __future__ import annotations

import argparse
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune import PruningPlan, anatomy_of, cost_of, prune_model_

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[tuple[int, ...], tuple[int, ...]]  # heads and FFN units kept per layer

# By their names in the authors' list.
SHAPES: dict[str, Shape] = {
    "#4": (
        (7, 5, 9, 9, 11, 10, 9, 8, 10, 6, 7, 5),
        (733, 837, 992, 1013, 1053, 986, 739, 552, 309, 136, 110, 316),
    ),
    "#6": ((7, 5, 10, 9, 11, 10, 9, 8, 10, 6, 8, 5), (343, 490, 569, 620, 681, 642, 482, 364, 191, 74, 64, 171)),
    "#7": ((4, 4, 6, 7, 7, 5, 6, 7, 5, 5, 5, 3), (552, 717, 795, 789, 833, 792, 620, 466, 283, 112, 96, 238)),
    "#8": ((4, 4, 6, 7, 7, 5, 6, 7, 6, 5, 5, 3), (268, 386, 455, 465, 543, 484, 370, 293, 172, 66, 57, 130)),
    "#9": ((4, 3, 3, 6, 4, 5, 5, 7, 3, 5, 5, 3), (314, 460, 554, 538, 601, 573, 420, 342, 217, 74, 79, 140)),
    "#10 struct": ((7, 3, 7, 4, 3, 3, 3, 2, 4, 1, 1, 1), (138, 168, 279, 298, 323, 309, 252, 203, 129, 60, 72, 109)),
}
BATCHES = ((1, 128), (8, 128), (2, 384))
MULTIPLE = 32
WARMUP = 2
MATRIX_PRODUCTS = ("mm", "linear", "scaled_dot_product")  # part of the names of torch's operations


def dense_model(*, smoke: bool) -> BertModel:
    """Builds BERT-base with random weights, or for a smoke run a narrow BERT with as many layers and heads."""
    torch.manual_seed(0)
    narrow = {"hidden_size": 96, "vocab_size": 1000} if smoke else {}
    return BertModel(BertConfig(**narrow)).eval()


def batches(*, smoke: bool) -> list[tuple[int, int]]:
    """Returns sizes of batches and lengths of their texts, which are short in a smoke run."""
    return [(batch, length // 16 if smoke else length) for batch, length in BATCHES]


def widths_of(shape: Shape) -> dict[str, Shape]:
    """Returns a shape with its FFN widths as published and rounded up."""
    heads, ffn = shape
    rounded = tuple(-(-units // MULTIPLE) * MULTIPLE for units in ffn)
    return {"as published": shape, f"in {MULTIPLE}s": (heads, rounded)}


def cut_saved_reloaded(shape: Shape, *, smoke: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Cuts a fresh model to a shape, saves and reloads it; returns it with what its file weighs."""
    model = dense_model(smoke=smoke)
    anatomy = anatomy_of(model)
    full = PruningPlan.full(anatomy)
    heads, ffn = (
        {site: range(kept) for site, kept in zip(sites, shape[i], strict=True)}
        for i, sites in enumerate((full.num_heads, full.num_ffn))
    )
    plan = full.replace(kept_heads=heads, kept_ffn=ffn)
    prune_model_(model, plan)
    with tempfile.TemporaryDirectory(prefix="headprune-bench-") as folder:
        model.save_pretrained(folder)
        file = Path(folder, "model.safetensors").read_bytes()
        reloaded = AutoModel.from_pretrained(folder).eval()
    header = 8 + struct.unpack("<Q", file[:8])[0]
    size = {"file_bytes": len(file), "header_bytes": header, "plan_bytes": cost_of(plan, anatomy, seq_len=1).size_bytes}
    if size["file_bytes"] != size["header_bytes"] + size["plan_bytes"]:
        raise SystemExit(f"The saved file is not what the plan says: {size}")
    pooler = model.config.hidden_size**2
    size["macs"] = {
        length: (
            cost_of(full, anatomy, seq_len=length).macs + pooler,
            cost_of(plan, anatomy, seq_len=length).macs + pooler,
        )
        for _, length in batches(smoke=smoke)
    }
    return reloaded, size


def in_turns(models: list[nn.Module], inputs: dict[str, torch.Tensor], runs: int) -> dict[str, np.ndarray]:
    """Runs models in turns; returns CPU and wall seconds, (runs, models)."""
    seconds: dict[str, list[list[float]]] = {"cpu": [], "wall": []}
    with torch.inference_mode():
        for _ in range(WARMUP + runs):
            for row in seconds.values():
                row.append([])
            for model in models:
                started = time.thread_time(), time.perf_counter()
                model(**inputs)
                seconds["cpu"][-1].append(time.thread_time() - started[0])
                seconds["wall"][-1].append(time.perf_counter() - started[1])
    return {clock: np.array(rows[WARMUP:]) for clock, rows in seconds.items()}


def speed_up(dense: np.ndarray, pruned: np.ndarray) -> dict[str, Any]:
    """Returns medians of a dense and a pruned model's seconds, (runs,), and how many times faster the latter is."""
    medians = float(np.median(dense)), float(np.median(pruned))
    return {
        "dense_median_ms": 1000 * medians[0],
        "pruned_median_ms": 1000 * medians[1],
        "speed_up": medians[0] / medians[1],
        "quartiles": [float(q) for q in np.quantile(dense / pruned, [0.25, 0.75])],
    }


def share_of_other_work(model: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Returns the share of a forward pass's CPU time that is spent outside matrix products."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(WARMUP):
            model(**inputs)
    events = profiled.key_averages()
    products = [event for event in events if any(part in event.key for part in MATRIX_PRODUCTS)]
    seconds = [sum(event.self_cpu_time_total for event in group) for group in (products, events)]
    return 1.0 - seconds[0] / seconds[1]


def measure(name: str, runs: int, *, smoke: bool) -> list[dict[str, Any]]:
    """Measures one shape, as published and rounded, at all batches in both precisions."""
    cut = {widths: cut_saved_reloaded(shape, smoke=smoke) for widths, shape in widths_of(SHAPES[name]).items()}
    dense = dense_model(smoke=smoke)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        models = [model.to(dtype) for model in (dense, *(model for model, _ in cut.values()))]
        for batch, length in batches(smoke=smoke):
            tokens = torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            seconds = in_turns(models, inputs, runs)
            other = [share_of_other_work(model, inputs) for model in models]
            for i, (widths, (_, size)) in enumerate(cut.items(), start=1):
                result = {"shape": name, "widths": widths, "dtype": str(dtype).removeprefix("torch."), "batch": batch}
                result |= {"length": length, **{key: value for key, value in size.items() if key != "macs"}}
                result |= {clock: speed_up(rows[:, 0], rows[:, i]) for clock, rows in seconds.items()}
                ratio, bound = result["cpu"]["speed_up"], size["macs"][length][0] / size["macs"][length][1]
                result |= {"mac_bound": bound, "share_of_bound": ratio / bound}
                result["share_of_other_work"] = {"dense": other[0], "pruned": other[i]}
                results.append(result)
                cell = f"{name} {widths} {dtype} {batch}x{length}"
                print(f"{cell}: {ratio:.2f}x of {bound:.2f}x = {ratio / bound:.3f}", flush=True)
    return results


def main() -> None:
    """Measures all shapes and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one shape of a narrow model, few runs, no result file")
    parser.add_argument("--only", choices=tuple(SHAPES), help="one shape; no result file")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = [options.only] if options.only else ["#7"] if options.smoke else list(SHAPES)
    results = [
        row for name in names for row in measure(name, 2 if options.smoke else options.runs, smoke=options.smoke)
    ]
    if not options.smoke and not options.only:
        write_json(RESULTS / "shapes.json", {**environment(), "seed": 0, "results": results})


if __name__ == "__main__":
    main()
