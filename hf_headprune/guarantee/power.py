"""Power analysis: what a certification split of a given size can certify, computed before the search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from hf_headprune._checks import is_number, is_whole
from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.guarantee.paired import critical_value, level_of, rejection_limits, tail_probabilities
from hf_headprune.guarantee.wording import percent, points

PLANNING_POINTS = 200  # of the grid of disagreements: for planning, where a rounding error does no harm
EXACT_UP_TO = 20_000  # examples; beyond, the normal approximation differs by less than a hundredth
MOST_EXAMPLES = 10_000_000
DISAGREEMENT = 0.03  # what pruning a few heads and fine-tuning on typically changes, where nothing better is known
POWER = 0.8


@dataclass(frozen=True)
class PowerAssumptions:
    """What is assumed about a pruned model, to plan by.

    Attributes:
        disagreement: Share of the examples that exactly one of the two models gets right, in (0, 1).
        true_drop: Drop over all data, in [0, disagreement].
        power: Wanted chance of a certificate, in (0, 1).
        alpha: One minus the confidence, in (0, 0.5).

    Raises:
        InvalidSettingError: A number is out of range.
    """

    disagreement: float = DISAGREEMENT
    true_drop: float = 0.0
    power: float = POWER
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Checks every number."""
        rules: dict[str, tuple[Callable[[Any], bool], str]] = {
            "disagreement": (lambda it: is_number(it) and 0 < it < 1, "in (0, 1)"),
            "true_drop": (lambda it: is_number(it) and 0 <= it <= self.disagreement, "in [0, disagreement]"),
            "power": (lambda it: is_number(it) and 0 < it < 1, "in (0, 1)"),
            "alpha": (lambda it: is_number(it) and 0 < it < 0.5, "in (0, 0.5)"),  # noqa: PLR2004
        }
        for name, (holds, rule) in rules.items():
            if not holds(value := getattr(self, name)):
                raise InvalidSettingError(
                    f"PowerAssumptions: {name} must be {rule}, received {shown(value)}. Pass shares: 0.01 is 1 %."
                )


def power_of(examples: int, max_drop: float, assumptions: PowerAssumptions = PowerAssumptions()) -> float:
    """Returns the chance that so many examples certify a drop below max_drop, if the assumptions are true.

    Args:
        examples: Examples of the certification split.
        max_drop: Drop that is to be excluded, in (0, 1).
        assumptions: About the pruned model.

    Raises:
        InvalidSettingError: examples is no whole number of at least 1, or max_drop is no share.
    """
    _check_drop(max_drop, "power_of")
    _check(examples, assumptions, "power_of")
    level = level_of(assumptions.alpha)
    if examples > EXACT_UP_TO:
        return _near_power(examples, max_drop, assumptions)
    critical = critical_value(int(examples), max_drop, level, points=PLANNING_POINTS)
    limits = rejection_limits(critical, int(examples), max_drop)
    return float(
        tail_probabilities(limits, int(examples), np.array([assumptions.disagreement]), assumptions.true_drop)[0]
    )


def detectable_drop(examples: int, assumptions: PowerAssumptions = PowerAssumptions()) -> float | None:
    """Returns the smallest max_drop, in steps of a thousandth, that so many examples certify with the wanted power.

    Returns:
        None where they certify nothing below 1.
    """
    _check(examples, assumptions, "detectable_drop")
    low, high = int(1000 * assumptions.true_drop), 999  # not at low, perhaps at high
    found = _least(
        lambda drop: power_of(examples, drop / 1000, assumptions) >= assumptions.power,
        lambda drop: _near_power(examples, drop / 1000, assumptions) >= assumptions.power,
        low,
        high,
    )
    return None if found is None else found / 1000


def examples_needed(max_drop: float, assumptions: PowerAssumptions = PowerAssumptions()) -> int | None:
    """Returns how many examples certify a drop below max_drop with the wanted power, to about a hundredth.

    Returns:
        None where the assumed drop is not below max_drop, or `MOST_EXAMPLES` are too few.
    """
    _check_drop(max_drop, "examples_needed")
    _check(1, assumptions, "examples_needed")
    if assumptions.true_drop >= max_drop:
        return None
    return _least(
        lambda examples: power_of(examples, max_drop, assumptions) >= assumptions.power,
        lambda examples: _near_power(examples, max_drop, assumptions) >= assumptions.power,
        0,
        MOST_EXAMPLES,
        tolerance=0.01,
    )


def _least(
    holds: Callable[[int], bool], nearly: Callable[[int], bool], low: int, high: int, *, tolerance: float = 0.0
) -> int | None:
    """Returns the least number above `low`, and up to `high`, of which something holds, as of all above; None for none.

    Args:
        holds: Takes a while.
        nearly: Is about the same, and takes no time: where it begins to hold is looked at first.
        low: It does not hold of it.
        high: The last one.
        tolerance: Share by which what is returned may be too large.
    """
    near = _bisected(nearly, low, high, 0.0) if nearly(high) else high
    step = max(1, near // 25)
    if holds(near):
        while (lower := near - step) > low and holds(lower):
            near, step = lower, 2 * step
        return _bisected(holds, max(lower, low), near, tolerance)
    while near < high and not holds(upper := min(near + step, high)):
        near, step = upper, 2 * step
    return None if near == high else _bisected(holds, near, upper, tolerance)


def _bisected(holds: Callable[[int], bool], low: int, high: int, tolerance: float) -> int:
    while high - low > max(1, int(tolerance * low)):
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def describe_power(
    examples: int, max_drop: float, assumptions: PowerAssumptions = PowerAssumptions(), *, num_candidates: int = 1
) -> str:
    """Says what so many certification examples can certify, before any search.

    Args:
        examples: Examples of the certification split.
        max_drop: Drop that is to be excluded.
        assumptions: About the pruned model.
        num_candidates: Models among which the examples themselves choose: each gets its share of alpha.
    """
    _check(examples, assumptions, "describe_power")
    shared = replace(assumptions, alpha=assumptions.alpha / num_candidates)
    chance = power_of(examples, max_drop, shared)
    assumed = f"If {percent(assumptions.disagreement)} of the answers turn right or wrong and the true drop is "
    assumed += "zero" if assumptions.true_drop == 0 else points(assumptions.true_drop)
    size = f"{examples:,}" if examples <= MOST_EXAMPLES else f"Over {MOST_EXAMPLES:,}"
    text = (
        f"{size} examples, {percent(1 - assumptions.alpha)} confidence. {assumed}, a drop below {points(max_drop)} "
        f"will be certified with a chance of {percent(chance, 0)}."
    )
    if chance >= assumptions.power:
        return text
    needed, smallest = examples_needed(max_drop, shared), detectable_drop(examples, shared)
    times = f"with a chance of {percent(assumptions.power, 0)}"
    if needed is not None:
        enough = f"It takes about {needed:,} examples"
    else:
        hopeless = assumptions.true_drop >= max_drop
        enough = "No number of examples is enough" if hopeless else f"More than {MOST_EXAMPLES:,} examples are needed"
    rest = "nothing" if smallest is None else f"a drop below {points(smallest)}"
    return f"{text} {enough} to certify it {times}; these certify {rest} {times}."


def describe_labels(examples: int, max_drop: float, assumptions: PowerAssumptions = PowerAssumptions()) -> str:
    """Says how many labels it takes if only the examples on which the models disagree are labelled.

    Args:
        examples: Examples that there are.
        max_drop: Drop that is to be excluded.
        assumptions: About the pruned model; its disagreement is taken for the share of changed answers.
    """
    needed = examples_needed(max_drop, assumptions)
    count = examples if needed is None or needed > examples else needed
    labels = math.ceil(min(count, MOST_EXAMPLES) * assumptions.disagreement)
    return (
        f"Labels are needed for the examples on which the models disagree, and for no other: about {labels:,} of "
        f"{count:,} (headprune disagreements)."
    )


def _near_power(examples: int, max_drop: float, assumptions: PowerAssumptions) -> float:
    """Returns the power of the score test whose statistic is normal, at the rates that it converges to."""
    examples, level = min(examples, 10**15), level_of(assumptions.alpha)
    q, drop = assumptions.disagreement, assumptions.true_drop
    improved = (q - drop) / 2
    half = ((2 - drop) * max_drop - q) / 4  # the restricted estimate of the improvements, as in the test
    rate = math.sqrt(half**2 + improved * max_drop * (1 - max_drop) / 2) - half
    assumed_deviation = math.sqrt(2 * rate + max_drop * (1 - max_drop))
    distance = float(ndtri(level)) * assumed_deviation + math.sqrt(examples) * (max_drop - drop)
    return float(ndtr(distance / math.sqrt(q - drop**2)))


def _check(examples: Any, assumptions: Any, where: str) -> None:
    if not is_whole(examples, at_least=1):
        raise InvalidSettingError(
            f"{where}: examples must be a whole number of at least 1, received {shown(examples)}."
        )
    if not isinstance(assumptions, PowerAssumptions):
        raise InvalidSettingError(f"{where}: assumptions must be PowerAssumptions(...), received {shown(assumptions)}.")


def _check_drop(max_drop: Any, where: str) -> None:
    if not (is_number(max_drop) and 0 < max_drop < 1):
        raise InvalidSettingError(
            f"{where}: max_drop must be in (0, 1), received {shown(max_drop)}. One percentage point is 0.01."
        )
