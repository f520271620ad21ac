"""What a setting may be: questions that take any object and never fail."""

from __future__ import annotations

import math
from itertools import pairwise
from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    """Tells whether a value is a finite number; truth values are none."""
    if is_whole(value):
        return True
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_whole(value: Any, *, at_least: float = -math.inf) -> bool:
    """Tells whether a value is a whole number of at least so much; its type must say so."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least


def is_above(value: Any, bound: float) -> bool:
    """Tells whether a value is a number above a bound."""
    return is_number(value) and value > bound


def is_rising(*values: Any) -> bool:
    """Tells whether all values are numbers and none is below the one before it."""
    return all(map(is_number, values)) and all(first <= second for first, second in pairwise(values))
