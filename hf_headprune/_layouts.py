"""Layouts: which entries along one dimension of a tensor belong to which unit, in the notation of the field.

`"u d"` says that a dimension lists its units one after the other, each with `d` entries. `"3 u d"` is query, key and
value in one matrix, one after the other; `"u 3 d"` the same with the three of each head together; `"u r d"` are `r`
query heads of each group; `"u r d + u d + u d"` joins sections of different sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

UNIT = "u"


@dataclass(frozen=True)
class Entries:
    """The entries along one dimension, section by section.

    Attributes:
        sections: Of each section, the sizes of its axes and the place of the units' axis among them.
        text: The layout.
    """

    sections: tuple[tuple[tuple[int, ...], int], ...]
    text: str

    @classmethod
    def of(cls, text: str, sizes: Mapping[str, int]) -> Entries:
        """Reads a layout.

        Args:
            text: Such as "u r d + u d".
            sizes: Of each letter that it names, the number of units as "u".
        """
        sections = []
        for section in text.split("+"):
            names = section.split()
            shape = tuple(int(name) if name.isdecimal() else sizes[name] for name in names)
            sections.append((shape, names.index(UNIT)))
        return cls(tuple(sections), text)

    @property
    def total(self) -> int:
        """Number of entries."""
        return sum(prod(shape) for shape, _ in self.sections)

    @property
    def per_unit(self) -> int:
        """Number of entries of one unit."""
        return sum(prod(shape[:axis] + shape[axis + 1 :]) for shape, axis in self.sections)

    @property
    def is_plain(self) -> bool:
        """Whether this is one matrix, with the entries of each unit together, in the order of the units."""
        return len(self.sections) == 1 and self.sections[0][1] == 0 and not self._stacked

    @property
    def _stacked(self) -> bool:
        """Whether a number among the letters says that several matrices are in one."""
        return any(name.isdecimal() for name in self.text.split())

    def indices(self, units: Iterable[int]) -> list[int]:
        """Returns the entries of units, in the order in which a tensor of these units alone lists them."""
        chosen, start = tuple(units), 0
        found: list[int] = []
        for shape, axis in self.sections:
            after = prod(shape[axis + 1 :])
            before = product(range(prod(shape[:axis])), chosen)
            for outer, unit in before:
                first = start + (outer * shape[axis] + unit) * after
                found += range(first, first + after)
            start += prod(shape)
        return found

    def owners(self) -> list[int]:
        """Returns the unit of each entry."""
        found: list[int] = []
        for shape, axis in self.sections:
            after = prod(shape[axis + 1 :])
            one = [unit for unit in range(shape[axis]) for _ in range(after)]
            found += one * prod(shape[:axis])
        return found

    def last_part(self) -> list[int]:
        """Returns the entries of the last of several matrices in one: the values, where queries and keys come first.

        They are listed unit by unit.
        """
        shape, axis = self.sections[-1]
        after, start = prod(shape[axis + 1 :]), self.total - prod(shape)
        if axis == 0 and self._stacked:  # the last of each unit
            width = shape[-1]
            ends = [start + (unit + 1) * after for unit in range(shape[0])]
            return [entry for end in ends for entry in range(end - width, end)]
        first = start + (prod(shape[:axis]) - 1) * shape[axis] * after
        return list(range(first, first + shape[axis] * after))
