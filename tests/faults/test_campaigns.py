"""A smoke of each campaign of benchmarks/faults, and what its result file says."""

from __future__ import annotations

import random

import pytest

from benchmarks.faults import disks, endurance, kills, mutations
from benchmarks.faults.campaign import forked, run

pytestmark = pytest.mark.slow

GOOD = {
    "kills": {"ended as the unbroken run"},
    "mutations": {"a result or a refusal in words", "an error of our own"},
    "disks": {"the trained model was pruned and saved", "the same answers", "refused"},
    "endurance": {"read as it was saved", "ran to its end", "flat"},
}


@pytest.mark.parametrize(("campaign", "count"), [(kills, 1), (mutations, 24), (disks, 3), (endurance, 2)])
def test_a_campaign_finds_nothing_wrong_and_goes_on_where_it_was(tmp_path, campaign, count):
    name, file = campaign.__name__.rpartition(".")[2], tmp_path / "results.json"
    content = run(file, campaign.cases(count, tmp_path / "scratch"))
    assert set(content["summary"]) <= GOOD[name]
    assert len(content["cases"]) == count + (campaign is endurance)

    def fails():
        raise AssertionError("a case that is done is not done again")

    assert run(file, ((case, fails) for case in content["cases"]))["cases"] == content["cases"]


def test_a_child_that_is_killed_or_fails_is_told_from_one_that_ends():
    def fails():
        raise ValueError

    def sleeps():
        while True:
            pass

    assert forked(lambda: {"a": 1}) == (0, {"a": 1})
    assert forked(fails) == (1, None)
    assert forked(sleeps, kill_after=0.01) == (-9, None)


def test_of_a_complete_campaign_counts_and_failing_cases_are_kept(tmp_path):
    outcomes = {"plan 0": "a hang", "plan 8": "an error of our own", "config.json 1": "an error of our own"}
    content = {"cases": {name: {"outcome": outcome} for name, outcome in outcomes.items()}, "summary": {}}
    kept = mutations.shortened(content)
    assert kept == {
        "summary": {},
        "count": 3,
        "formats": {"plan": {"a hang": 1, "an error of our own": 1}, "config.json": {"an error of our own": 1}},
        "failing": {"plan 0": {"outcome": "a hang"}},
    }


def test_mutations_change_what_they_are_given():
    text = '{"a": [1, {"b": "c"}], "d": null}'
    found = {mutations.mutate(text, random.Random(seed))[0] for seed in range(200)}
    assert len(found) > 50
    assert text not in found or len(found) > 51
