"""Labels as data sets write them, names or numbers, to what a model was trained on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune.cli.columns import listed
from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_DIGITS = re.compile(r"([+-]?[0-9]{1,300})(?:\.0*)?")  # Python reads no number of thousands of digits


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


@dataclass(frozen=True)
class SeveralLabels:
    """The labels of a model that gives each example any number of them.

    Attributes:
        known: The names and the number of the labels.
    """

    known: ModelClasses

    def of_columns(self, columns: Sequence[str], rows: Mapping[int, Sequence[Any]], *, where: str) -> list[list[float]]:
        """Returns zeros and ones, one for each label of the model, from one column for each.

        Args:
            columns: Named as the labels, in whatever order; or any, in the order of the model's labels.
            rows: The values of these columns, by the number of the row.
            where: Name of the split and its columns, for the message.

        Raises:
            InvalidSettingError: There is not one for each label, or a value is no 0 or 1.
        """
        ids = {name.casefold(): index for name, index in self.known.ids.items()}
        places = [ids.get(column.casefold()) for column in columns]
        if len(columns) != self.known.num_labels or (
            set(places) != set(ids.values()) and any(p is not None for p in places)
        ):
            raise InvalidSettingError(
                f"{where}: there must be one column for each label of the model, {listed(self.known.ids)}, received "
                f"{listed(columns)}. Name them with --label-column, with commas between them."
            )
        if None in places:
            places = [*range(len(columns))]
        found = []
        for number, row in rows.items():
            values = [whole_number(value) for value in row]
            if not set(values) <= {0, 1}:
                raise InvalidSettingError(
                    f"{where}: each label must be 1, if the example has it, or 0, received {listed(row)} in row "
                    f"{number}. Change the values."
                )
            chosen = [0.0] * self.known.num_labels
            for place, value in zip(places, values, strict=True):
                chosen[place] = float(value)  # type: ignore[index, arg-type] # checked above
            found.append(chosen)
        return found

    def of_lists(self, rows: Mapping[int, Any], names: Sequence[str] | None, *, where: str) -> list[list[float]]:
        """Returns zeros and ones, one for each label of the model, from lists.

        Args:
            rows: In each, a 0 or 1 for every label of the model; or the labels that the example has, by name or number.
                By the number of the row.
            names: Of labels that are numbers, where the data set names them.
            where: Name of the split and its column, for the message.

        Raises:
            InvalidSettingError: A row holds no list, or a label that the model does not know.
        """
        wrong = [number for number, row in rows.items() if not isinstance(row, list)]
        if wrong:
            raise InvalidSettingError(
                f"{where}: this model gives each example several labels, so each row must hold a list, received "
                f"{listed([rows[wrong[0]]])} in row {wrong[0]}. A .jsonl or .parquet holds lists; in other files "
                "give each label a column of 0 and 1, and name them with --label-column A,B,C."
            )
        size, values = self.known.num_labels, rows.values()
        if names is None and all(len(row) == size and {*map(whole_number, row)} <= {0, 1} for row in values):
            return [[float(value) for value in row] for row in values]
        meaning = self.known.classes_of({label for row in values for label in row}, names, where=where)
        chosen = [{meaning[label] for label in row} for row in values]
        return [[float(index in labels) for index in range(size)] for labels in chosen]


def whole_number(label: Any) -> int | None:
    """Returns the whole number that a label is, or spells in digits, or None; however large, it is that very number."""
    if isinstance(label, str):
        spelt = _DIGITS.fullmatch(label.strip())
        return int(spelt[1]) if spelt else None
    number = label if isinstance(label, int) else number_of(label)
    return int(number) if number is not None and number == int(number) else None


def number_of(label: Any) -> float | None:
    """Returns the finite number that a label is or spells, or None."""
    if isinstance(label, str) and "_" in label:  # which Python takes for a mark between digits
        return None
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _name(label: Any, names: Sequence[str] | None) -> str:
    number = whole_number(label) if names is not None else None
    return names[number] if names is not None and number is not None and 0 <= number < len(names) else str(label)
