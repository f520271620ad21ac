"""Modules of the package `evaluate` and functions of predictions and references as the metric of certificates."""

import copy
import warnings

import pytest

from hf_headprune.errors import CertificateError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify, certify_path
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.support.evaluate_modules import own_modules
from tests.support.searches import over_heads
from tests.support.tasks import task_of

MODULE = """
import datasets
import evaluate
from sklearn.metrics import {function}


class Module(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {{"value": float({function}(references, predictions{options}))}}
"""


@pytest.fixture
def module(tmp_path):
    """Loads a module from a file, as a user without a network does."""
    evaluate = pytest.importorskip("evaluate", reason="the extra `examples` brings it")

    def load(name, function, options=""):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(MODULE.format(function=function, options=options))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages that it imports
            return evaluate.load(str(folder / f"{name}.py"), cache_dir=str(tmp_path / "cache"))

    with own_modules(tmp_path):
        yield load


@pytest.fixture(scope="module")
def case():
    model, rows, _ = task_of("classes", 80)
    return model, smaller(model, (1,)), rows


def smaller(model, heads):
    plan = PruningPlan.of(model)
    site = next(iter(plan.kept_heads))
    kept = [head for head in plan.kept_heads[site] if head not in heads]
    return prune_model_(copy.deepcopy(model), plan.replace(kept_heads={site: kept}))


def test_a_module_that_counts_right_answers_gets_the_exact_test(case, module):
    model, pruned, rows = case
    accuracy = module("right_answers", "accuracy_score")
    certificate = certify(model, pruned, rows, accuracy, max_drop=0.4)
    assert certificate.claim.kind == "binary"
    assert certificate.evidence == certify(model, pruned, rows, max_drop=0.4).evidence
    assert verify_certificate(certificate, pruned, rows, dense=model, metric=accuracy).holds


def test_a_module_that_is_no_mean_gets_a_bootstrap_that_says_so(case, module):
    model, pruned, rows = case
    matthews = module("matthews", "matthews_corrcoef")
    certificate = certify(model, pruned, rows, matthews, max_drop=0.4)
    assert (certificate.claim.kind, certificate.claim.metric) == ("corpus", "matthews_correlation")
    assert "This is a bootstrap: the confidence is approximate, not finite-sample." in certificate.statement
    gold, found = certificate.examples.scores("corpus").dense.T.astype(int).tolist()
    expected = matthews.compute(predictions=found, references=gold)["value"]
    assert certificate.evidence.dense_metric == pytest.approx(expected)
    assert verify_certificate(certificate, pruned, rows, dense=model, metric=matthews).holds


def share_of_class_2(predictions, references):
    """Recall of class 2."""
    found = [guess for guess, label in zip(predictions, references, strict=True) if label == 2]
    return {"recall": found.count(2) / max(1, len(found))}


def test_any_function_of_predictions_and_references_can_be_certified(case):
    model, pruned, rows = case
    certificate = certify(model, pruned, rows, share_of_class_2, max_drop=0.45)
    assert (certificate.claim.metric, certificate.claim.kind) == ("share_of_class_2", "corpus")
    words = "Scored of each example: its label and the model's prediction, by a function that was passed."
    assert words in certificate.statement
    assert Certificate.from_json(certificate.to_json()) == certificate
    given = {"model": pruned, "dataset": rows, "dense": model}
    assert verify_certificate(certificate, **given, metric=share_of_class_2).holds
    unread = verify_certificate(certificate, **given)
    assert unread.holds
    assert any("the metric was not given" in text for text in unread.skipped)
    with pytest.raises(
        CertificateError, match="about 'share_of_class_2' of kind 'corpus', received a metric 'accuracy'"
    ):
        verify_certificate(certificate, **given, metric="accuracy")
    path = certify_path(model, [PruningPlan.of(model)], rows, share_of_class_2, max_drop=0.45)
    assert path.certified_index == 0  # no answer differs
    tight = certify_path(model, [PruningPlan.of(model)], rows, share_of_class_2, max_drop=0.01)
    assert tight.certified_index is None  # a single answer more would matter


def test_a_function_that_fails_or_returns_no_share_is_refused(case):
    model, pruned, rows = case
    for function, message in (
        (lambda predictions, references: {"a": 0.5, "b": 0.5}, "one finite number"),
        (lambda predictions, references: 50.0 + predictions[0], r"must be in \[-1, 1\]"),
    ):
        with pytest.raises(InvalidSettingError, match=message):
            certify(model, pruned, rows, function)


def test_a_search_takes_the_module_too_and_its_certificate_is_about_it(case, module):
    model, _, rows = case
    macro = module("macro", "f1_score", ', average="macro", zero_division=0')
    found = search_plan(model, rows, macro, over_heads(max_evaluations=12, max_drop=0.3), progress=False).search
    named = search_plan(model, rows, "macro_f1", over_heads(max_evaluations=12, max_drop=0.3), progress=False).search
    assert (found.plan, found.metric) == (named.plan, named.metric)
    by_function = search_plan(
        model, rows, share_of_class_2, over_heads(max_evaluations=12, max_drop=0.3), progress=False
    )
    assert by_function.search.metric >= by_function.search.threshold - 1e-9
    assert by_function.report.metric.name == "share_of_class_2"
