"""MovementSchedule: threshold, or kept fraction, and penalty of block scores, as pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from hf_headprune.learn.ramp import cubic


@dataclass(frozen=True)
class MovementSchedule:
    """How the threshold of block scores, or the fraction of blocks that is kept, and the penalty change.

    Both are constant at first, then change by a cubic, fast at first, and are constant again.

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
        """Returns how far the level has changed in an optimizer step, linearly: 0 at first, then up to 1."""
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
        return self.end_penalty * cubic(self.progress(step))

    def decided(self, step: int) -> bool:
        """Tells whether the masks are fixed in an optimizer step, counted from zero."""
        return step >= self.decided_step
