"""How fast and how large MiniLM is in each runtime, dense and pruned, beside the bound that other work sets.

Plans keep the same share of heads and FFN units in every layer; weights are those of MiniLM with a fresh head, since
speed does not depend on them. In each runtime the dense and the pruned models run in turns; runtimes take turns, too,
in rounds, so that a change of the machine's speed meets all. Reported are the median, and the ratio to the dense model
of the same turn with its quartiles, of wall seconds. One thread.

The bound of a runtime is 1 / (other + products / ratio): what it would gain if matrix products shrank as their
multiply-accumulates do, and all other work stayed. Products are what the runtime's own profile of the dense model says
that its matrix products take; all the rest of the wall time of a run without a profile is other work, Python between
operations and the start of a run included, which no profile counts. Both are measured in each round. Other work may
shrink with the model, too (the activation of an FFN, softmax), so a share above 1 is no error.
Files that were exported stay in `--work`, and batch sizes that are in the result file are not measured again.

Run: python -m benchmarks.runtimes [--smoke] [--runtimes "torch fp32,ONNX int8"] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.results_file import RESULTS, environment, read_json, write_json
from benchmarks.shapes import MATRIX_PRODUCTS
from benchmarks.tasks import minilm
from hf_headprune import LatencySettings, PruningPlan, anatomy_of, cost_of, export_onnx, export_openvino, prune_model_
from hf_headprune.latency import random_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

RESULT = RESULTS / "runtimes.json"
DENSITIES, BATCHES, LENGTH = (1.0, 0.5, 0.25), (1, 8), 128
ROUNDS, TURNS, WARMUP = 8, 5, 2
TORCH, ONNX, OPENVINO = ("torch fp32", "torch bf16", "torch compiled"), ("ONNX fp32", "ONNX int8"), "OpenVINO fp32"
RUNTIMES = (*TORCH, *ONNX, OPENVINO)
PRODUCTS = ("MatMul", "Gemm", "Attention", "FullyConnected", "ScaledDotProduct")  # in the names of their operations


@dataclass(frozen=True)
class Runner:
    """A model in a runtime.

    Attributes:
        run: Runs it once on the inputs of the batch.
        products: Returns the ms of one run that are spent in matrix products.
        size_mb: Of its file.
    """

    run: Callable[[], Any]
    products: Callable[[], float]
    size_mb: float


def uniform(model: nn.Module, density: float) -> PruningPlan:
    """Returns the plan that keeps the same share of heads and FFN units in every layer."""
    full = PruningPlan.of(model)
    heads = {site: range(round(density * units)) for site, units in full.num_heads.items()}
    return full.replace(
        kept_heads=heads, kept_ffn={site: range(round(density * units)) for site, units in full.num_ffn.items()}
    )


def runner(runtime: str, model: nn.Module, inputs: dict[str, torch.Tensor], folder: Path) -> Runner:
    """Returns a model in a runtime; what is exported for it stays in the folder."""
    if runtime in TORCH:
        return _torch(runtime, model, inputs)
    return (_onnx if runtime in ONNX else _openvino)(runtime, model, inputs, folder)


def _torch(runtime: str, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Runner:
    used: Any = model.bfloat16() if runtime == "torch bf16" else model
    size = sum(parameter.numel() * parameter.element_size() for parameter in used.parameters()) / 1e6
    if runtime == "torch compiled":
        used = torch.compile(used, dynamic=False)  # else a second batch size makes kernels for any

    def run() -> None:
        with torch.inference_mode():
            used(**inputs)

    def products() -> float:
        with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(TURNS):
                used(**inputs)
        events = [it for it in profiled.key_averages() if any(part in it.key for part in MATRIX_PRODUCTS)]
        return sum(it.self_cpu_time_total for it in events) / 1000 / TURNS

    run()
    return Runner(run, products, size)


def _onnx(runtime: str, model: nn.Module, inputs: dict[str, torch.Tensor], folder: Path) -> Runner:
    import onnxruntime

    file = folder / "onnx" / "model.onnx"
    if not file.exists():
        export_onnx(model, folder, int8=runtime == "ONNX int8")
    given = {name: tensor.numpy() for name, tensor in inputs.items()}

    def session(**settings: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for name, value in settings.items():
            setattr(options, name, value)
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def products() -> float:
        with tempfile.TemporaryDirectory(prefix="headprune-bench-") as place:
            profiled = session(enable_profiling=True, profile_file_prefix=f"{place}/run")
            for _ in range(WARMUP + TURNS):
                profiled.run(None, given)
            events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        taken: dict[str, list[float]] = {}
        for it in events:
            if it.get("cat") == "Node" and it["name"].endswith("kernel_time") and _is_product(it["args"]["op_name"]):
                taken.setdefault(it["name"], []).append(it["dur"] / 1000)
        return sum(float(np.median(of_node)) for of_node in taken.values())

    used = session()
    return Runner(lambda: used.run(None, given), products, file.stat().st_size / 1e6)


def _openvino(runtime: str, model: nn.Module, inputs: dict[str, torch.Tensor], folder: Path) -> Runner:
    import openvino

    file = folder / "openvino" / "openvino_model.xml"
    if not file.exists():
        export_openvino(model, folder)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    core = openvino.Core()
    used = core.compile_model(str(file), "CPU", settings)
    names = {it.get_any_name() for it in used.inputs}
    given = {name: tensor.numpy() for name, tensor in inputs.items() if name in names}

    def products() -> float:
        request = core.compile_model(str(file), "CPU", {**settings, "PERF_COUNT": True}).create_infer_request()
        taken = []
        for _ in range(WARMUP + TURNS):
            request.infer(given)
            nodes = [it for it in request.profiling_info if _is_product(it.node_type)]
            taken.append(1000 * sum(it.real_time.total_seconds() for it in nodes))
        return float(np.median(taken[WARMUP:]))

    size = sum(it.stat().st_size for it in file.parent.iterdir()) / 1e6
    return Runner(lambda: used(given), products, size)


def _is_product(operation: str) -> bool:
    """Tells whether an operation of a runtime is a matrix product, by its name."""
    return any(part in operation for part in PRODUCTS)


def in_turns(runners: list[Runner]) -> np.ndarray:
    """Runs models in turns; returns wall ms, (turns, models)."""
    taken = np.empty((TURNS, len(runners)))
    for it in runners * WARMUP:
        it.run()
    for turn in range(TURNS):
        for place, it in enumerate(runners):
            started = time.perf_counter()
            it.run()
            taken[turn, place] = 1000 * (time.perf_counter() - started)
    return taken


def measure(batch: int, runtimes: list[str], densities: tuple[float, ...], rounds: int, work: Path) -> list[Any]:
    """Measures a batch size in all runtimes."""
    dense = minilm(2).eval()
    inputs = random_inputs(dense, LatencySettings(batch_size=batch, seq_len=LENGTH))
    plans = [uniform(dense, density) for density in densities]
    macs = [cost_of(plan, anatomy_of(dense), seq_len=LENGTH).macs for plan in plans]
    runners = {
        runtime: [
            runner(runtime, prune_model_(copy.deepcopy(dense), plan), inputs, work / runtime / f"{density:g}")
            for plan, density in zip(plans, densities, strict=True)
        ]
        for runtime in runtimes
    }
    taken: dict[str, list[np.ndarray]] = {runtime: [] for runtime in runtimes}
    shares: dict[str, list[float]] = {runtime: [] for runtime in runtimes}
    for _ in range(rounds):
        for runtime, models in runners.items():
            taken[runtime].append(in_turns(models))
            shares[runtime].append(1.0 - models[0].products() / float(np.median(taken[runtime][-1][:, 0])))
    rows = []
    for runtime, models in runners.items():
        ms, other = np.concatenate(taken[runtime]), max(float(np.median(shares[runtime])), 0.0)
        for place, density in enumerate(densities):
            ratios = ms[:, 0] / ms[:, place]
            bound = 1.0 / (other + (1.0 - other) * macs[place] / macs[0])
            row = {"runtime": runtime, "batch": batch, "length": LENGTH, "density": density}
            row |= {"ms": float(np.median(ms[:, place])), "size_mb": models[place].size_mb}
            row |= {"ms_quartiles": [float(q) for q in np.quantile(ms[:, place], [0.25, 0.75])]}
            row |= {"speed_up": float(np.median(ratios))}
            row |= {"speed_up_quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])]}
            row |= {"mac_ratio": macs[0] / macs[place], "share_of_other_work": other, "bound": bound}
            row |= {"share_of_bound": row["speed_up"] / bound}
            rows.append(row)
            print(
                f"{runtime}, batch {batch}, density {density:g}: {row['ms']:.2f} ms, {row['size_mb']:.1f} MB, "
                f"{row['speed_up']:.2f}x of {bound:.2f}x = {row['share_of_bound']:.3f}",
                flush=True,
            )
    return rows


def main() -> None:
    """Measures what is not in the result file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one batch size, two densities, one round, no result file")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help=f"of {', '.join(RUNTIMES)}")
    parser.add_argument("--work", type=Path, help="folder of exported files; a new one when left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runtimes = [name for name in RUNTIMES if name in options.runtimes.split(",")]
    work = options.work or Path(tempfile.mkdtemp(prefix="headprune-bench-"))
    if options.smoke:
        measure(1, runtimes, DENSITIES[:2], 1, work)
        return
    done = read_json(RESULT).get("results", [])
    for batch in BATCHES:
        missing = [name for name in runtimes if not any((it["runtime"], it["batch"]) == (name, batch) for it in done)]
        if missing:
            done += measure(batch, missing, DENSITIES, ROUNDS, work)
            write_json(RESULT, {**environment(), "rounds": ROUNDS, "turns": TURNS, "results": done})


if __name__ == "__main__":
    main()
