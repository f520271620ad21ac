"""Searches whose evaluations may stop early: the same claims, and everything reported is exact."""

import dataclasses

import numpy as np
import pytest

from hf_headprune.search.astar import search
from hf_headprune.search.bounds import ExactGains, sets_by_gain
from hf_headprune.search.problem import GainTable, Measurement, SearchProblem, units_of
from tests.support.search_problems import (
    PROOF,
    Killed,
    all_sets,
    brute_force,
    margin_problem,
    table_problem,
    with_probe,
)
from tests.support.searches import over_heads

LIMITED = over_heads(max_evaluations=60, max_drop=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_result_is_the_true_optimum_although_most_sets_are_not_measured_to_the_end(seed):
    problem = with_probe(margin_problem(seed, 9))
    result = search(problem, PROOF)
    assert result.optimality == "proved"
    assert result.gain == brute_force(problem, PROOF.max_drop)
    assert result.measurement.kind == "exact"
    assert result.measurement.metric == problem.measure(result.removed).metric


@pytest.mark.parametrize("limit", [2, 30, 90, 200, 512])
def test_a_proof_is_claimed_only_from_what_is_certain(limit):
    problem = with_probe(margin_problem(3, 9), share=0.1)
    result = search(problem, dataclasses.replace(PROOF, max_evaluations=limit))
    if result.optimality == "proved":
        assert result.gain == brute_force(problem, PROOF.max_drop)
    assert result.evaluations <= limit
    claimed = search(problem, dataclasses.replace(PROOF, max_evaluations=512)).optimality
    assert claimed == "proved"


def test_every_incumbent_is_exact_and_the_history_says_what_is_not():
    problem = with_probe(margin_problem(1, 24, num_examples=200))
    result = search(problem, LIMITED)
    assert {step.kind for step in result.history} == {"exact", "bound", "estimate"}
    for step in result.history:
        true = problem.measure(frozenset(step.removed)).metric
        if step.kind == "exact":
            assert step.metric == true
        elif step.kind == "bound":
            assert not step.feasible
            assert true <= step.metric < result.threshold
    incumbents = [step for step in result.history if step.is_incumbent]
    assert all(step.kind == "exact" and step.feasible for step in incumbents)
    assert frozenset(incumbents[-1].removed) == result.removed
    best = max(step.gain for step in result.history if step.kind == "exact" and step.feasible)
    assert best == result.gain
    assert [step.index for step in result.history] == list(range(result.evaluations))


def test_an_estimate_that_does_not_hold_never_becomes_the_result():
    def measure(removed):
        margins = np.full(20, 1.0)
        margins[: len(removed)] = -1.0  # each removal breaks one further example
        return Measurement(float((margins > 0).mean()), margins)

    def probe(removed, question):
        exact = measure(removed)
        if question.floor is None or not question.tentative:
            return exact
        return Measurement(1.0, np.full(20, np.nan), kind="estimate")  # always too hopeful

    problem = SearchProblem((1.0,) * 8, measure, probe=probe)
    result = search(problem, over_heads(max_drop=0.1, max_evaluations=60))
    assert result.gain == 2.0
    assert result.measurement.kind == "exact"
    assert result.measurement.metric == 0.9


@pytest.mark.parametrize("kill_at", [0, 1, 5, 11, 17, 23, 29, 36])
def test_a_search_killed_at_any_measurement_ends_with_the_same_answer(tmp_path, kill_at):
    problem = dataclasses.replace(with_probe(margin_problem(5, 12)), order=tuple(range(12)))
    chosen = over_heads(max_evaluations=36, max_drop=0.05)
    path = tmp_path / "search.jsonl"
    whole = search(problem, chosen)
    killed, resumed = Killed(None, kill_at), Killed(None)
    try:
        search(killed.of(problem), chosen, journal=path)
    except KeyboardInterrupt:
        assert len(killed.calls) == kill_at
    result = search(resumed.of(problem), chosen, journal=path)
    assert result.history == whole.history
    assert result.removed == whole.removed
    assert result.measurement.metric == whole.measurement.metric
    counted = Killed(None)
    search(counted.of(problem), chosen)
    assert 0 <= len(killed.calls) + len(resumed.calls) - len(counted.calls) <= 2  # the start and the best once more


def test_progress_tells_the_rate_and_what_remains():
    seen = []
    search(with_probe(margin_problem(0, 12)), LIMITED, on_progress=seen.append)
    assert [p.remaining for p in seen] == [60 - p.evaluations for p in seen]
    assert seen[-1].remaining == 0
    assert all(progress.evaluations_per_second > 0 for progress in seen)
    assert all(progress.best.kind == "exact" for progress in seen)


# --- joint savings and groups ---


def brute_force_of_tables(problem, max_drop):
    gains = ExactGains(problem.gains, problem.tables)
    threshold = problem.measure(problem.start).metric - max_drop - 1e-9
    masks = [sum(1 << unit for unit in removed) for removed in all_sets(problem.num_units)]
    return max(gains.of(m) for m in masks if problem.measure(frozenset(units_of(m))).metric >= threshold)


def random_tables(seed, num_units):
    rng = np.random.default_rng(seed)
    first = GainTable(
        (tuple(range(0, num_units, 2)),), (0.0, *np.cumsum(rng.choice([0.0, 0.0, 1.5], num_units // 2 - 1)), 4.0)
    )
    wavy = GainTable(((1, 3),), (0.0, -0.5, 2.0))
    return (first, wavy)


@pytest.mark.parametrize("seed", range(30))
def test_optimum_with_joint_savings_is_the_true_one(seed):
    problem = dataclasses.replace(
        table_problem(seed, 6, heredity=seed % 2 == 0), tables=random_tables(seed, 6), groups=(frozenset({0, 2, 4}),)
    )
    result = search(problem, PROOF)
    gains = ExactGains(problem.gains, problem.tables)
    assert result.optimality == "proved"
    assert result.gain == gains.value(brute_force_of_tables(problem, PROOF.max_drop))


@pytest.mark.parametrize("seed", range(8))
def test_limited_search_with_joint_savings_claims_only_what_holds(seed):
    problem = dataclasses.replace(table_problem(seed, 6, heredity=True), tables=random_tables(seed, 6))
    best = ExactGains(problem.gains, problem.tables).value(brute_force_of_tables(problem, PROOF.max_drop))
    for limit in (2, 9, 25):
        result = search(problem, dataclasses.replace(PROOF, max_evaluations=limit))
        assert result.gain <= best <= result.upper_bound
        assert result.optimality == "budget" or result.gain == best


def test_bound_on_joint_savings_holds_for_every_set_and_orders_them():
    gains = ExactGains((1.0,) * 6, random_tables(3, 6))
    masks = list(sets_by_gain(gains))
    assert sorted(masks) == list(range(64))
    bounds = [gains.bound(mask) for mask in masks]
    assert bounds == sorted(bounds, reverse=True)
    assert all(gains.of(mask) <= gains.bound(mask) for mask in masks)
    assert gains.of(0b000101) == gains.of(0b010001)


def crossed_problem(seed, *, heredity):
    """Three groups of three heads, of which one of each may leave twice; once no group is left, that saves no more."""
    groups, across = (0, 1, 2), (3, 4)
    saved = tuple(9 * 0.7 + 3 * 1.3 - (3 - gone) * ((3 - lost) * 0.7 + 1.3) for gone in range(4) for lost in range(3))
    problem = table_problem(seed, 6, heredity=heredity)
    implied = ((frozenset(groups), frozenset(across)),)
    seen = []

    def measure(removed):
        removed = removed | {3, 4} if {0, 1, 2} <= removed else removed
        seen.append(removed)
        return problem.measure(removed)

    tables = (GainTable((groups, across), saved),)
    return dataclasses.replace(problem, measure=measure, tables=tables, implied=implied), seen


@pytest.mark.parametrize("seed", range(30))
def test_optimum_over_groups_and_heads_of_all_groups_is_the_true_one_and_no_set_is_measured_twice(seed):
    problem, seen = crossed_problem(seed, heredity=seed % 2 == 0)
    best = ExactGains(problem.gains, problem.tables).value(brute_force_of_tables(problem, PROOF.max_drop))
    seen.clear()
    result = search(problem, PROOF)
    assert (result.optimality, result.gain) == ("proved", best)
    assert len(seen) == len(set(seen)) == result.evaluations
    for limit in (3, 12) if seed % 2 == 0 else ():
        result = search(problem, dataclasses.replace(PROOF, max_evaluations=limit))
        assert result.gain <= best <= result.upper_bound
        assert result.optimality == "budget" or result.gain == best


def test_bounds_of_a_table_with_two_axes_hold_for_every_set():
    gains = ExactGains((1.0,) * 6, crossed_problem(0, heredity=True)[0].tables)
    assert all(gains.of(mask) <= gains.bound(mask) for mask in sets_by_gain(gains))
    assert gains.value(gains.of(0b111)) == gains.value(gains.of(0b11111)) == pytest.approx(9 * 0.7 + 3 * 1.3)
    assert [gains.value(weight) for weight in gains.weights[:5]] == pytest.approx([2.0, 2.0, 2.0, 0.0, 0.0])


def test_a_group_goes_in_one_step_where_its_parts_alone_do_not():
    def measure(removed):  # a part of the group harms, the whole does not
        return Measurement(1.0 if removed in (frozenset(), group) else 0.0)

    group = frozenset(range(0, 14, 2))
    problem = SearchProblem((1.0,) * 30, measure, groups=(group,))
    result = search(problem, over_heads(max_evaluations=100))
    assert result.removed == group
    alone = search(dataclasses.replace(problem, groups=()), over_heads(max_evaluations=100))
    assert alone.removed == frozenset()
