"""Checkpoints in the formats of Transformers 4 and of other libraries, made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HEAD_DIM, HEADS = 8, 4  # of the tiny models
BERT_NAMES = ("self.query", "self.key", "self.value", "output.dense")


def save_config(folder: Path, model: Any, **settings: Any) -> None:
    """Saves the configuration of a model with its class, and with the settings in place of its own."""
    folder.mkdir(exist_ok=True)
    content = {**model.config.to_dict(), "architectures": [type(model).__name__], **settings}
    (folder / "config.json").write_text(json.dumps(content))


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights, tied ones once."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach().clone()
    return found


def cut_heads_(
    weights: dict[str, torch.Tensor],
    prefix: str,
    pruned: Mapping[int, Sequence[int]],
    *,
    site: str | None = None,
    names: Sequence[str] = BERT_NAMES,
) -> dict[str, torch.Tensor]:
    """Cuts heads as `prune_heads` of Transformers 4 did: rows of query, key and value, columns of the output."""
    site = site or f"{prefix}.encoder.layer.{{}}.attention"
    for layer, heads in pruned.items():
        kept = torch.tensor([h * HEAD_DIM + i for h in range(HEADS) if h not in heads for i in range(HEAD_DIM)]).long()
        *inputs, output = (f"{site.format(layer)}.{name}" for name in names)
        for name in inputs:
            weights[f"{name}.weight"] = weights[f"{name}.weight"][kept].clone()
            weights[f"{name}.bias"] = weights[f"{name}.bias"][kept].clone()
        weights[f"{output}.weight"] = weights[f"{output}.weight"][:, kept].clone()
    return weights


def cut_units_(weights: dict[str, torch.Tensor], width: int, *, layers: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """Keeps the first FFN units of layers of a BERT."""
    for layer in layers:
        first, second = (f"bert.encoder.layer.{layer}.{name}.dense" for name in ("intermediate", "output"))
        weights[f"{first}.weight"] = weights[f"{first}.weight"][:width].clone()
        weights[f"{first}.bias"] = weights[f"{first}.bias"][:width].clone()
        weights[f"{second}.weight"] = weights[f"{second}.weight"][:, :width].clone()
    return weights
