"""Schedules of the gates: pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Phase = Literal["open", "learn", "decided"]


def geometric(start: float, end: float, progress: float) -> float:
    """Interpolates geometrically between two positive values.

    Args:
        start: Value at progress 0.
        end: Value at progress 1 and beyond.
        progress: Fraction of the way, clipped to [0, 1].

    Source: Li et al. 2021 (arXiv 2108.04657), section 4.2, the cooling of the temperature.
    """
    progress = min(max(progress, 0.0), 1.0)
    return math.exp((1.0 - progress) * math.log(start) + progress * math.log(end))


def closing(progress: float) -> float:
    """Returns how far gates have closed: 0 leaves every head open, 1 leaves the gates as they are.

    Fast at first and slowly towards the end, so that the number of open heads follows the cubic schedule of gradual
    pruning, `K + (N - K) (1 - progress)^3`.

    Args:
        progress: Fraction of the way, clipped to [0, 1].

    Source: Zhu and Gupta 2017 (arXiv 1710.01878), equation 1.
    """
    return 1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3


@dataclass(frozen=True)
class GateSchedule:
    """When the gates open, learn and are decided, in optimizer steps of one run.

    Attributes:
        open_steps: Steps at the start in which every head is open and no score is learned.
        cooled_step: Step at which the temperature reaches its end.
        decided_step: Step from which the hard choice is fixed.
        start_temperature: Temperature of the first learning step.
        end_temperature: Temperature from `cooled_step` on.
    """

    open_steps: int
    cooled_step: int
    decided_step: int
    start_temperature: float
    end_temperature: float

    def phase(self, step: int) -> Phase:
        """Returns what the gates do in an optimizer step, counted from zero."""
        if step >= self.decided_step:
            return "decided"
        return "open" if step < self.open_steps else "learn"

    def progress(self, step: int) -> float:
        """Returns how far the gates have cooled in an optimizer step: 0 at the first learning step, then up to 1."""
        return min(max((step - self.open_steps) / max(self.cooled_step - self.open_steps, 1), 0.0), 1.0)

    def temperature(self, step: int) -> float:
        """Returns the temperature of an optimizer step, counted from zero."""
        return geometric(self.start_temperature, self.end_temperature, self.progress(step))
