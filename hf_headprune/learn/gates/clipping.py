"""Clips the gradient of the scores alone, over all micro-batches of an optimizer step."""

from __future__ import annotations

import torch


class ClippedSum:
    """Changes the gradients that the micro-batches of a step bring so that the norm of their sum is clipped."""

    def __init__(self, max_norm: float) -> None:
        """Starts a step.

        Args:
            max_norm: Largest norm of the sum.
        """
        self._max_norm = max_norm
        self._sum: torch.Tensor | float = 0.0
        self._passed_on: torch.Tensor | float = 0.0

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        """Hook of a tensor: returns what makes of the gradients passed on so far the clipped sum of those that came."""
        self._sum = self._sum + grad
        clipped = self._sum * (self._max_norm / self._sum.norm().clamp_min(self._max_norm))
        passed_on, self._passed_on = self._passed_on, clipped
        return clipped - passed_on
