"""Labels as data sets write them, names or numbers, to what a model was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune.cli.columns import listed
from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class ModelClasses:
    """The classes that a model knows.

    Attributes:
        ids: `{name: class}`.
        num_labels: Their number.
    """

    ids: Mapping[str, int]
    num_labels: int

    @classmethod
    def of(cls, config: Any) -> ModelClasses:
        """Reads `label2id` of a configuration."""
        return cls({str(name): int(index) for name, index in (config.label2id or {}).items()}, config.num_labels)

    def classes_of(self, labels: Iterable[Any], names: Sequence[str] | None, *, where: str) -> dict[Any, int]:
        """Returns the class of each label: by its name, in whatever letter case, or else the number that it is.

        Args:
            labels: Different ones, of the whole split.
            names: Of labels that are numbers, where the data set names them. They are looked at if the model knows any
                of them.
            where: Name of the split and its column, for the message.

        Raises:
            InvalidSettingError: The model does not know a label.
        """
        known = {name.casefold(): index for name, index in self.ids.items()}
        if names is not None and not any(name.casefold() in known for name in names):
            names = None
        wanted = {label: _name(label, names) for label in labels}
        by_name = {label: known[name.casefold()] for label, name in wanted.items() if name.casefold() in known}
        if len(by_name) == len(wanted):
            return by_name
        numbers = {} if names is not None else {label: whole_number(label) for label in wanted}
        by_number = {label: n for label, n in numbers.items() if n is not None and 0 <= n < self.num_labels}
        if len(by_number) == len(wanted):
            return by_number
        unknown = sorted(name for label, name in wanted.items() if label not in by_name.keys() | by_number.keys())
        by_class = sorted(self.ids, key=self.ids.__getitem__)
        raise InvalidSettingError(
            f"{where}: labels must all be names that the model knows, or all numbers from 0 to {self.num_labels - 1}; "
            f"received {listed(unknown or sorted(wanted.values()))}. The model knows {listed(by_class)}. Change the "
            "labels, or name another column with --label-column."
        )


def whole_number(label: Any) -> int | None:
    """Returns the whole number that a label is or spells, or None."""
    number = number_of(label)
    return int(number) if number is not None and number.is_integer() else None


def number_of(label: Any) -> float | None:
    """Returns the finite number that a label is or spells, or None."""
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _name(label: Any, names: Sequence[str] | None) -> str:
    number = whole_number(label) if names is not None else None
    return names[number] if names is not None and number is not None and 0 <= number < len(names) else str(label)
