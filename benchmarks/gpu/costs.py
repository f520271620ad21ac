"""Times what a run consists of, on one device: a training step, moments, a plan, a certificate, and latencies.

Run: python -m benchmarks.gpu.costs [--size base|large] [--device cuda] [--smoke]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.results_file import RESULTS, environment, write_json
from hf_headprune import PruningPlan, certify, plan_for_budget, prune_model_, scores_of

SIZES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
LENGTH, BATCH, REPEATS = 128, 32, 20


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few examples, into a scratch file")
    given = parser.parse_args()
    size, count = ("tiny", 48) if given.smoke else (given.size, 1024)
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "results.json") if given.smoke else RESULTS / f"gpu_costs_{size}.json"
        measured = dict(parts_of_a_run(size, count, device)) | dict(latencies(size, device, smoke=given.smoke))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        shape = {"length": LENGTH, "batch": BATCH, "examples": count}
        write_json(file, {"environment": environment(), "device": name, "size": size, **shape, "measured": measured})
    sys.stdout.writelines(f"{part}: {found}\n" for part, found in measured.items())


def model_of(size: str, device: torch.device) -> Any:
    """Returns a classifier with random weights: what is measured does not depend on them."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES[size])).to(device).eval()


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns random examples."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30000, (count, LENGTH), generator=generator)
    return [{"input_ids": row.tolist(), "attention_mask": [1] * LENGTH, "labels": int(row[0] % 2)} for row in ids]


def parts_of_a_run(size: str, count: int, device: torch.device) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields seconds and the peak of memory of each part."""
    model, train, dev = model_of(size, device), rows(count, 0), rows(count, 1)
    yield "training step", timed(_steps(model, device), device, repeats=5)
    found: list[Any] = []
    model.eval()
    yield "moments and order", timed(lambda: found.append(plan_for_budget(model, train, density=0.5)), device)
    yield "one plan", timed(lambda: scores_of(model, dev), device)
    pruned = prune_model_(copy.deepcopy(model), found[-1])
    yield "certificate", timed(lambda: certify(model, pruned, dev, max_drop=0.05), device)


def _steps(model: Any, device: torch.device) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = _batch(BATCH, device)

    def step() -> None:
        model.train()
        model(**batch, labels=torch.zeros(BATCH, dtype=torch.long, device=device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _batch(size: int, device: torch.device) -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 30000, (size, LENGTH), generator=torch.Generator().manual_seed(2)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def latencies(size: str, device: torch.device, *, smoke: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields ms of a forward pass, dense and with half of the units, at batch 1 and 32, as it is served."""
    dense = model_of(size, device)
    plan = PruningPlan.of(dense)
    halves = {site: range(count // 2) for site, count in {**plan.num_heads, **plan.num_ffn}.items()}
    kept = plan.replace(
        kept_heads={site: halves[site] for site in plan.num_heads},
        kept_ffn={site: halves[site] for site in plan.num_ffn},
    )
    for dtype in (torch.float32, torch.bfloat16):
        pair = {"dense": copy.deepcopy(dense).to(dtype), "pruned": prune_model_(copy.deepcopy(dense), kept).to(dtype)}
        for batch in (1, BATCH):
            inputs = _batch(batch, device)
            for name, served in _ways(device, smoke=smoke).items():
                times = {which: _ms(served(model, inputs), device, smoke=smoke) for which, model in pair.items()}
                yield f"{str(dtype).removeprefix('torch.')}, batch {batch}, {name}", times


Served = Callable[[Any, dict[str, torch.Tensor]], Callable[[], Any]]


def _ways(device: torch.device, *, smoke: bool) -> dict[str, Served]:
    """Returns how a model is served: as it is, compiled, and as a graph that is replayed."""
    ways: dict[str, Served] = {"eager": lambda model, inputs: lambda: model(**inputs)}
    if not smoke:
        ways["compiled"] = lambda model, inputs: (lambda compiled: lambda: compiled(**inputs))(torch.compile(model))
    if device.type == "cuda":
        ways["CUDA graph"] = _graph
    return ways


def _graph(model: Any, inputs: dict[str, torch.Tensor]) -> Callable[[], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            model(**inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        model(**inputs)
    return graph.replay


def _ms(run: Callable[[], Any], device: torch.device, *, smoke: bool) -> float:
    with torch.no_grad():
        return round(1000 * timed(run, device, repeats=2 if smoke else REPEATS)["seconds"], 3)


def timed(run: Callable[[], Any], device: torch.device, *, repeats: int = 1) -> dict[str, float]:
    """Returns the median seconds of a function, after a first call where it is repeated, and the peak of memory."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for number in range(repeats + (repeats > 1)):
        started = time.perf_counter()
        run()
        if is_cuda:
            torch.cuda.synchronize(device)
        if number or repeats == 1:
            seconds.append(time.perf_counter() - started)
    found = {"seconds": statistics.median(seconds)}
    return found | ({"peak_mib": torch.cuda.max_memory_allocated(device) / 2**20} if is_cuda else {})


if __name__ == "__main__":
    main()
