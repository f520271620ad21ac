"""Settings of any type: taken, or refused by name; never an error of another kind."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import MISSING, fields

import numpy as np
import pytest
from torch import nn

from hf_headprune import (
    AStarSearch,
    BlockMovement,
    Distillation,
    LatencySettings,
    SecondOrder,
    SplitSettings,
    SubsetGates,
    plan_for_budget,
)
from hf_headprune._checks import is_above, is_number, is_rising, is_whole
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import InvalidSettingError
from hf_headprune.learn.distillation.settings import DistillationTuning
from hf_headprune.learn.gates.settings import GateTuning
from hf_headprune.learn.movement.settings import MovementTuning
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.search.settings import SearchTuning
from tests.support.models import tiny_bert

SETTINGS = {
    SubsetGates: {},
    BlockMovement: {},
    SecondOrder: {"density": 0.5},
    Distillation: {"teacher": nn.Linear(1, 1)},
    GateTuning: {},
    MovementTuning: {},
    SecondOrderTuning: {},
    DistillationTuning: {},
    AStarSearch: {},
    SearchTuning: {},
    LatencySettings: {},
    SplitSettings: {},
}
ANYTHING = ["x", [], object(), (), {}, math.nan, math.inf, -1, -0.5, True, ("x", "y"), ("x",), 2.5, None]
TAKEN = {
    ("metric", "x"),
    ("mask_bias", True),
    ("whole_groups", True),
    ("refit", True),
    ("uniform", True),
    ("greater_is_better", True),
    ("group_column", "x"),
    ("columns", ("x",)),
    ("columns", ("x", "y")),
}  # and nowhere else
FIELDS = [(kind, field.name) for kind in SETTINGS for field in fields(kind)]


def may_be_taken(kind, name, value):
    field = kind.__dataclass_fields__[name]
    if value is None:
        return "None" in field.type or field.default is MISSING
    return (value == 2.5 and "float" in field.type) or any(
        name == n and value == given and type(value) is type(given) for n, given in TAKEN
    )


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_a_value_that_makes_no_sense_is_refused_by_name_and_fails_in_no_other_way(kind, name):
    for value in ANYTHING:
        wrong = {**SETTINGS[kind], name: value}
        if may_be_taken(kind, name, value):
            with suppress(InvalidSettingError):  # what is another type may be out of range, too
                kind(**wrong)
        else:
            with pytest.raises(InvalidSettingError, match=rf"{kind.__name__}: .*\b{name}\b.* [Rr]eceived"):
                kind(**wrong)


@pytest.mark.parametrize(
    "value", [value for value in ANYTHING if value is not None], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize(
    "make",
    [
        lambda value: HeadPruneCallback(density=value),
        lambda value: HeadPruneCallback(gates=SubsetGates(), density=value),
        lambda value: BlockMovement.hybrid(density=value),
        lambda value: BlockMovement.struct(penalty=None if value == 2.5 else value, width_multiple=value),
        BlockMovement.ffn_units,
        lambda value: SecondOrder.to_speedup(-1 if value == 2.5 else value),
        lambda value: plan_for_budget(tiny_bert(), [], density=0.5, batch_size=value),
    ],
)
def test_what_makes_settings_refuses_it_too(make, value):
    with pytest.raises(InvalidSettingError):
        make(value)


def test_numbers_are_told_from_what_only_looks_like_them():
    assert all(map(is_number, (0, -2.5, np.float32(1), np.int64(3), 10**400)))
    assert not any(map(is_number, (True, "1", None, math.nan, math.inf, 1j, [1])))
    assert is_whole(np.int64(3), at_least=3)
    assert not any(is_whole(value, at_least=3) for value in (2, 3.0, True, "3", None))
    assert is_above(0.1, 0)
    assert not any(is_above(value, 0) for value in (0, "1", None, math.nan))
    assert is_rising(0, 0.5, 0.5, 1)
    assert not any(is_rising(0, value, 1) for value in (-0.1, 1.1, "x", None, math.nan))
