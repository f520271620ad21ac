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
HEADS = "r"  # of one unit, where it is a group


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

    @property
    def by_head(self) -> tuple[bool, ...]:
        """Whether each section lists query heads one by one, and not what a group of them shares."""
        return tuple(HEADS in section.split() for section in self.text.split("+"))

    @property
    def of_heads(self) -> int:
        """Number of entries in sections that list query heads one by one."""
        return sum(prod(shape) for (shape, _), by_head in zip(self.sections, self.by_head, strict=True) if by_head)

    def indices(self, units: Iterable[int]) -> list[int]:
        """Returns the entries of units, in the order in which a tensor of these units alone lists them."""
        return self.indices_of_heads(units, 1)

    def indices_of_heads(self, heads: Iterable[int], group: int) -> list[int]:
        """Returns the entries of query heads, and those that their groups share, in the order of `indices`.

        Args:
            heads: Ascending.
            group: Query heads of one unit; the size of "r". With 1, units are what is numbered.
        """
        chosen, start = tuple(heads), 0
        owners = tuple(dict.fromkeys(head // group for head in chosen))
        found: list[int] = []
        for (shape, axis), by_head in zip(self.sections, self.by_head, strict=True):
            each = group if by_head else 1  # entries of the units' axis and the one after it are one axis of heads
            after = prod(shape[axis + 1 :]) // each
            for outer, entry in product(range(prod(shape[:axis])), chosen if by_head else owners):
                first = start + (outer * shape[axis] * each + entry) * after
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
