"""The learning rate starts over when units have been removed: what is left of the run is a training of its own.

Late in a schedule the rate is too low for a model to make up for what it lost.

Source: Renda, Frankle and Carbin 2020 (arXiv 2003.02389), who start the schedule over when they train on after a cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[float], float]  # of an optimizer step: the factor of the learning rate


def rewind_(scheduler: Any, cut: int, max_steps: int) -> bool:
    """Lets the schedule of a run start over at a step, in the steps that are left; returns whether it does.

    Every schedule that is a function of the step does, so all but those that look at a metric. A constant one stays as
    it is, but for its warm-up.

    Args:
        scheduler: Of the Trainer, when training begins, resumed or not.
        cut: Optimizer step at which units are removed.
        max_steps: Optimizer steps of the run.
    """
    if not isinstance(scheduler, LambdaLR) or not 0 < cut < max_steps:
        return False
    plain: list[Any] = [getattr(known, "before", known) for known in scheduler.lr_lambdas]
    scheduler.lr_lambdas = [_rewound(schedule, cut, max_steps) for schedule in plain]
    return True


def _rewound(schedule: Schedule, cut: int, max_steps: int) -> Schedule:
    def factor(step: float) -> float:
        return schedule(step if step < cut else (step - cut) * max_steps / (max_steps - cut))

    vars(factor)["before"] = schedule  # a function, which torch leaves out of checkpoints, unlike an object
    return factor
