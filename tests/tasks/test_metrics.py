"""Functions of predictions and references, modules of `evaluate` among them, become scorers of a task."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.classification import ClassScorer
from hf_headprune.tasks.functions import FunctionScorer
from hf_headprune.tasks.metrics import (
    CLASSIFICATION_METRICS,
    PredictionMetric,
    confusion_of,
    is_prediction_metric,
    known_metric,
    pearson,
    spearman,
)
from hf_headprune.tasks.registry import scorer_for
from hf_headprune.tasks.scores import scores_of
from tests.support.tasks import TASKS, task_of

GOLD, FOUND = [0, 1, 1, 1, 0, 1], [0, 1, 0, 0, 1, 1]


class Module:
    """What a module of the package `evaluate` looks like."""

    name = "share"

    def __init__(self, function):
        self.function = function

    def compute(self, *, predictions=None, references=None, **more):
        return {"share": self.function(references, predictions)}


def same(predictions, references):
    return float(np.mean(np.array(predictions) == np.array(references)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (recall_score, 0.5),  # scikit-learn names its arguments, and takes the references first
        (lambda predictions, references: recall_score(references, predictions), 0.5),
        (lambda found, gold: recall_score(gold, found), 0.5),
        (Module(recall_score), 0.5),
        (lambda predictions, references: {"recall": np.float32(0.5)}, 0.5),
        (precision_score, 2 / 3),
    ],
)
def test_predictions_and_references_are_passed_as_they_are_named(given, expected):
    assert is_prediction_metric(given)
    assert PredictionMetric(given)(FOUND, GOLD) == pytest.approx(expected)


@pytest.mark.parametrize(
    "result", [{}, {"f1": 0.5, "accuracy": 0.5}, float("nan"), "0.5x", None, [0.5, 0.5], {"f1": [0.5, 0.6]}], ids=str
)
def test_anything_but_one_number_is_refused(result):
    metric = PredictionMetric(lambda predictions, references: result)
    with pytest.raises(InvalidSettingError, match="must return one finite number, or a mapping with one"):
        metric(FOUND, GOLD)


@pytest.mark.parametrize("other", ["accuracy", None, 5, len, lambda model: 0.5, lambda model, device=None: 0.5, dict])
def test_names_and_functions_of_the_model_are_no_functions_of_predictions(other):
    assert not is_prediction_metric(other)


@pytest.mark.parametrize(
    ("given", "num_labels", "known"),
    [
        (accuracy_score, 3, "accuracy"),
        (same, 3, "accuracy"),
        (lambda p, r: f1_score(r, p, average="micro"), 3, "accuracy"),  # the same number under another name
        (lambda p, r: f1_score(r, p, average="macro"), 3, "macro_f1"),
        (matthews_corrcoef, 3, "matthews_correlation"),
        (f1_score, 2, "f1"),
        (lambda p, r: f1_score(r, p, average="weighted"), 3, None),
        (recall_score, 2, None),
        (lambda p, r: 100 * accuracy_score(r, p), 3, None),
        (lambda p, r: min(accuracy_score(r, p), 0.999), 3, None),
        (lambda p, r: 1 / 0, 3, None),
        (lambda p, r: {"a": 1, "b": 2}, 3, None),
    ],
)
def test_a_function_is_known_by_its_values_and_not_by_its_name(given, num_labels, known):
    assert known_metric(PredictionMetric(given), num_labels) == known


def test_metrics_of_two_classes_and_of_numbers_are_those_of_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    gold, found = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    assert CLASSIFICATION_METRICS["f1"](confusion_of(gold, found, 2)) == pytest.approx(f1_score(gold, found))
    assert CLASSIFICATION_METRICS["f1"](confusion_of(0 * gold, 0 * found, 2)) == 0
    rows = np.stack([rng.integers(0, 6, 40).astype(float), rng.normal(size=40)], axis=1)  # labels with ties
    assert pearson(rows) == pytest.approx(pearsonr(*rows.T).statistic)
    assert spearman(rows) == pytest.approx(spearmanr(*rows.T).statistic)
    assert pearson(rows * [1, 0]) == spearman(rows * [0, 1]) == 0


def test_what_equals_accuracy_is_scored_like_accuracy_and_the_rest_by_itself():
    model, dataset, task = task_of("classes")
    assert scorer_for(model, same) == ClassScorer(3)
    assert (scores_of(model, dataset, same) == task.scores(model, dataset)).all()
    weighted = scorer_for(model, lambda p, r: f1_score(r, p, average="weighted"))
    assert isinstance(weighted, FunctionScorer)
    assert (weighted.kind, weighted.is_mean, weighted.num_rows) == ("corpus", False, 2)
    rows = scores_of(model, dataset, weighted)
    assert weighted.aggregate(rows) == pytest.approx(f1_score(rows[:, 0], rows[:, 1], average="weighted"))
    assert weighted.metric == "function"
    assert scorer_for(model, Module(lambda g, p: 0.5)).metric == "share"


@pytest.mark.parametrize("name", ["several labels", "regression"])
def test_predictions_of_other_tasks_are_lists_of_labels_or_numbers(name):
    model, dataset, _ = task_of(name)
    got = []

    def metric(predictions, references):
        got.append((predictions, references))
        return 0.5

    scorer = scorer_for(model, metric)
    assert scorer.aggregate(scores_of(model, dataset, scorer)) == 0.5
    predictions, references = got[-1]
    assert references == pytest.approx(np.array([example["labels"] for example in dataset]))
    assert np.shape(predictions) == np.shape(references)
    assert {type(v) for v in np.ravel(predictions).tolist()} == ({int} if name == "several labels" else {float})


@pytest.mark.parametrize("name", ["tokens", "spans", "references", "texts"])
def test_tasks_whose_predictions_a_function_can_not_take_say_so(name):
    model = TASKS[name].make()
    assert scorer_for(model).kind == "bounded"
    with pytest.raises(InvalidSettingError, match="can score classes, several labels and numbers; received same"):
        scorer_for(model, same)
