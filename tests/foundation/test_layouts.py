"""Layouts: which entries belong to which unit, against reshaping and indexing."""

from __future__ import annotations

import math

import pytest
import torch

from hf_headprune._layouts import Entries

SIZES = {"u": 4, "d": 3, "r": 2}
LAYOUTS = ["u", "u d", "3 u d", "u 3 d", "u r d", "2 u", "u r d + u d + u d"]


def owners_by_reshaping(layout):
    found = []
    for section in layout.split("+"):
        names = section.split()
        shape = [int(name) if name.isdecimal() else SIZES[name] for name in names]
        axis = names.index("u")
        units = torch.arange(4).view([-1 if place == axis else 1 for place in range(len(shape))])
        found += units.expand(shape).flatten().tolist()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_entry_has_the_unit_that_reshaping_gives_it(layout):
    entries = Entries.of(layout, SIZES)
    assert entries.owners() == owners_by_reshaping(layout)
    assert entries.total == len(entries.owners()) == 4 * entries.per_unit


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (1, 3), (2,), ()])
def test_the_entries_that_stay_are_a_tensor_of_these_units_alone(layout, kept):
    entries = Entries.of(layout, SIZES)
    owners = entries.owners()
    assert entries.indices(kept) == [entry for entry, unit in enumerate(owners) if unit in kept]
    left = [owners[entry] for entry in entries.indices(kept)]
    smaller = Entries.of(layout, {**SIZES, "u": len(kept)})
    assert [kept[unit] for unit in smaller.owners()] == left


@pytest.mark.parametrize(
    ("layout", "plain"),
    [("u d", True), ("u r d", True), ("3 u d", False), ("u 3 d", False), ("2 u", False), ("u r d + u d + u d", False)],
)
def test_values_come_last(layout, plain):
    entries = Entries.of(layout, SIZES)
    assert entries.is_plain is plain
    last = entries.last_part()
    owners = entries.owners()
    assert [owners[entry] for entry in last] == [unit for unit in range(4) for _ in range(len(last) // 4)]
    names = layout.rpartition("+")[2].split()
    rows = torch.arange(entries.total)[-math.prod(int(n) if n.isdecimal() else SIZES[n] for n in names) :]
    grid = rows.view([int(name) if name.isdecimal() else SIZES[name] for name in names])
    literal = next((place for place, name in enumerate(names) if name.isdecimal()), None)
    expected = grid if literal is None else grid.select(literal, -1)
    assert last == expected.flatten().tolist()


@pytest.mark.parametrize("heads", [(0, 1, 2, 3, 4, 5, 6, 7), (0, 3, 6), (4, 5), ()])
def test_query_heads_take_what_their_group_shares_along(heads):
    entries = Entries.of("u r d + u d + u d", SIZES)
    rows = torch.arange(entries.total)
    query, key, value = rows[:24].view(4, 2, 3), rows[24:36].view(4, 3), rows[36:].view(4, 3)
    groups = sorted({head // 2 for head in heads})
    expected = torch.cat([query.reshape(8, 3)[list(heads)], key[groups], value[groups]]).flatten().tolist()
    assert entries.indices_of_heads(heads, 2) == expected
    assert entries.of_heads == 24
