"""Meets a speed-up as it is measured: a table of blocks proposes plans, and the time of the whole model decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_headprune.plan import PruningPlan

NEAR = 0.015  # of the speed-up: nearer than one measurement can tell
TRIES = 10
SMALLEST = 0.01  # share of the blocks' ms


def plan_as_measured(
    wanted: float, plan_at: Callable[[float], PruningPlan], speed_up_of: Callable[[PruningPlan], float]
) -> PruningPlan:
    """Returns, of some plans, the one whose measured speed-up is nearest to what is wanted.

    A table that was measured block by block is off where blocks share a cache, and says nothing of what is no block.
    Between two plans the time of a model is close to a straight line in the ms of its blocks, so the next plan is where
    that line meets the time that is wanted.

    A plan that looks right among several may owe it to an error of its measurement, so it is measured anew, and the
    second measurement counts.

    Args:
        wanted: Time before over time after; above 1.
        plan_at: Returns the plan whose blocks take a share of their ms, from 0 to 1.
        speed_up_of: Measures a plan.

    Raises:
        InvalidSettingError: The smallest plan is slower than that.
    """
    found: dict[float, tuple[float, PruningPlan | None]] = {1.0: (1.0, None)}  # share of the time, by that of the ms
    share, tried = 1.0 / wanted, set()
    for _ in range(TRIES):
        plan = plan_at(share)
        if plan in tried:
            break
        tried.add(plan)
        taken = 1.0 / speed_up_of(plan)
        if abs(taken * wanted - 1.0) <= NEAR:
            taken = 1.0 / speed_up_of(plan)
        found[share] = taken, plan
        if abs(taken * wanted - 1.0) <= NEAR:
            break
        if taken * wanted > 1.0 and plan == plan_at(SMALLEST):
            raise InvalidSettingError(
                f"speedup={wanted:g}: with as few heads and FFN units as there may be the model is "
                f"{1 / taken:.2f} times as fast; the rest of it is not pruned. Ask for less."
            )
        share = min(max(_next_share(found, 1.0 / wanted), SMALLEST), 1.0)
    return min(((time, plan) for time, plan in found.values() if plan), key=lambda it: abs(it[0] * wanted - 1.0))[1]


def _next_share(found: dict[float, tuple[float, PruningPlan | None]], time: float) -> float:
    """Returns where the line through the two plans around a time, or nearest to it, meets it."""
    points = list(zip(sorted(taken for taken, _ in found.values()), sorted(found), strict=True))  # whatever the noise
    above = next((place for place, (taken, _) in enumerate(points) if taken > time), len(points) - 1)
    (low, first), (high, second) = points[max(above - 1, 0)], points[max(above, 1)]
    return first + (second - first) * (time - low) / max(high - low, 1e-9)
