import copy
import json
import tracemalloc

import numpy as np
import pytest

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError
from hf_headprune.plan import MOST_UNITS, PruningPlan, refitted
from tests.support.families import made
from tests.support.models import tiny_bert

SITE = "encoder.layer.0.attention"


@pytest.fixture
def plan():
    return PruningPlan.of(tiny_bert()).replace(kept_heads={SITE: (3, 0)})


def test_equal_plans_have_equal_hashes_whatever_the_order_of_their_sites(plan):
    content = json.loads(plan.to_json())
    content |= {field: dict(reversed(content[field].items())) for field in ("num_heads", "kept_heads")}
    other = PruningPlan.from_json(json.dumps(content))
    assert other == plan
    assert hash(other) == hash(plan)


def test_copies_are_equal_and_units_ascend(plan):
    assert copy.deepcopy(plan) == plan
    assert plan.kept_heads[SITE] == (0, 3)


@pytest.mark.parametrize(
    ("units", "rule"),
    [
        (2, r"takes the units that stay as a sequence such as \(0, 2\), received 2"),
        ((0, 4), r"has units 0\.\.3, received \[4\]"),
        ((-1,), r"has units 0\.\.3, received \[-1\]"),
        ((1.0,), r"has units 0\.\.3, received \[1\.0\]"),
        ((1, 1), "lists a unit twice"),
    ],
)
def test_units_that_a_site_cannot_keep_are_refused(plan, units, rule):
    plan.replace(kept_heads={SITE: [1]})
    with pytest.raises(InvalidPlanError, match=rule):
        plan.replace(kept_heads={SITE: units})


def test_units_may_be_whole_numbers_of_numpy_and_are_plain_ones_afterwards(plan):
    found = plan.replace(kept_heads={SITE: np.array([0, 2])})
    assert found == plan.replace(kept_heads={SITE: (0, 2)})
    assert [type(unit) for unit in found.kept_heads[SITE]] == [int, int]


def test_units_without_their_sites_are_refused(plan):
    with pytest.raises(InvalidPlanError, match=r"must be a mapping from sites to units, received \[0, 1\]"):
        plan.replace(kept_heads=[0, 1])


@pytest.mark.parametrize("units", [(), (0,), (1, 2), (0, 2, 3), (0, 1, 2, 3)])
def test_units_are_written_as_ranges_and_read_back(plan, units):
    changed = plan.replace(kept_heads={SITE: units})
    text = json.loads(changed.to_json())["kept_heads"][SITE]
    assert text == {0: "", 1: "0", 2: "1-2", 3: "0,2-3", 4: "0-3"}[len(units)]
    assert PruningPlan.from_json(changed.to_json()) == changed


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"kept_heads": []}, "must be mappings from sites"),
        ({"num_heads": None}, "must be mappings from sites"),
        ({"num_heads": {SITE: "4", "encoder.layer.1.attention": 4}}, "must count its units .* received '4'"),
        ({"kept_heads": {SITE: "0"}}, "site 'encoder.layer.1.attention' is missing"),
        ({"kept_heads": {SITE: [0]}}, r"must be rising ranges of units .* received \[0\]"),
        ({"kept_heads": {SITE: "3-1"}}, "must be rising ranges of units .* received '3-1'"),
        ({"kept_heads": {SITE: "0-1,1-2"}}, "must be rising ranges of units .* received '0-1,1-2'"),
        ({"kept_heads": {SITE: "0-9", "encoder.layer.1.attention": ""}}, r"has units 0\.\.3"),
        ({"format": "other/1"}, "format must be"),
        ({"more": 1}, r"unknown fields \['more'\]"),
    ],
)
def test_malformed_json_is_refused(plan, wrong, rule):
    content = json.loads(plan.to_json())
    PruningPlan.from_json(json.dumps(content))
    with pytest.raises(InvalidPlanError, match=rule):
        PruningPlan.from_json(json.dumps(content | wrong))


@pytest.mark.parametrize("ranges", ["0-9999999", "0-3,5-9999999", ",".join(["0-9999999"] * 1000)])
def test_ranges_beyond_the_units_of_a_site_are_refused_before_they_are_listed(plan, ranges):
    content = json.loads(plan.to_json())
    content["kept_heads"][SITE] = ranges
    tracemalloc.start()
    with pytest.raises(InvalidPlanError, match=r"has units 0\.\.3|must be rising ranges") as refused:
        PruningPlan.from_json(json.dumps(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert len(str(refused.value)) < 1000


def test_numbers_of_units_that_no_model_has_are_refused_before_they_are_listed(plan):
    content = json.loads(plan.to_json())
    content["num_ffn"] = {f"site {i}": MOST_UNITS // 100 for i in range(101)}
    content["kept_ffn"] = {site: f"0-{units - 1}" for site, units in content["num_ffn"].items()}
    with pytest.raises(InvalidPlanError, match="may count at most 8,388,608 units together"):
        PruningPlan.from_json(json.dumps(content))


NASTY = [None, True, -1, 0.5, float("nan"), 10**400, "x" * 10**6, b"ab", [], {}, [[1]], object(), np.zeros(3)]
NASTY += [range(10**12), range(10**400), {"x" * 10**6: 1}, [10**400], (float("inf"),)]


@pytest.mark.parametrize("value", NASTY, ids=lambda value: type(value).__name__)
def test_whatever_a_plan_is_made_of_it_is_taken_or_refused_in_few_words(plan, value):
    names = ("num_heads", "num_ffn", "kept_heads", "kept_ffn", "heads_per_group")
    fields = {name: dict(getattr(plan, name)) for name in names}
    attempts = [
        lambda: PruningPlan.from_json(value),
        lambda: PruningPlan(value, **fields),
        *(lambda name=name: PruningPlan("bert", **{**fields, name: value}) for name in fields),
        *(lambda name=name: PruningPlan("bert", **{**fields, name: {**fields[name], SITE: value}}) for name in fields),
        lambda: plan.replace(kept_heads=value),
        lambda: plan.replace(kept_heads={SITE: value}),
        lambda: plan.replace(kept_heads={value if isinstance(value, str) else "x": (0,)}),
        lambda: refitted(value),
    ]
    messages = []
    for attempt in attempts:
        try:
            made = attempt()
        except InvalidPlanError as error:
            messages.append(str(error))
        else:
            assert PruningPlan.from_json(made.to_json()) == made
    assert len(messages) >= 8
    assert max(map(len, messages)) <= 2000


def test_units_that_can_be_read_once_only_are_kept(plan):
    fields = {name: dict(getattr(plan, name)) for name in ("num_heads", "num_ffn", "kept_heads", "kept_ffn")}
    fields["kept_heads"][SITE] = iter([3, 1])
    assert PruningPlan("bert", **fields).kept_heads[SITE] == (1, 3)


@pytest.fixture
def grouped():
    return PruningPlan("llama", {"a": 6, "b": 4}, {}, {"a": range(6), "b": range(4)}, {}, {"a": 3})


def test_groups_of_query_heads_keep_equally_many_or_none(grouped):
    plan = grouped.replace(kept_heads={"a": (1, 2, 3, 5)})
    assert plan.groups("a") == ((1, 2), (3, 5))
    assert plan.groups("b") == ((0,), (1,), (2,), (3,))
    assert grouped.replace(kept_heads={"a": (4,)}).groups("a") == ((4,),)
    assert grouped.replace(kept_heads={"a": ()}).groups("a") == ()
    assert PruningPlan.from_json(plan.to_json()) == plan
    with pytest.raises(
        InvalidPlanError, match=r"a must keep equally many of the 3 query heads .* received \[0, 1, 5\]"
    ):
        grouped.replace(kept_heads={"a": (5, 0, 1)})


@pytest.mark.parametrize("groups", [{"a": 4}, {"a": 1}, {"a": True}, {"c": 2}, 3])
def test_heads_per_group_divide_the_heads_of_a_site(groups):
    with pytest.raises(InvalidPlanError, match="heads_per_group"):
        PruningPlan("llama", {"a": 6}, {}, {"a": range(6)}, {}, groups)


def test_a_plan_fits_a_model_with_the_same_groups_only():
    model, _ = made("llama")
    plan = PruningPlan.of(model)
    wrong = PruningPlan(
        plan.model_type, plan.num_heads, plan.num_ffn, plan.kept_heads, plan.kept_ffn, dict.fromkeys(plan.num_heads, 4)
    )
    plan.check_fits(anatomy_of(model))
    with pytest.raises(InvalidPlanError, match="heads per group"):
        wrong.check_fits(anatomy_of(model))
