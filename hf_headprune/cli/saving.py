"""A pruned model in a folder: weights, tokenizer, report, certificate; and what reading it again changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune._certificate_file import attach_certificate_
from hf_headprune.cli.models import load_model
from hf_headprune.pipeline.budget import MB
from hf_headprune.shrink.surgery import probe, prune_model_

if TYPE_CHECKING:
    from pathlib import Path

    from hf_headprune.pipeline import PruningResult


def save_pruned(folder: Path, model: Any, tokenizer: Any, result: PruningResult) -> tuple[float, float]:
    """Prunes a model, in place, and saves it; returns the megabytes of its weights and what reloading changes."""
    prune_model_(model, result)
    if result.certificate is not None:
        attach_certificate_(model, result.certificate.to_json())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MB
    reloaded = load_model(folder).to(model.device)
    return size, float((probe(model) - probe(reloaded)).abs().max())  # type: ignore[operator]
