"""The search against brute force, its anytime behaviour, and its state on disk."""

import copy
import dataclasses
import itertools
import json
import pickle
import tracemalloc
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_headprune.errors import InvalidSettingError, SearchStateError
from hf_headprune.search import ledger
from hf_headprune.search.astar import search
from hf_headprune.search.bounds import ExactGains, Nogoods, best_consistent, completion_bound, sets_by_gain
from hf_headprune.search.problem import GainTable, Measurement, SearchProblem, to_mask, units_of
from hf_headprune.search.settings import AStarSearch, SearchTuning
from tests.support.search_problems import (
    PROOF,
    Counting,
    all_sets,
    brute_force,
    exact_gain,
    margin_problem,
    table_problem,
)
from tests.support.searches import TUNING, changed, over_heads


@pytest.mark.parametrize("heredity", [True, False])
@pytest.mark.parametrize("seed", range(120))
def test_result_is_the_true_optimum_of_a_random_set_function(seed, heredity):
    rng = np.random.default_rng([seed, 7])
    num_units = int(rng.integers(1, 7))
    gains = tuple(rng.choice([0.1, 0.2, 0.3, 1.5, 2.0], num_units)) if seed % 2 else None
    start = frozenset(np.flatnonzero(rng.random(num_units) < 0.3).tolist()) if seed % 3 == 0 else frozenset()
    problem = table_problem(seed, num_units, heredity=heredity, gains=gains, start=start, with_order=seed % 5 == 0)
    result = search(problem, changed(PROOF, constraint_slack=[0.0, 0.1][seed % 2], seed=seed))
    assert result.optimality == "proved"
    assert exact_gain(problem.gains, result.removed) == brute_force(problem, PROOF.max_drop)
    assert result.measurement.metric == problem.measure(result.removed).metric
    assert result.measurement.metric >= result.threshold - 1e-9
    assert result.upper_bound == result.gain


@pytest.mark.parametrize("seed", range(12))
def test_result_is_the_true_optimum_with_margins_and_ten_units(seed):
    problem = margin_problem(seed, 10)
    result = search(problem, PROOF)
    assert result.optimality == "proved"
    assert result.gain == brute_force(problem, PROOF.max_drop)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_result_is_the_true_optimum_of_any_set_function(data):
    num_units = data.draw(st.integers(1, 4))
    right = dict(
        zip(all_sets(num_units), data.draw(st.lists(st.integers(0, 5), min_size=16, max_size=16)), strict=False)
    )
    gains = data.draw(st.lists(st.floats(1e-3, 1e6), min_size=num_units, max_size=num_units))
    problem = SearchProblem(tuple(gains), lambda s: Measurement(right[s] / 5))
    result = search(problem, PROOF)
    assert exact_gain(gains, result.removed) == brute_force(problem, PROOF.max_drop)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("limit", [1, 2, 5, 9, 17])
def test_limited_search_keeps_its_budget_and_claims_only_what_holds(seed, limit):
    problem = table_problem(seed, 5, heredity=True)
    counting = Counting(problem.measure)
    result = search(dataclasses.replace(problem, measure=counting), dataclasses.replace(PROOF, max_evaluations=limit))
    best = brute_force(problem, PROOF.max_drop)
    assert len(counting.calls) == len(set(counting.calls)) == result.evaluations <= limit
    assert result.removed in counting.calls
    assert result.gain <= best <= result.upper_bound
    if result.optimality != "budget":
        assert result.gain == best


def test_budget_decides_what_may_be_claimed():
    problem = margin_problem(3, 9)
    claims = {
        search(problem, dataclasses.replace(PROOF, max_evaluations=limit)).optimality for limit in (2, 60, 120, 512)
    }
    assert {"budget", "proved"} <= claims


def test_optimum_under_heredity_is_claimed_before_it_is_proved():
    def measure(removed):  # unit 0 must stay, each other one is free
        return Measurement(0.0 if 0 in removed else 1.0)

    result = search(SearchProblem((1.0,) * 12, measure), dataclasses.replace(PROOF, max_evaluations=40))
    assert (result.optimality, result.gain, result.upper_bound) == ("proved", 11.0, 11.0)
    one_left = search(SearchProblem((6.0, *[1.0] * 11), measure), dataclasses.replace(PROOF, max_evaluations=40))
    assert (one_left.optimality, one_left.gain) == ("under heredity", 11.0)


def test_what_was_all_evaluated_is_proved_where_savings_are_no_sums_too():
    """The bound of a set over units whose savings a table gives may exceed what any set saves."""
    table = GainTable(((1, 2),), (0.0, 1.75, 2.81))
    problem = SearchProblem(
        gains=(0.3, 1.405, 1.405), tables=(table,), measure=lambda removed: Measurement(0.0 if removed else 1.0)
    )
    found = search(problem, over_heads(max_drop=0.01, max_evaluations=None))
    assert (found.removed, found.optimality) == (frozenset(), "proved")


def test_a_set_is_found_of_which_no_part_is_feasible():
    def measure(removed):  # either unit alone harms, both together do not
        return Measurement(0.0 if len(removed) == 1 else 1.0)

    assert search(SearchProblem((1.0, 1.0), measure), PROOF).removed == {0, 1}


def test_units_removed_at_the_start_are_restored_where_that_pays():
    def measure(removed):  # unit 0 excludes all others
        return Measurement(0.5 if 0 in removed and len(removed) > 1 else 1.0)

    problem = SearchProblem((1.0,) * 4, measure, start=frozenset({0}))
    result = search(problem, PROOF)
    assert result.removed == {1, 2, 3}
    assert result.history[0].removed == (0,)


@pytest.mark.parametrize("num_units", [16, 30])
def test_swaps_restore_units_in_problems_too_large_for_a_proof(num_units):
    def measure(removed):
        return Measurement(0.0 if 0 in removed and len(removed) > 3 else 1.0)

    problem = SearchProblem((1.0,) * num_units, measure, start=frozenset({0}))
    result = search(problem, over_heads(max_evaluations=120))
    assert result.gain > 3


def test_start_is_returned_when_nothing_can_be_removed():
    problem = SearchProblem((1.0,) * 4, lambda s: Measurement(1.0 if not s else 0.0))
    result = search(problem, PROOF)
    assert (result.removed, result.gain, result.optimality) == (frozenset(), 0.0, "proved")


def test_everything_is_removed_when_nothing_matters():
    result = search(SearchProblem((1.0,) * 30, lambda s: Measurement(1.0)), over_heads())
    assert (result.gain, result.optimality) == (30.0, "proved")


@pytest.mark.parametrize("right", range(101))
def test_constraint_counts_examples_and_not_round_off(right):
    problem = SearchProblem((1.0,), lambda s: Measurement((right if s else min(right + 7, 100)) / 100))
    allowed = search(problem, over_heads(max_drop=0.07, constraint_slack=0.0))
    assert allowed.removed == {0}
    if right < 93:
        refused = search(problem, over_heads(max_drop=0.069, constraint_slack=0.0))
        assert refused.removed == frozenset()


def test_metric_that_is_not_a_number_makes_a_set_infeasible():
    problem = SearchProblem((1.0, 1.0), lambda s: Measurement(float("nan") if 1 in s else 1.0))
    assert search(problem, PROOF).removed == {0}


def test_surrogate_finds_more_than_a_random_order_for_the_same_budget():
    limited = over_heads(max_evaluations=60, max_drop=0.05)
    with_margins = without = 0.0
    for seed in range(6):
        problem = margin_problem(seed, 24, num_examples=200)
        blind = dataclasses.replace(problem, measure=lambda s, p=problem: Measurement(p.measure(s).metric))
        with_margins += search(problem, limited).gain
        without += search(blind, limited).gain
    assert with_margins > without


def test_scores_give_a_first_answer_at_once():
    problem = dataclasses.replace(
        SearchProblem((1.0,) * 40, lambda s: Measurement(1.0 if max(s, default=0) < 25 else 0.0)),
        order=tuple(range(40)),
    )
    result = search(problem, over_heads(max_evaluations=8))
    assert result.gain == 25


def test_history_holds_every_evaluation_and_marks_the_incumbents():
    seen = []
    problem = margin_problem(0, 8)
    result = search(problem, dataclasses.replace(PROOF, max_evaluations=50), on_progress=seen.append)
    assert [step.index for step in result.history] == list(range(result.evaluations))
    incumbents = [step for step in result.history if step.is_incumbent]
    assert frozenset(incumbents[-1].removed) == result.removed
    assert [step.gain for step in incumbents] == sorted(step.gain for step in incumbents)
    assert [progress.step for progress in seen] == list(result.history)
    assert seen[-1].best == incumbents[-1]


def test_same_seed_gives_the_same_course_and_another_seed_another():
    problem = margin_problem(1, 14)
    limited = over_heads(max_evaluations=80, max_drop=0.05)
    assert search(problem, limited).history == search(problem, limited).history
    assert search(problem, limited).history != search(problem, dataclasses.replace(limited, seed=1)).history


def test_memory_bound_drops_open_sets_and_the_search_goes_on():
    problem = margin_problem(2, 16)
    result = search(problem, over_heads(max_evaluations=100, max_open=2, max_drop=0.05))
    assert result.evaluations == 100
    assert result.gain > 0


# --- state on disk ---


def kill_and_resume(problem, chosen, path, kill_at):
    killed = Counting(problem.measure, kill_at)
    with pytest.raises(KeyboardInterrupt):
        search(dataclasses.replace(problem, measure=killed), chosen, journal=path)
    resumed = Counting(problem.measure)
    result = search(dataclasses.replace(problem, measure=resumed), chosen, journal=path)
    return killed.calls, resumed.calls, result


@pytest.mark.parametrize("kill_at", range(0, 40, 3))
def test_killed_search_continues_where_it_was(tmp_path, kill_at):
    problem = margin_problem(5, 12)
    chosen = over_heads(max_evaluations=40, max_drop=0.05)
    whole = search(problem, chosen)
    before, after, result = kill_and_resume(problem, chosen, tmp_path / "search.jsonl", kill_at)
    assert len(before) == kill_at
    assert set(before) & set(after) <= {frozenset(), *after[:2]}  # the start and the best, measured anew
    assert result.history == whole.history
    assert result.removed == whole.removed
    assert (result.measurement.margins == whole.measurement.margins).all()


def test_journal_cut_anywhere_loses_at_most_one_evaluation(tmp_path):
    problem = table_problem(4, 3, heredity=False)
    path = tmp_path / "search.jsonl"
    whole = search(problem, PROOF, journal=path)
    content = path.read_bytes()
    for length in [*range(0, len(content), 7), content.index(b"\n"), content.index(b"\n") + 1]:
        path.write_bytes(content[:length])
        counting = Counting(problem.measure)
        result = search(dataclasses.replace(problem, measure=counting), PROOF, journal=path)
        assert result.history == whole.history
        known = max(0, content[:length].count(b"\n") - 1)
        assert 0 <= len(counting.calls) - (whole.evaluations - known) <= (2 if known else 0)
        assert path.read_bytes() == content


def test_finished_search_is_replayed_after_a_look_at_its_start_and_its_best(tmp_path):
    problem = margin_problem(6, 8)
    chosen = over_heads(max_evaluations=30)
    first = search(problem, chosen, journal=tmp_path / "deep" / "er" / "search.jsonl")
    seen = []
    again = search(
        dataclasses.replace(problem, measure=Counting(problem.measure, kill_at=2)),
        chosen,
        journal=tmp_path / "deep" / "er" / "search.jsonl",
        on_progress=seen.append,
    )
    assert again.history == first.history
    assert all(progress.replayed for progress in seen)


def test_search_continues_with_a_larger_budget(tmp_path):
    problem = margin_problem(6, 14)
    path = tmp_path / "search.jsonl"
    search(problem, over_heads(max_evaluations=40, max_drop=0.05), journal=path)
    counting = Counting(problem.measure)
    larger = over_heads(max_evaluations=60, max_drop=0.05)
    result = search(dataclasses.replace(problem, measure=counting), larger, journal=path)
    assert result.history == search(problem, larger).history
    assert len(counting.calls) < 60


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "other weights"},
        {"gains": (1.0,) * 7 + (2.0,)},
        {"start": frozenset({1})},
        {"order": tuple(range(8))},
    ],
)
def test_journal_of_another_problem_is_refused(tmp_path, change):
    problem = margin_problem(7, 8)
    path = tmp_path / "search.jsonl"
    search(problem, PROOF, journal=path)
    content = path.read_bytes()
    with pytest.raises(SearchStateError, match="belongs to another search"):
        search(dataclasses.replace(problem, **change), PROOF, journal=path)
    with pytest.raises(SearchStateError, match="belongs to another search"):
        search(problem, dataclasses.replace(PROOF, seed=9), journal=path)
    assert path.read_bytes() == content


def test_lengths_that_gains_were_counted_at_do_not_make_another_search(tmp_path):
    problem = margin_problem(7, 8)  # its gains are what they are
    path = tmp_path / "search.jsonl"
    chosen = dataclasses.replace(PROOF, objective="macs")
    search(problem, chosen, journal=path)
    content = path.read_bytes()
    search(problem, changed(chosen, seq_len=64, target_len=9), journal=path)
    assert path.read_bytes() == content


def test_damaged_journal_is_refused_wherever_the_damage_is(tmp_path):
    problem = table_problem(8, 3, heredity=False)
    path = tmp_path / "search.jsonl"
    search(problem, PROOF, journal=path)
    content = path.read_bytes()
    for position in range(len(content) - 1):
        damaged = bytearray(content)
        damaged[position] = ord("7") if damaged[position] != ord("7") else ord("8")
        if bytes(damaged).count(b"\n") < content.count(b"\n"):
            continue  # a lost line end merges two lines; covered below
        path.write_bytes(damaged)
        with pytest.raises(SearchStateError, match=r"damaged|belongs to another|format must be"):
            search(problem, PROOF, journal=path)
        assert path.read_bytes() == damaged
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].rstrip(), *lines[2:]]))
    with pytest.raises(SearchStateError, match="line 2: the journal is damaged"):
        search(problem, PROOF, journal=path)


def test_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    for content in ("my notes", "my notes\n", '{"a": 1}\n'):
        path.write_text(content)
        with pytest.raises(SearchStateError, match=r"notes\.txt"):
            search(table_problem(1, 2, heredity=True), PROOF, journal=path)
        assert path.read_text() == content


def test_a_journal_whose_numbers_no_longer_come_out_is_kept_and_the_search_begins_anew(tmp_path, caplog):
    problem, path = margin_problem(7, 8), tmp_path / "search.jsonl"
    chosen = over_heads(max_evaluations=20, max_drop=0.05)
    assert search(problem, chosen, journal=path).gain > 0
    first = path.read_bytes()

    def shifted(removed):  # another metric, of which no fingerprint knows
        measured = problem.measure(removed)
        return Measurement(measured.metric - 0.1, measured.margins)

    other = dataclasses.replace(problem, measure=shifted)
    assert search(other, chosen, journal=path).history == search(other, chosen).history
    assert (tmp_path / "search.jsonl.bak").read_bytes() == first
    assert "search.jsonl.bak and the search begins anew" in caplog.text
    assert "the reference measured 0." in caplog.text
    second = path.read_bytes()
    search(problem, chosen, journal=path)
    assert [(tmp_path / f"search.jsonl{end}").read_bytes() for end in (".bak", ".bak2")] == [first, second]
    caplog.clear()
    alike_at_the_start = lambda removed: shifted(removed) if removed else problem.measure(removed)  # noqa: E731
    search(dataclasses.replace(problem, measure=alike_at_the_start), chosen, journal=path)
    assert "the best plan measured" in caplog.text
    assert len(list(tmp_path.iterdir())) == 4


def test_a_search_stops_when_its_time_is_spent_and_a_resumed_one_counts_its_own(tmp_path, monkeypatch):
    problem, path, clock = margin_problem(5, 12), tmp_path / "search.jsonl", types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(ledger, "time", types.SimpleNamespace(monotonic=lambda: clock.now))

    def measure(removed):
        clock.now += 1.0
        return problem.measure(removed)

    slow = dataclasses.replace(problem, measure=measure)
    chosen = over_heads(max_evaluations=60, max_drop=0.05, max_seconds=9.5)
    first = search(slow, chosen, journal=path)
    assert (first.evaluations, first.optimality) == (10, "budget")
    assert problem.measure(first.removed).metric >= first.threshold - 1e-9
    clock.now = 1e6
    second = search(slow, chosen, journal=path)
    whole = search(problem, over_heads(max_evaluations=60, max_drop=0.05))
    assert 17 <= second.evaluations <= 20
    assert second.history == whole.history[: second.evaluations]


def test_a_search_of_many_units_needs_a_number_of_evaluations_or_a_time(monkeypatch):
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(ledger, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    found = search(margin_problem(5, 30), over_heads(max_evaluations=None, max_seconds=60, max_drop=0.05))
    assert 10 < found.evaluations <= 120
    assert found.gain > 0


def test_journal_is_one_json_line_per_evaluation(tmp_path):
    path = tmp_path / "search.jsonl"
    result = search(margin_problem(1, 4), PROOF, journal=path)
    header, *entries = map(json.loads, path.read_text().splitlines())
    assert header["format"] == "hf_headprune.search/3"
    assert [tuple(entry["removed"]) for entry in entries] == [step.removed for step in result.history]


# --- settings and problems ---


@pytest.mark.parametrize(
    ("setting", "wrong", "right"),
    [
        ("max_drop", -0.01, 0.0),
        ("max_drop", float("nan"), 2.0),
        ("max_drop", "1%", 0.01),
        ("objective", "speed", "macs"),
        ("metric", 3, "accuracy"),
        ("max_evaluations", 0, 1),
        ("max_evaluations", 10.0, None),
        ("max_seconds", 0, 0.5),
        ("max_seconds", float("nan"), None),
        ("heuristic_weights", (1.0, 2.0), (2.0, 1.0)),
        ("heuristic_weights", (3.0, 2.0), (1.0,)),
        ("heuristic_weights", (), (5, 1)),
        ("heuristic_weights", 1.0, (1.0,)),
        ("constraint_slack", float("inf"), 0.0),
        ("seed", -1, 3),
        ("max_open", True, 1),
        ("refit", None, False),
    ],
)
def test_wrong_setting_is_refused_at_construction(setting, wrong, right):
    accepted = over_heads(**{setting: right})
    holder = accepted.tuning if setting in TUNING else accepted
    assert getattr(holder, setting) == right
    with pytest.raises(InvalidSettingError, match=f"{type(holder).__name__}: {setting} must be .*Received {setting}="):
        over_heads(**{setting: wrong})


def test_tuning_of_another_type_is_refused():
    with pytest.raises(InvalidSettingError, match="AStarSearch: tuning must be SearchTuning"):
        AStarSearch(tuning={"refit": False})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), dataclasses.replace])
def test_equal_settings_behave_equally_however_they_were_made(copied):
    given = over_heads(max_evaluations=40, max_drop=0.05, heuristic_weights=(2.0, 1.0))
    twin = copied(given)
    assert (twin, hash(twin)) == (given, hash(given))
    problem = margin_problem(1, 14)
    assert search(problem, twin).history == search(problem, given).history
    assert AStarSearch() == AStarSearch(tuning=SearchTuning()) == copied(AStarSearch())


def test_proof_of_too_many_units_is_refused_before_any_measurement():
    with pytest.raises(InvalidSettingError, match="at most 24 units allow it, received 25"):
        search(SearchProblem((1.0,) * 25, Counting(None, kill_at=0)), PROOF)


# --- bounds ---


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.integers(1, 63), max_size=8))
def test_bounds_equal_or_exceed_the_best_set_without_a_nogood(gains, failed):
    exact, nogoods = ExactGains(gains), Nogoods()
    failed = [mask & exact.everything for mask in failed]
    for mask in failed:
        nogoods.add(mask)
    failed = [mask for mask in failed if mask]
    consistent = [m for m in range(exact.everything + 1) if not any(f & ~m == 0 for f in failed)]
    best = max(map(exact.of, consistent))
    bound, found = best_consistent(exact, nogoods, above=-1, max_nodes=10_000)
    assert bound == best == exact.of(found)
    assert found in consistent
    assert best_consistent(exact, nogoods, above=best, max_nodes=10_000)[1] is None
    assert best_consistent(exact, nogoods, above=-1, max_nodes=1)[0] >= best
    for mask in consistent:
        above = max(exact.of(other) for other in consistent if mask & ~other == 0)
        assert exact.of(mask) + completion_bound(exact, nogoods, mask) >= above


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=7))
def test_sets_come_once_each_with_falling_gain(gains):
    exact = ExactGains(gains)
    masks = list(sets_by_gain(exact))
    assert sorted(masks) == list(range(2 ** len(gains)))
    assert [exact.of(mask) for mask in masks] == sorted(map(exact.of, masks), reverse=True)


@given(st.sets(st.integers(0, 200)))
def test_masks_and_sets_of_units_are_the_same_thing(units):
    assert units_of(to_mask(units)) == tuple(sorted(units))


@pytest.mark.slow
def test_memory_does_not_grow_with_evaluations(tmp_path):
    num_examples = 20_000
    retained = {}

    def measure(removed):
        margins = np.full(num_examples, 0.5, dtype=np.float32)
        margins[: 40 * len(removed)] = -0.1
        return Measurement(float((margins > 0).mean()), margins)

    def record(progress):
        retained[progress.evaluations] = tracemalloc.get_traced_memory()[0]

    settings = over_heads(max_drop=0.005, constraint_slack=0.0, max_evaluations=240, max_open=2)
    tracemalloc.start()
    try:
        problem = SearchProblem(gains=(1.0,) * 30, measure=measure)
        search(problem, settings, journal=tmp_path / "journal.jsonl", on_progress=record)
    finally:
        tracemalloc.stop()
    assert max(retained) >= 85
    assert retained[max(retained)] - retained[30] < 20 * 4 * num_examples  # of 55 sets or more, evaluated since
