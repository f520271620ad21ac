"""Where float64 is to be had: Apple's MPS has none, and what the budgets rest on is computed on the CPU then."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WITHOUT_FLOAT64 = ("mps",)


def where_exact(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor, with its graph, on a device that has float64: its own, or else the CPU."""
    return tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor
