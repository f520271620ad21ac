"""A search that nothing informs is refused, or says so."""

import itertools

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.search.astar import search
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.problem import Measurement, MetricFacts, SearchProblem
from tests.support.classifiers import NUM_LABELS, batches_of, classifier, own_examples, searched
from tests.support.searches import over_heads

SHORT = over_heads(max_evaluations=12)


def share(removed):
    return Measurement(1.0 if len(removed) < 3 else 0.0)


@pytest.mark.parametrize(("count", "max_drop", "needed"), [(1, 0.01, 100), (24, 0.03, 34), (99, 0.01, 100)])
def test_too_few_examples_for_the_drop_are_warned_of_with_the_number_needed(count, max_drop, needed, caplog):
    problem = SearchProblem((1.0,) * 6, share, facts=MetricFacts(num_examples=count))
    found = search(problem, over_heads(max_drop=max_drop, max_evaluations=12))
    assert len(found.warnings) == 1
    assert f"One of the {count} examples" in found.warnings[0]
    assert f"use at least {needed} examples" in found.warnings[0]
    assert found.warnings[0] in caplog.text


@pytest.mark.parametrize(("count", "max_drop"), [(100, 0.01), (3, 0.0), (50, 0.02)])
def test_enough_examples_or_no_drop_at_all_are_not_warned_of(count, max_drop, caplog):
    problem = SearchProblem((1.0,) * 6, share, facts=MetricFacts(num_examples=count))
    assert search(problem, over_heads(max_drop=max_drop, max_evaluations=12)).warnings == ()
    assert caplog.text == ""


def test_a_model_that_is_always_wrong_is_refused():
    model = classifier()
    wrong = [{**example, "label": (example["label"] + 1) % NUM_LABELS} for example in own_examples(model)]
    with pytest.raises(InvalidSettingError, match=r"a metric of 0, and no model is worse.*Check the labels"):
        searched(model, wrong, SHORT)


def test_a_model_no_better_than_the_most_common_answer_is_warned_of():
    model = classifier()
    labels = itertools.cycle([0, 0, 1])
    examples = [{**example, "label": next(labels)} for example in own_examples(model)]
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    found = searched(model, examples, over_heads(max_evaluations=12, max_drop=0.05))
    assert found.reference_metric == pytest.approx(2 / 3)
    assert any("most common answer has 0.6667" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("metric", "expected"), [("accuracy", 0.5), ("macro_f1", 2 / 9), ("matthews_correlation", 0.0)]
)
def test_each_metric_knows_its_value_without_input(metric, expected):
    rows = [{"input_ids": [5, 6], "label": label} for label in (0, 0, 1, 2)]
    facts = ExampleEvaluator(classifier(), batches_of(rows), metric=metric).facts
    assert facts.without_input == pytest.approx(expected)
    assert facts.num_examples == 4


def test_a_drop_that_allows_anything_is_warned_of():
    problem = SearchProblem((1.0,) * 4, lambda removed: Measurement(0.5), facts=MetricFacts(is_bounded=True))
    assert "every removal is accepted" in search(problem, over_heads(max_drop=0.6)).warnings[0]
    assert search(problem, over_heads(max_drop=0.4)).warnings == ()


def test_metrics_that_are_no_numbers_are_counted_and_said():
    problem = SearchProblem((1.0,) * 5, lambda removed: Measurement(np.nan if 1 in removed else 1.0))
    found = search(problem, over_heads(max_evaluations=20))
    wrong = sum(not np.isfinite(step.metric) for step in found.history)
    assert 0 < wrong == found.non_finite < found.evaluations - 1
    assert f"{wrong} of the {found.evaluations - 1} plans besides the start" in found.warnings[0]
    assert found.removed == {0, 2, 3, 4}


def test_where_only_the_start_has_a_number_the_result_says_that_nothing_else_had_one(caplog):
    problem = SearchProblem((1.0,) * 5, lambda removed: Measurement(np.nan if removed else 1.0))
    found = search(problem, over_heads(max_evaluations=20))
    assert (found.removed, found.non_finite) == (frozenset(), found.evaluations - 1)
    assert "Nothing could be removed for this reason alone" in found.warnings[0]
    assert found.warnings[0] in caplog.text


def test_a_function_that_measures_one_model_twice_differently_is_refused():
    model, draws = classifier(), itertools.count()
    evaluator = MetricEvaluator(lambda: 0.5 + 0.001 * (next(draws) % 2), model)
    with pytest.raises(InvalidSettingError, match=r"measured 0\.5\d* and then 0\.5\d* for the same model"):
        search_over_plans(anatomy_of(model), evaluator, SHORT)


def test_a_function_that_repeats_itself_is_measured_once_more_and_searched():
    calls = []

    def measure(removed):
        calls.append(removed)
        return Measurement(1.0)

    found = search(SearchProblem((1.0,) * 3, measure, facts=MetricFacts(may_vary=True)), over_heads())
    assert calls.count(frozenset()) == 2
    assert found.evaluations == len(calls) - 1
