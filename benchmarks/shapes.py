"""Speed and file size of BERT-base cut to the per-layer shapes that block pruning found on SQuAD v1.

The weights are random: speed and size depend on the shapes alone. Each shape is cut with `prune_model_`, saved, and
reloaded with `AutoModel`; the dense model and the reloaded one then take turns in one process. Beside the speed-up
stands the MAC bound: the multiply-accumulates of the dense model over those of the cut one, pooler included.

Run: python -m benchmarks.shapes [--smoke] [--out FILE] [--models '#7' ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig, BertModel

import hf_headprune as hp
from benchmarks.results_file import RESULTS, environment, read_json, write_json

SHAPES = json.loads((Path(__file__).parent / "nn_pruning_shapes.json").read_text(encoding="utf-8"))
INPUTS = ((1, 128), (8, 128), (2, 384))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS_PER_CELL = 40.0
MIN_REPEATS, MAX_REPEATS = 7, 60
LENGTH_OF_HEADER_SIZE = 8  # bytes at the start of a safetensors file


def dense_bert(num_layers: int) -> Any:
    """Builds BERT-base, or its first layers, with random weights."""
    torch.manual_seed(0)
    return BertModel(BertConfig(num_hidden_layers=num_layers)).eval()


def cut_plan(model: Any, shape: dict[str, list[int]]) -> hp.PruningPlan:
    """Keeps the first heads and units of each layer, as many as the shape says."""
    plan = hp.PruningPlan.of(model)
    return plan.replace(
        kept_heads={site: range(shape["heads_kept"][layer]) for layer, site in enumerate(plan.num_heads)},
        kept_ffn={site: range(shape["ffn_kept"][layer]) for layer, site in enumerate(plan.num_ffn)},
    )


def saved_and_reloaded(dense: Any, plan: hp.PruningPlan, dtype: torch.dtype) -> tuple[Any, dict[str, int]]:
    """Cuts a copy of the dense model, saves it, checks the file against the plan, and reloads it."""
    model = BertModel(dense.config).to(dtype).eval()
    model.load_state_dict(dense.state_dict())
    planned = hp.cost_of(plan, hp.anatomy_of(model), seq_len=1).size_bytes
    hp.prune_model_(model, plan)
    ids = torch.arange(1000, 1016).view(1, -1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        size = file.stat().st_size
        header = LENGTH_OF_HEADER_SIZE + int.from_bytes(file.read_bytes()[:LENGTH_OF_HEADER_SIZE], "little")
        reloaded = AutoModel.from_pretrained(folder).eval()
        difference = (reloaded(ids).last_hidden_state - model(ids).last_hidden_state).abs().max().item()
    if size != planned + header or difference != 0:
        raise RuntimeError(f"file {size} bytes, planned {planned} + header {header}; reloaded differs by {difference}")
    return reloaded, {"planned_bytes": planned, "header_bytes": header, "file_bytes": size}


def macs(model: Any, batch: int, length: int) -> int:
    """Counts the multiply-accumulates of one forward pass, pooler included; embeddings only look up."""
    anatomy = hp.anatomy_of(model)
    per_sequence = hp.cost_of(hp.PruningPlan.full(anatomy), anatomy, seq_len=length).macs
    return batch * (per_sequence + model.pooler.dense.weight.numel())


@torch.inference_mode()
def seconds_in_turns(models: dict[str, Any], ids: torch.Tensor, budget_s: float) -> dict[str, list[float]]:
    """Times the models in turns until the budget is spent: CPU seconds of this process over its threads."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model(ids)
    started = time.perf_counter()
    for repeat in range(MAX_REPEATS):
        if repeat >= MIN_REPEATS and time.perf_counter() - started > budget_s:
            break
        for name in list(models) if repeat % 2 else reversed(models):
            before = time.process_time()
            models[name](ids)
            seconds[name].append((time.process_time() - before) / torch.get_num_threads())
    return seconds


def measure(models: dict[str, Any], batch: int, length: int, budget_s: float) -> dict[str, float]:
    """Returns milliseconds of both models, the speed-up and its share of the MAC bound."""
    ids = torch.randint(1000, 20_000, (batch, length), generator=torch.Generator().manual_seed(0))
    seconds = seconds_in_turns(models, ids, budget_s)
    result = {"repeats": len(seconds["dense"])}
    for name, values in seconds.items():
        result[f"{name}_ms_min"] = round(1000 * min(values), 3)
        result[f"{name}_ms_median"] = round(1000 * statistics.median(values), 3)
    bound = macs(models["dense"], batch, length) / macs(models["pruned"], batch, length)
    speedups = [result[f"dense_ms_{kind}"] / result[f"pruned_ms_{kind}"] for kind in ("min", "median")]
    return result | {
        "mac_bound": round(bound, 3),
        "speedup_min": round(speedups[0], 3),
        "speedup_median": round(speedups[1], 3),
        "share_of_bound": round(speedups[1] / bound, 3),
    }


def main() -> None:
    """Measures every shape, or one small cut of the first with --smoke."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two layers of one shape, few repeats, nothing written")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: benchmarks/results/shapes.json)")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), help="which shapes (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.out or (None if arguments.smoke else RESULTS / "shapes.json")
    names = arguments.models or (["#7"] if arguments.smoke else list(SHAPES))

    content = read_json(out) if out else {}  # a killed run goes on with the models that are missing
    cells = content.setdefault("models", {})
    for name in names:
        if name in cells:
            continue
        cell: dict[str, Any] = {"size": {}, "speed": {}}
        for dtype_name, dtype in DTYPES.items():
            dense = dense_bert(2 if arguments.smoke else 12).to(dtype)
            pruned, cell["size"][dtype_name] = saved_and_reloaded(dense, cut_plan(dense, SHAPES[name]), dtype)
            for batch, length in INPUTS:
                budget_s = 0.0 if arguments.smoke else SECONDS_PER_CELL
                found = measure({"dense": dense, "pruned": pruned}, batch, length, budget_s)
                cell["speed"][f"{dtype_name} {batch}x{length}"] = found
                print(
                    f"{name} {dtype_name} {batch}x{length}: {found['dense_ms_median']:.1f} -> "
                    f"{found['pruned_ms_median']:.1f} ms, {found['speedup_median']:.2f}x, "
                    f"bound {found['mac_bound']:.2f}x, share {found['share_of_bound']:.3f}",
                    flush=True,
                )
        cells[name] = cell
        if out:
            write_json(out, {"environment": environment(), **content})


if __name__ == "__main__":
    main()
