"""What a certification split of a given size can promise, computed before the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.paired import critical_value, level_of, rejection_limits, tail_probabilities

PLANNING_POINTS = 200  # of the grid of disagreements: for planning, where a rounding error breaks no promise
MOST_EXAMPLES = 100_000
DISAGREEMENT = 0.03  # what pruning a few heads and fine-tuning on typically changes, where nothing better is known
POWER = 0.8


@dataclass(frozen=True)
class Expectation:
    """What is expected of a pruned model, to plan by.

    Attributes:
        disagreement: Share of the examples that exactly one of the two models gets right, in (0, 1).
        true_drop: Drop over all data, in [0, disagreement].
        power: Chance of a certificate that is asked for, in (0, 1).
        alpha: One minus the confidence, in (0, 0.5).
        chosen_among: Models among which the certification split itself will choose: each gets its share of alpha.

    Raises:
        InvalidSettingError: A number is out of range.
    """

    disagreement: float = DISAGREEMENT
    true_drop: float = 0.0
    power: float = POWER
    alpha: float = 0.05
    chosen_among: int = 1

    def __post_init__(self) -> None:
        """Checks every number."""
        rules = {
            "disagreement": (0 < self.disagreement < 1, "in (0, 1)"),
            "true_drop": (0 <= self.true_drop <= self.disagreement, "in [0, disagreement]"),
            "power": (0 < self.power < 1, "in (0, 1)"),
            "alpha": (0 < self.alpha < 0.5, "in (0, 0.5)"),  # noqa: PLR2004
            "chosen_among": (self.chosen_among >= 1, "a count of at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InvalidSettingError(
                    f"Expectation: {name} must be {rule}, received {getattr(self, name)!r}. Pass shares: 0.01 is 1 %."
                )


def power_of(n: int, epsilon: float, expected: Expectation = Expectation()) -> float:
    """Returns the chance that n examples certify a drop below epsilon, if the expectation is true.

    Args:
        n: Examples of the certification split.
        epsilon: Drop that is to be excluded, in (0, 1).
        expected: What is expected.

    Raises:
        InvalidSettingError: n is below 1, or epsilon is no share.
    """
    if n < 1 or not 0 < epsilon < 1:
        raise InvalidSettingError(
            f"power_of: n must be at least 1 and epsilon in (0, 1), received {n} and {epsilon}. A drop of 1 % is 0.01."
        )
    critical = critical_value(n, epsilon, level_of(expected.alpha / expected.chosen_among), points=PLANNING_POINTS)
    limits = rejection_limits(critical, n, epsilon)
    return float(tail_probabilities(limits, n, np.array([expected.disagreement]), expected.true_drop)[0])


def smallest_drop(n: int, expected: Expectation = Expectation()) -> float | None:
    """Returns the smallest epsilon, in steps of a thousandth, that n examples certify with the expected power.

    Returns:
        None where they certify nothing below 1.
    """
    low, high = int(1000 * expected.true_drop), 999  # not at low, perhaps at high
    if power_of(n, high / 1000, expected) < expected.power:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_of(n, middle / 1000, expected) >= expected.power
        low, high = (low, middle) if enough else (middle, high)
    return high / 1000


def examples_needed(epsilon: float, expected: Expectation = Expectation()) -> int | None:
    """Returns how many examples certify a drop below epsilon with the expected power, to about a hundredth.

    Returns:
        None where the expected drop is not below epsilon, or 100 000 examples are too few.
    """
    if expected.true_drop >= epsilon:
        return None
    low, high = 1, 64
    while power_of(high, epsilon, expected) < expected.power:
        if high == MOST_EXAMPLES:
            return None
        low, high = high, min(2 * high, MOST_EXAMPLES)
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        enough = power_of(middle, epsilon, expected) >= expected.power
        low, high = (low, middle) if enough else (middle, high)
    return high


def promise_in_words(n: int, epsilon: float, expected: Expectation = Expectation()) -> str:
    """Says what n certification examples can promise, before any search.

    Args:
        n: Examples of the certification split.
        epsilon: Drop that is to be excluded.
        expected: What is expected.
    """
    chance = power_of(n, epsilon, expected)
    assumed = f"If {_percent(expected.disagreement)} of the answers change and the true drop is "
    assumed += "zero" if expected.true_drop == 0 else _percent(expected.true_drop)
    text = (
        f"{n:,} examples, {_percent(1 - expected.alpha)} confidence. {assumed}, a drop below {_percent(epsilon)} will "
        f"be certified with a chance of {_percent(chance, 0)}."
    )
    if chance >= expected.power:
        return text
    needed, smallest = examples_needed(epsilon, expected), smallest_drop(n, expected)
    times = f"with a chance of {_percent(expected.power, 0)}"
    if needed is not None:
        enough = f"It takes about {needed:,} examples"
    else:
        hopeless = expected.true_drop >= epsilon
        enough = "No number of examples is enough" if hopeless else f"More than {MOST_EXAMPLES:,} examples are needed"
    rest = "nothing" if smallest is None else f"a drop below {_percent(smallest)}"
    return f"{text} {enough} to certify it {times}; these certify {rest} {times}."


def _percent(share: float, digits: int = 2) -> str:
    text = f"{100 * share:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + " %"
