"""How good the search is, not only how correct: what it removes within so many evaluations."""

import dataclasses

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.plan import PruningPlan
from hf_headprune.search.astar import search
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.plans import order_by_costs
from hf_headprune.search.problem import Measurement, SearchProblem
from hf_headprune.search.units import places_of, plan_without, units_of_search
from tests.support.classifiers import batches_of
from tests.support.models import tiny_bert
from tests.support.search_problems import with_probe
from tests.support.searches import over_heads, settings


def additive(base, effects):
    """Examples whose margins, (examples,), change by the sum of the effects, (examples, units), of what is removed."""

    def measure(removed):
        margins = base + effects[:, sorted(removed)].sum(axis=1)
        return Measurement(float((margins > 0).mean()), margins)

    return SearchProblem((1.0,) * effects.shape[1], measure)


def triples_and_decoys(num_triples=3, decoys=10, together=4):
    """Four of ten decoys may go; each triple as a whole, while one or two units of it cost a bit more than allowed."""
    effects = np.zeros((200, decoys + 3 * num_triples))
    effects[:40, :decoys] = -0.9 / together
    for number in range(num_triples):
        for place in range(3):
            examples = 40 + 9 * number + 3 * place + np.arange(3)
            effects[examples, decoys + 3 * number + place] = -1.2
            effects[examples, decoys + 3 * number + (place + 1) % 3] = 0.5  # the next unit repairs it
    return additive(np.ones(200), effects)


def test_sets_that_miss_the_constraint_by_a_little_are_gone_through():
    """Kills a search that goes on from feasible sets alone: it ends at 10."""
    for seed in range(4):
        found = search(triples_and_decoys(), over_heads(max_evaluations=60, max_drop=0.01, seed=seed))
        assert found.gain == 13


def test_sets_far_from_a_known_one_are_not_believed_by_an_estimate():
    """Kills estimates for far sets: the hardest quarter is never hurt, and the bisection ends at 20."""
    base = np.where(np.arange(200) < 60, 0.5, 2.0)

    def measure(removed):
        margins = base - 2.5 * (len(removed) > 25) * (base > 1)
        return Measurement(float((margins > 0).mean()), margins)

    problem = SearchProblem((1.0,) * 40, measure, order=tuple(range(40)))
    assert search(with_probe(problem), over_heads(max_evaluations=7, max_drop=0.01)).gain == 25


def test_units_that_save_more_for_the_same_harm_are_tried_first():
    """Kills an order of candidates that ignores what they save: it ends at 86 in all."""
    total = 0.0
    for seed in range(5):
        harm = np.repeat([0.001, 0.003], 10) * np.random.default_rng(seed).uniform(0.9, 1.1, 20)
        problem = SearchProblem(
            gains=(1.0,) * 10 + (5.0,) * 10,
            measure=lambda removed, harm=harm: Measurement(1 - float(harm[list(removed)].sum())),
            order=tuple(range(20)),  # which tries the small ones first
        )
        total += search(problem, over_heads(max_evaluations=120, max_drop=0.0121, seed=seed)).gain
    assert total >= 91


@pytest.mark.parametrize("limit", [10, 20])
def test_a_good_order_finds_in_few_evaluations_what_no_order_finds_in_many(limit):
    rng = np.random.default_rng(3)
    effects = -np.abs(rng.normal(size=(400, 60))) * rng.permutation(np.geomspace(0.005, 0.5, 60))
    problem = additive(rng.gamma(2.0, 1.0, 400), effects)
    order = tuple(np.argsort(-effects.mean(axis=0)).tolist())
    chosen = over_heads(max_evaluations=limit, max_drop=0.05)
    ordered = search(dataclasses.replace(problem, order=order), chosen)
    assert ordered.gain > search(problem, dataclasses.replace(chosen, max_evaluations=3 * limit)).gain


@pytest.fixture(scope="module")
def trained():
    """A tiny model that has learned to tell sentences by a few of their words, and examples."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = tiny_bert(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = [{"input_ids": rng.integers(10, 40, 8).tolist()} for _ in range(600)]
    rows = [{**row, "label": int(sum(token < 25 for token in row["input_ids"]) > 4)} for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        batch = [rows[place] for place in rng.integers(0, 400, 32)]
        labels = torch.tensor([row["label"] for row in batch])
        loss = model(input_ids=torch.tensor([row["input_ids"] for row in batch]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), rows[:400], rows[400:]


@pytest.mark.slow
def test_costs_order_units_of_a_trained_model_better_than_chance(trained):
    model, train, dev = trained
    anatomy, full, chosen = anatomy_of(model), PruningPlan.of(model), settings(ffn_chunk=32)
    evaluator = ExampleEvaluator(model, batches_of(dev), calibration=batches_of(train))
    order = order_by_costs(evaluator.use_refit(full, ffn=True), full, chosen)
    units = units_of_search(anatomy, full, chosen, order)
    assert evaluator(full).metric > 0.95

    def metric_without(numbers):
        return evaluator(plan_without(full, units, numbers)).metric

    drawn = [np.random.default_rng(seed).permutation(len(units))[:8].tolist() for seed in range(6)]
    assert metric_without(places_of(units, order)[:8]) > np.mean([*map(metric_without, drawn)]) + 0.03
