"""A pruned model in a folder: weights, tokenizer, report, certificate; or what was found about it, without weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hf_headprune.cli.models import load_model
from hf_headprune.pipeline.budget import MB
from hf_headprune.shrink.saved_plan import PLAN_NAME
from hf_headprune.shrink.surgery import probe, prune_model_

if TYPE_CHECKING:
    from pathlib import Path

    from hf_headprune.pipeline import PruningResult


FRONTIER_NAME = "headprune_frontier.json"


def save_found(folder: Path, result: PruningResult) -> None:
    """Saves the plan, the report with its pictures, and the measured plans that no other one beats, largest first."""
    (folder / PLAN_NAME).write_text(result.plan.to_json() + "\n", encoding="utf-8")
    for name, content in result.report.files().items():
        (folder / name).write_bytes(content)
    frontier = [{**vars(it), "plan": json.loads(it.plan.to_json())} for it in result.frontier]
    (folder / FRONTIER_NAME).write_text(json.dumps(frontier, indent=1) + "\n", encoding="utf-8")


def save_pruned(folder: Path, model: Any, tokenizer: Any, result: PruningResult) -> tuple[float, float]:
    """Prunes a model, in place, and saves it; returns the megabytes of its weights and what reloading changes."""
    prune_model_(model, result)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MB
    reloaded = load_model(folder).to(model.device)
    return size, float((probe(model) - probe(reloaded)).abs().max())  # type: ignore[operator]
