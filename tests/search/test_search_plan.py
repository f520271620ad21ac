"""Searches over plans of live models, against brute force."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, SearchStateError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.problem import Measurement
from tests.support.classifiers import NUM_LABELS, batches_of, classifier, examples, own_examples, searched
from tests.support.models import tiny_bert, tiny_marian
from tests.support.searches import Given, over_heads

PROOF = over_heads(max_evaluations=None, max_drop=0.1)


def brute_force(model, evaluator, start, max_drop):
    full = PruningPlan.of(model)
    sites = list(full.kept_heads)
    subsets = [[c for n in range(5) for c in itertools.combinations(range(4), n)] for _ in sites]
    threshold = evaluator(start).metric - max_drop - 1e-9
    plans = [start.replace(kept_heads=dict(zip(sites, kept, strict=True))) for kept in itertools.product(*subsets)]
    plans.sort(key=lambda plan: plan.num_removed_heads, reverse=True)  # the first that holds removes the most
    return next(plan.num_removed_heads for plan in plans if evaluator(plan).metric >= threshold)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 4, 5, 6])
def test_plan_of_a_live_model_is_the_true_optimum(seed):
    model = classifier(seed)
    dataset = own_examples(model)
    result = searched(model, dataset, PROOF)
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    assert result.optimality == "proved"
    assert result.plan.num_removed_heads == brute_force(model, evaluator, result.start, PROOF.max_drop)
    assert evaluator(result.plan).metric == result.metric >= result.threshold - 1e-9
    assert evaluator(result.start).metric == result.reference_metric
    assert result.drop == result.reference_metric - result.metric
    assert result.gain == result.upper_bound == result.plan.num_removed_heads


def test_plan_of_a_model_with_twelve_heads_is_the_true_optimum():
    model = tiny_bert(num_hidden_layers=3, num_labels=NUM_LABELS)
    dataset = own_examples(model)[:8]
    result = searched(model, dataset, PROOF)
    assert sum(result.plan.num_heads.values()) == 12
    assert result.optimality == "proved"
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    assert result.plan.num_removed_heads == brute_force(model, evaluator, result.start, PROOF.max_drop)


def test_plan_that_training_learned_is_the_reference():
    model, dataset = classifier(), examples()
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    full = PruningPlan.of(model)
    first, second = full.kept_heads
    start = full.replace(kept_heads={first: [1, 2], second: []}, kept_ffn={next(iter(full.kept_ffn)): range(10)})
    result = search_over_plans(anatomy_of(model), evaluator, PROOF, start=start)
    assert set(result.history[0].removed) == {(first, 0), (first, 3), *((second, head) for head in range(4))}
    assert result.reference_metric == evaluator(start).metric
    assert result.plan.kept_ffn == start.kept_ffn
    assert result.plan.num_removed_heads == brute_force(model, evaluator, start, PROOF.max_drop)


def test_head_that_training_closed_is_restored_where_that_pays():
    anatomy = anatomy_of(classifier())
    full = PruningPlan.full(anatomy)
    first, second = full.kept_heads
    start = full.replace(kept_heads={second: [1, 2, 3]})

    def measure(plan):
        return Measurement(1.0 if plan == start or 0 in plan.kept_heads[second] else 0.0)

    result = search_over_plans(anatomy, Given(measure), PROOF, start=start)
    assert dict(result.plan.kept_heads) == {first: (), second: (0,)}


@pytest.mark.parametrize(("objective", "unit"), [("heads", 1), ("parameters", 4 * 32 * 8 + 3 * 8), ("macs", None)])
def test_gain_is_counted_in_what_the_objective_names(objective, unit):
    model = classifier()
    chosen = over_heads(objective=objective, max_evaluations=1)
    start = PruningPlan.of(model).replace(kept_heads={"encoder.layer.0.attention": [0]})
    result = search_over_plans(anatomy_of(model), Given(lambda plan: Measurement(1.0)), chosen, start=start)
    per_head = unit or 4 * 128 * 32 * 8 + 2 * 128 * 128 * 8
    assert result.gain == 3 * per_head
    assert (result.objective, result.evaluations, result.optimality) == (objective, 1, "budget")


def test_heads_of_unequal_cost_are_weighed():
    model = tiny_marian()
    anatomy = anatomy_of(model)
    result = search_over_plans(
        anatomy,
        MetricEvaluator(lambda: 1.0, model),
        over_heads(objective="macs"),
        head_scores=np.arange(anatomy.num_heads),
    )
    assert result.plan.num_kept_heads == 0
    assert result.optimality == "proved"
    assert result.plan.num_kept_ffn == PruningPlan.of(model).num_kept_ffn


def test_head_scores_decide_what_is_tried_first():
    model = classifier()
    anatomy = anatomy_of(model)
    scores = np.array([9, 9, 9, 0, 1, 9, 9, 9.0])
    result = search_over_plans(
        anatomy, Given(lambda plan: Measurement(1.0)), over_heads(max_evaluations=2), head_scores=scores
    )
    first, second = PruningPlan.of(model).kept_heads
    assert {(first, 3), (second, 0)} <= set(result.history[1].removed)


def test_result_is_written_as_json():
    model = classifier()
    result = searched(model, own_examples(model), over_heads(max_evaluations=20, max_drop=0.1))
    content = json.loads(result.to_json())
    assert PruningPlan.from_json(json.dumps(content["plan"])) == result.plan
    assert PruningPlan.from_json(json.dumps(content["start"])) == PruningPlan.of(model)
    assert len(content["history"]) == content["evaluations"] == 20
    removed = {tuple(head) for head in [s for s in content["history"] if s["is_incumbent"]][-1]["removed"]}
    assert removed == {
        (site, head) for site, kept in result.plan.kept_heads.items() for head in range(4) if head not in kept
    }


@pytest.mark.slow
def test_killed_search_continues_and_a_changed_model_is_refused(tmp_path):
    model, path = classifier(), tmp_path / "search.jsonl"
    dataset = own_examples(model)
    chosen = over_heads(max_evaluations=30, max_drop=0.1)
    whole = searched(model, dataset, chosen)
    first = searched(model, dataset, dataclasses.replace(chosen, max_evaluations=11), journal=str(path))
    assert first.evaluations == 11
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))
    again = searched(model, dataset, chosen, journal=path)
    assert again.history == whole.history
    with torch.no_grad():
        model.classifier.bias.add_(0.1)
    with pytest.raises(SearchStateError, match="belongs to another search"):
        searched(model, dataset, chosen, journal=path)


def test_start_and_scores_of_another_model_are_refused():
    anatomy = anatomy_of(classifier())
    with pytest.raises(InvalidPlanError, match="does not fit"):
        search_over_plans(
            anatomy, Given(lambda plan: Measurement(1.0)), PROOF, start=PruningPlan.of(tiny_bert(num_hidden_layers=1))
        )
    with pytest.raises(InvalidSettingError, match=r"scores must be 8 finite numbers, received shape \(2, 4\)"):
        search_over_plans(anatomy, Given(lambda plan: Measurement(1.0)), PROOF, head_scores=np.zeros((2, 4)))
