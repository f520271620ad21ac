"""The searches that A* has to beat."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.search_baselines import at_random, beam, greedy, in_order, loss_effects
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import UnitScale, attach, masked
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.problem import Measurement, SearchProblem
from hf_headprune.search.units import Part
from tests.support.classifiers import batches_of, classifier, own_examples, searched
from tests.support.search_problems import PROOF, Counting, brute_force, margin_problem, with_probe
from tests.support.searches import over_heads


def slow_greedy(problem, max_drop):
    """Backward elimination as anybody would write it: measure every child, take the best."""
    threshold = problem.measure(frozenset()).metric - max_drop - 1e-9
    removed = frozenset()
    while True:
        children = [removed | {unit} for unit in range(problem.num_units) if unit not in removed]
        best = max(children, key=lambda child: problem.measure(child).metric, default=None)
        if best is None or problem.measure(best).metric < threshold:
            return removed
        removed = best


@pytest.mark.parametrize("probing", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_backward_elimination_also_when_siblings_race(seed, probing):
    problem = margin_problem(seed, 9)
    asked = with_probe(problem) if probing else problem
    result = greedy(asked, dataclasses.replace(PROOF, max_drop=0.05))
    assert result.removed == slow_greedy(problem, 0.05)
    assert result.measurement.metric == problem.measure(result.removed).metric


def test_racing_leaves_most_children_unfinished():
    result = greedy(with_probe(margin_problem(2, 12, num_examples=200)), dataclasses.replace(PROOF, max_drop=0.1))
    kinds = [step.kind for step in result.history]
    assert kinds.count("bound") > kinds.count("exact")
    assert "estimate" not in kinds


def test_a_beam_finds_at_least_what_greedy_finds_on_average():
    problems = [margin_problem(seed, 10) for seed in range(8)]
    gains = {strategy: sum(strategy(p, PROOF).gain for p in problems) for strategy in (greedy, beam)}
    assert gains[beam] >= gains[greedy]


def test_a_given_order_is_followed_as_far_as_it_holds():
    def measure(removed):
        return Measurement(1.0 if set(removed) <= {3, 1, 4} or len(removed) == 6 else 0.0)

    problem = SearchProblem((1.0,) * 6, measure, order=(3, 1, 4, 5, 2, 0))
    assert in_order(problem, PROOF).removed == set(range(6))
    assert in_order(problem, dataclasses.replace(PROOF, max_evaluations=4)).removed == {3, 1, 4}
    with pytest.raises(InvalidSettingError, match="must have an order"):
        in_order(dataclasses.replace(problem, order=None), PROOF)


@pytest.mark.parametrize("strategy", [greedy, beam, in_order, at_random])
@pytest.mark.parametrize("limit", [1, 7, 300])
def test_every_baseline_keeps_its_budget_and_returns_what_it_measured(strategy, limit):
    problem = dataclasses.replace(margin_problem(4, 8), order=tuple(range(8)))
    counting = Counting(problem.measure)
    chosen = dataclasses.replace(PROOF, max_evaluations=limit)
    result = strategy(dataclasses.replace(problem, measure=counting), chosen)
    assert len(counting.calls) == len(set(counting.calls)) == result.evaluations <= limit
    assert result.removed in counting.calls
    assert result.measurement.metric >= result.threshold - 1e-9
    assert result.gain <= brute_force(problem, PROOF.max_drop)
    assert strategy(problem, chosen).history == result.history


def test_journals_of_different_strategies_are_not_mixed(tmp_path):
    problem = margin_problem(4, 8)
    greedy(problem, PROOF, journal=tmp_path / "a.jsonl")
    with pytest.raises(Exception, match="belongs to another search"):
        beam(problem, PROOF, journal=tmp_path / "a.jsonl")


def test_baselines_search_in_place_of_the_default():
    model = classifier()
    dataset = own_examples(model)
    scores = np.arange(8.0)[::-1]
    result = searched(model, dataset, over_heads(max_drop=0.9), head_scores=scores, algorithm=in_order)
    gone = [8 - len(step.removed) for step in result.history]
    assert result.evaluations == len(gone) <= 9
    removed = {8 - 1 - number for number in range(result.plan.num_removed_heads)}
    heads = [(site, head) for site, count in result.start.num_heads.items() for head in range(count)]
    assert {heads[number] for number in removed} == {(s, h) for s, h in heads if h not in result.plan.kept_heads[s]}
    greedily = searched(model, dataset, over_heads(max_drop=0.1), algorithm=greedy)
    assert greedily.metric >= greedily.threshold


@pytest.mark.parametrize("strategy", [greedy, in_order])
def test_other_strategies_search_plans_too(strategy):
    model = classifier()
    anatomy = anatomy_of(model)
    evaluator = ExampleEvaluator(model, batches_of(own_examples(model)))
    full = PruningPlan.full(anatomy)
    chosen = over_heads(max_drop=0.2, max_evaluations=40)
    result = search_over_plans(anatomy, evaluator, chosen, head_scores=np.arange(8.0), algorithm=strategy)
    assert evaluator(result.plan).metric == result.metric >= result.threshold - 1e-9
    assert result.reference_metric == evaluator(full).metric
    assert result.evaluations <= 40


def test_loss_effects_are_the_slopes_of_the_losses_in_each_gate():
    model = classifier().double()
    anatomy, full = anatomy_of(model), PruningPlan.of(model)
    evaluator = ExampleEvaluator(model, batches_of(own_examples(model)))
    units = [(Part(site.name, 0, (0, 2)),) for site in anatomy.sites]
    effects = loss_effects(model, evaluator, units)

    def losses(site, change):
        gates = torch.ones(site.units, dtype=torch.float64)
        gates[[0, 2]] += change
        handle = attach(model, site, UnitScale(site.unit_width, gates))
        with masked(model, full), torch.no_grad():
            found = [evaluator.scorer.losses(*evaluator._run(batch)).numpy() for batch in evaluator._batches]
        handle.remove()
        return np.concatenate(found)

    for row, site in enumerate(anatomy.sites):
        slope = (losses(site, 1e-2) - losses(site, -1e-2)) / 2e-2
        np.testing.assert_allclose(effects[row], -slope, rtol=1e-2, atol=1e-4)
    assert np.abs(effects).max() > 1e-3
    assert not any(module._forward_pre_hooks for module in model.modules())
