"""Numbers of units as text: "0-2,5" stands for 0, 1, 2 and 5."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from hf_headprune.errors import InvalidPlanError, shown

_RANGES = re.compile(r"\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*")


def as_ranges(units: tuple[int, ...]) -> str:
    """Returns ascending units as ranges."""
    starts = [unit for place, unit in enumerate(units) if not place or units[place - 1] != unit - 1]
    ends = [unit for place, unit in enumerate(units) if place + 1 == len(units) or units[place + 1] != unit + 1]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def from_ranges(where: str, text: Any, units: Any) -> tuple[int, ...]:
    """Reads ranges; they are compared with the number of units before they are expanded.

    Args:
        where: Name of the place, for the message.
        text: Ranges, as `as_ranges` wrote them.
        units: Number of units that there are; where it is no integer, nothing is read.

    Raises:
        InvalidPlanError: The text holds no rising ranges, or a unit beyond them.
    """
    is_known = isinstance(text, str) and (not text or _RANGES.fullmatch(text))
    parts = [part.split("-") for part in text.split(",") if part] if is_known else []
    ranges = [(int(part[0]), int(part[-1])) for part in parts]
    bounds = [unit for pair in ranges for unit in pair]
    is_rising = all(first <= last for first, last in ranges) and all(
        before[1] < after[0] for before, after in pairwise(ranges)
    )
    if not is_known or not is_rising:
        raise InvalidPlanError(
            f"{where} must be rising ranges of units such as '0-2,5', or '' for none, received {shown(text)}."
        )
    if type(units) is not int:
        return ()
    if bounds and bounds[-1] >= units:
        raise InvalidPlanError(
            f"{where} has units 0..{units - 1}, received {shown(text)}. Pass the text that to_json returned."
        )
    return tuple(unit for first, last in ranges for unit in range(first, last + 1))
