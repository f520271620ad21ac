"""Fingerprints of weights and tensors: equal content, equal sha256."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def sha256_of(settings: str, *groups: Mapping[str, torch.Tensor]) -> str:
    """Returns the sha256 of a text and of named tensors, in the order of their names."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in _named(groups):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _named(groups: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for group in groups:
        for name in sorted(group):
            yield name, group[name]
