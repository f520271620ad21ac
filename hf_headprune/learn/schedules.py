"""Schedules of gates and block scores: pure functions of the step."""

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
        closed_step: Step from which nothing is mixed with open gates any more.
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
        """Returns how far the gates have closed in an optimizer step, counted from zero: see `closing`."""
        steps = self.closed_step - self.open_steps
        return closing((step - self.open_steps) / steps) if steps > 0 else 1.0


@dataclass(frozen=True)
class MovementSchedule:
    """How the threshold of block scores, or the fraction of blocks that stays, and the penalty move.

    Both stand still at first, then move by a cubic, fast at first, and stand still again.

    Attributes:
        open_steps: Steps at the start in which nothing is masked or penalised.
        reached_step: Step at which the level reaches `end`.
        decided_step: Step from which the masks are fixed.
        start: Level of the first step after those: a threshold, or a fraction kept.
        end: Level from `reached_step` on.
        end_penalty: Strength of the penalty from `reached_step` on.

    Source: Sanh et al. 2020 (arXiv 2005.07683), section 4, with the penalty tied to the threshold as in the code of
    Lagunas et al. 2021 (arXiv 2109.04838), whose threshold starts at zero.
    """

    open_steps: float
    reached_step: float
    decided_step: float
    start: float
    end: float
    end_penalty: float

    def progress(self, step: int) -> float:
        """Returns how far the level has moved in an optimizer step, linearly: 0 at first, then up to 1."""
        if step > self.reached_step:
            return 1.0
        span = self.reached_step - self.open_steps
        return min((step - self.open_steps) / span, 1.0) if step > self.open_steps and span > 0 else 0.0

    def is_open(self, step: int) -> bool:
        """Tells whether nothing is masked yet in an optimizer step, counted from zero."""
        return step < self.open_steps

    def level(self, step: int) -> float:
        """Returns the threshold, or the fraction kept, of an optimizer step, counted from zero."""
        return self.end + (self.start - self.end) * (1.0 - self.progress(step)) ** 3

    def penalty(self, step: int) -> float:
        """Returns the strength of the penalty in an optimizer step, counted from zero."""
        return self.end_penalty * closing(self.progress(step))

    def decided(self, step: int) -> bool:
        """Tells whether the masks are fixed in an optimizer step, counted from zero."""
        return step >= self.decided_step
