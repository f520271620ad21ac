"""Whether a metric can tell the search anything: checked at its start and at its end, refused or warned of."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from hf_headprune.search.problem import MetricFacts

logger = logging.getLogger(__name__)


def check_reference(metric: float, facts: MetricFacts, max_drop: float) -> tuple[str, ...]:
    """Looks at the metric of the reference, and returns what is suspicious about it.

    Raises:
        InvalidSettingError: It is not finite, or the lowest that there is.
    """
    if not math.isfinite(metric):
        raise InvalidSettingError(
            f"search: the metric of the start must be finite, received {metric}. Check the model and the metric before "
            "the search."
        )
    if facts.is_bounded and metric <= 0:
        raise InvalidSettingError(
            f"search: the start has a metric of {metric:g}, and no model is worse, so every removal would be accepted. "
            "Check the labels (their numbers must be those of the model's classes), or train the model first."
        )
    found = []
    if facts.num_examples is not None and max_drop > 0 and facts.num_examples * max_drop < 1 - 1e-9:
        found.append(
            f"One of the {facts.num_examples} examples weighs {1 / facts.num_examples:.3g}, more than "
            f"max_drop={max_drop:g} allows: use at least {math.ceil(1 / max_drop - 1e-9)} examples."
        )
    if facts.without_input is not None and metric <= facts.without_input:
        found.append(
            f"The start has a metric of {metric:.4g}; a model that always gives the most common answer has "
            f"{facts.without_input:.4g}, so the search may remove all that the model has learned."
        )
    if facts.is_bounded and metric - max_drop <= 0:
        found.append(f"max_drop={max_drop:g} allows any drop from {metric:.4g}, so every removal is accepted.")
    return tuple(found)


def check_repeats(first: float, second: float) -> None:
    """Refuses a function of the user that measures the same model differently.

    Raises:
        InvalidSettingError: The two numbers differ.
    """
    if not same_number(first, second):
        raise InvalidSettingError(
            f"search: the metric measured {first!r} and then {second!r} for the same model. Make the function "
            "deterministic: fix its seeds, its examples and their order, and turn sampling off."
        )


def non_finite_words(count: int, others: int, *, found_any: bool) -> tuple[str, ...]:
    """Says how many of the plans besides the start had a metric that is no number, if any had."""
    if not count:
        return ()
    words = f"{count} of the {others} plans besides the start had a metric that is not a finite number."
    if count == others and not found_any:
        return (f"{words} Nothing could be removed for this reason alone: check the metric.",)
    return (f"{words} They count as too low.",)


def same_number(first: float, second: float) -> bool:
    """Tells whether two measurements agree, up to the rounding of another machine or number of threads."""
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-6)


def tell(warnings: tuple[str, ...]) -> None:
    """Logs warnings."""
    for warning in warnings:
        logger.warning("Search: %s", warning)
