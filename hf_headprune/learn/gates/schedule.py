"""GateSchedule: phase, temperature and ramp of the gates, as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hf_headprune.learn.ramp import cubic

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


@dataclass(frozen=True)
class GateSchedule:
    """When the gates open, learn and are decided, in optimizer steps of one run.

    Attributes:
        open_steps: Steps at the start in which every head is open and no score is learned.
        closed_step: Step from which gates are no longer mixed with open ones.
        cooled_step: Step at which the temperature reaches its end.
        decided_step: Step from which the hard choice is fixed.
        start_temperature: Temperature of the first learning step.
        end_temperature: Temperature from `cooled_step` on.
    """

    open_steps: int
    closed_step: int
    cooled_step: int
    decided_step: int
    start_temperature: float
    end_temperature: float

    def phase(self, step: int) -> Phase:
        """Returns what the gates do in an optimizer step, counted from zero."""
        if step >= self.decided_step:
            return "decided"
        return "open" if step < self.open_steps else "learn"

    def temperature(self, step: int) -> float:
        """Returns the temperature of an optimizer step, counted from zero."""
        progress = (step - self.open_steps) / max(self.cooled_step - self.open_steps, 1)
        return geometric(self.start_temperature, self.end_temperature, progress)

    def closed(self, step: int) -> float:
        """Returns how far the gates have closed in an optimizer step, counted from zero: from 0, all open, to 1."""
        steps = self.closed_step - self.open_steps
        return cubic((step - self.open_steps) / steps) if steps > 0 else 1.0
