"""The learning rate starts over when units have been removed: what is left of the run is a training of its own.

Late in a schedule the rate is too low for a model to make up for what it lost.

Source: Renda, Frankle and Carbin 2020 (arXiv 2003.02389), who start the schedule over to train on after a cut. That it
then rises higher than before is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[float], float]  # of an optimizer step: the factor of the learning rate
WARMUP_SHARE = 0.1  # of the steps that are left


def rewind_(scheduler: Any, cut: int, max_steps: int, times: float) -> bool:
    """Lets the schedule of a run start over at a step, in the steps that are left; returns whether it does.

    Every schedule that is a function of the step does: all of the Trainer's but those that look at a metric. It warms
    up over a tenth of the steps that are left, also where it began without.

    Args:
        scheduler: Of the Trainer, when training begins, resumed or not.
        cut: Optimizer step at which units are removed.
        max_steps: Optimizer steps of the run.
        times: Highest rate from then on, as a multiple of the highest before.
    """
    if type(scheduler) is not LambdaLR or not 0 < cut < max_steps:
        return False
    before: list[Any] = [getattr(known, "before", known) for known in scheduler.lr_lambdas]
    scheduler.lr_lambdas = [_rewound(schedule, cut, max_steps, times) for schedule in before]
    return True


def _rewound(schedule: Schedule, cut: int, max_steps: int, times: float) -> Schedule:
    left = max_steps - cut
    warmup = max(1.0, WARMUP_SHARE * left)

    def factor(step: float) -> float:
        since = step - cut
        if since < 0:
            return schedule(step)
        return times * min(1.0, (since + 1) / warmup) * schedule(since * max_steps / left)

    vars(factor)["before"] = schedule  # of a function, unlike an object, torch writes nothing into checkpoints
    return factor
