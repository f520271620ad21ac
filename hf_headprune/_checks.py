"""What a setting may be: questions that take any object and never fail, and one way to refuse what breaks a rule."""

from __future__ import annotations

import math
import re
from dataclasses import Field, fields, is_dataclass, replace
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def is_number(value: Any) -> bool:
    """Tells whether a value is a finite number; truth values do not count."""
    if is_whole(value):
        return True
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_whole(value: Any, *, at_least: float = -math.inf) -> bool:
    """Tells whether a value is a whole number of at least `at_least`, of an integer type."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least


def is_above(value: Any, bound: float) -> bool:
    """Tells whether a value is a number above a bound."""
    return is_number(value) and value > bound


def is_rising(*values: Any) -> bool:
    """Tells whether all values are numbers and none is below the one before it."""
    return all(map(is_number, values)) and all(first <= second for first, second in pairwise(values))


def is_ratio(value: Any) -> bool:
    """Tells whether a value is a number above 0 and at most 1."""
    return is_above(value, 0) and value <= 1


def is_confidence(value: Any) -> bool:
    """Tells whether a value is a confidence level: a number above 0.5 and below 1."""
    return is_above(value, 0.5) and value < 1


def is_block(value: Any) -> bool:
    """Tells whether a value is a shape of blocks: a tuple of rows and columns."""
    return isinstance(value, tuple) and len(value) == 2 and all(is_whole(side, at_least=1) for side in value)  # noqa: PLR2004 - rows, columns


def check(settings: Any, rules: Mapping[str, bool]) -> None:
    """Refuses settings that break a rule, and names every rule that they break.

    Args:
        settings: A dataclass.
        rules: Sentences that name the fields concerned, and whether each holds.

    Raises:
        InvalidSettingError: One does not. The message holds the rules, the values of the fields that they name, and
            what to do.
    """
    broken = "; ".join(rule for rule, holds in rules.items() if not holds)
    if broken:
        values = {field.name: getattr(settings, field.name) for field in fields(settings)}
        inner = values.get("tuning")
        values |= {f"tuning.{field.name}": getattr(inner, field.name) for field in _fields_of(inner)}
        named = {name: value for name, value in values.items() if _names(broken, name)}
        received = ", ".join(f"{name}={shown(value)}" for name, value in named.items())
        kind = type(settings).__name__
        raise InvalidSettingError(
            f"{kind}: {broken}. Received {received or shown(settings)}. Change {' or '.join(named) or 'it'}; "
            f"help({kind}) lists what each setting may be."
        )


def _fields_of(value: Any) -> tuple[Field[Any], ...]:
    return fields(value) if is_dataclass(value) else ()


def _names(text: str, name: str) -> bool:
    """Tells whether a text names a field, and not one inside it."""
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w]|\.\w)", text) is not None


def with_tuning(changes: Mapping[str, Any], tuning: type[Any]) -> dict[str, Any]:
    """Gathers settings that belong to the tuning of a method under "tuning".

    Args:
        changes: Settings by name, of the method or of its tuning.
        tuning: Dataclass of the tuning.

    Raises:
        InvalidSettingError: "tuning" itself is there and of another class.
    """
    names = {field.name for field in fields(tuning)}
    inner = {name: value for name, value in changes.items() if name in names}
    own = {name: value for name, value in changes.items() if name not in names}
    given = own.get("tuning")
    if not inner:
        return own
    if given is not None and not isinstance(given, tuning):
        raise InvalidSettingError(
            f"tuning must be {tuning.__name__}(...), received {shown(given)}. Pass {tuning.__name__}({sorted(inner)[0]}"
            "=...), or leave tuning out."
        )
    return {**own, "tuning": tuning(**inner) if given is None else replace(given, **inner)}


def first_of(problems: Sequence[str], most: int, separator: str = "; ") -> str:
    """Lists the first few of some problems, and says how many more there are."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return f"{separator.join(problems[:most])}{more}"
