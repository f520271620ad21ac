"""Where float64 is to be had: Apple's MPS has none, and what the budgets rest on is computed on the CPU then."""

from __future__ import annotations

import torch

WITHOUT_FLOAT64 = frozenset({"mps"})


def exact_device(device: torch.device) -> torch.device:
    """Returns a device that has float64: the one given, or else the CPU."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device
