"""Certificates with labels for the disagreements alone, and without any: the same test, and no verdict too good."""

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify, certify_path, furthest_within
from hf_headprune.guarantee.claim import Claim, Metric
from hf_headprune.guarantee.disagreements import disagreements
from hf_headprune.guarantee.evidence import evidence_of, evidence_of_changes
from hf_headprune.guarantee.outcomes import Outcome, PairedScores
from hf_headprune.guarantee.power import PowerAssumptions, describe_labels
from hf_headprune.guarantee.scored import CertificationData
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.weights_of_plan import WeightsOfPlan
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.tasks.multi_label import MultiLabelScorer
from hf_headprune.tasks.scores import scores_of
from tests.guarantee.test_certificate import names
from tests.support.tasks import task_of

COUNT, DROP = 60, 0.4


def without_labels(rows):
    return [{name: value for name, value in row.items() if name not in ("label", "labels")} for row in rows]


@pytest.fixture(scope="module", params=["classes", "several labels"])
def case(request):
    """A model, two plans, the second cut, and labelled rows."""
    model, rows, _ = task_of(request.param, COUNT)
    full = PruningPlan.of(model)
    site = next(iter(full.kept_heads))
    plans = [full.replace(kept_heads={site: kept}) for kept in ((0, 2, 3), (0, 3))]
    return model, plans, prune_model_(copy.deepcopy(model), plans[1]), rows


def label_of(row):
    return row["label"] if "label" in row else row["labels"]


@pytest.fixture(scope="module")
def labelled(case):
    model, _, pruned, rows = case
    texts = without_labels(rows)
    labels = {index: label_of(rows[index]) for index in disagreements(model, pruned, texts)}
    return texts, labels


def test_labels_of_the_disagreements_give_the_certificate_of_all_labels(case, labelled):
    model, _, pruned, rows = case
    texts, labels = labelled
    assert 0 < len(labels) < COUNT
    whole = certify(model, pruned, rows, max_drop=DROP).evidence
    few = certify(model, pruned, texts, labels=labels, max_drop=DROP).evidence
    assert (few.dense_metric, few.pruned_metric) == (None, None)
    told = {"dense_metric": None, "pruned_metric": None, "p_value": few.p_value, "upper_bound": few.upper_bound}
    assert few == dataclasses.replace(whole, **told)
    assert (few.p_value, few.upper_bound) == pytest.approx((whole.p_value, whole.upper_bound), rel=0.3, abs=2e-6)
    if whole.regressions_to_spare is not None:  # the exact test does not hang on an order
        assert (few.p_value, few.upper_bound) == (whole.p_value, whole.upper_bound)


def test_it_says_that_it_is_about_the_drop_and_how_many_were_labelled(case, labelled):
    model, _, pruned, rows = case
    texts, labels = labelled
    certificate = certify(model, pruned, texts, labels=labels, max_drop=DROP)
    known = f"Of the {COUNT} examples {len(labels)} have a label; the models answer {len(labels)} differently."
    assert known in certificate.statement
    assert f"about the drop; neither model's {certificate.claim.metric} was measured" in certificate.statement
    assert "went from" not in certificate.statement
    assert certificate.examples.labelled.count("1") == len(labels)
    assert Certificate.from_json(certificate.to_json()) == certificate
    given = [{**row, "labels": label_of(rows[i])} if i in labels else row for i, row in enumerate(texts)]
    for data in (CertificationData(texts, labels=labels), given):
        found = verify_certificate(certificate, pruned, data, dense=model)
        assert found.holds, found.to_text()
        assert "models: the pruned model was run on 60 examples" in found.checked
    alone = verify_certificate(certificate, pruned, given)
    assert alone.holds, alone.to_text()
    other = dict(labels)
    first = next(iter(other))
    other[first] = 1 - other[first] if isinstance(other[first], int) else [1.0 - entry for entry in other[first]]
    changed = CertificationData(texts, labels=other)
    assert "label" in names(verify_certificate(certificate, pruned, changed, dense=model))
    worse = CertificationData(texts, labels=dict(list(labels.items())[1:]))
    assert {"label", "split"} <= names(verify_certificate(certificate, pruned, worse, dense=model))


def test_a_disagreement_without_a_label_counts_as_worse_for_a_pass_and_as_better_for_a_fail(case, labelled):
    model, _, pruned, rows = case
    texts, labels = labelled
    least = certify(model, pruned, texts, labels={}, max_drop=DROP)
    whole = certify(model, pruned, rows, max_drop=DROP)
    assert least.evidence.regressions == least.evidence.unlabelled == len(labels)
    assert f"of which {len(labels)} without a label count as worse" in least.statement
    assert least.evidence.upper_bound >= whole.evidence.upper_bound
    assert certify(model, pruned, texts, labels={}, max_drop=0.001).verdict == "INCONCLUSIVE"
    some = dict(list(labels.items())[::2])
    assert whole.evidence.p_value <= certify(model, pruned, texts, labels=some, max_drop=DROP).evidence.p_value


def test_labels_of_examples_on_which_both_agree_change_nothing_but_the_record(case, labelled):
    model, _, pruned, rows = case
    texts, labels = labelled
    few = certify(model, pruned, texts, labels=labels, max_drop=DROP)
    every = certify(model, pruned, texts, labels=[label_of(row) for row in rows], max_drop=DROP)
    assert every.evidence.regressions == few.evidence.regressions
    assert every.evidence.improvements == few.evidence.improvements
    assert every.examples.labelled == "1" * COUNT


def test_a_function_disagrees_where_its_model_does_and_a_file_that_is_missing_is_refused():
    model, rows, _ = task_of("classes", COUNT)
    full = PruningPlan.of(model)
    pruned = prune_model_(copy.deepcopy(model), full.replace(kept_heads={next(iter(full.kept_heads)): (0, 3)}))
    texts = without_labels(rows)

    def answers(dataset):
        with torch.no_grad():
            return [int(pruned(input_ids=torch.tensor([row["input_ids"]])).logits.argmax()) for row in dataset]

    assert disagreements(model, answers, texts) == disagreements(model, pruned, texts) != {}
    with pytest.raises(InvalidSettingError, match=r"disagreements: dense and pruned must be .* received 'none\.onnx'"):
        disagreements(model, "none.onnx", texts)


def test_along_a_path_the_union_of_the_disagreements_is_labelled(case):
    model, plans, pruned, rows = case
    texts = without_labels(rows)
    union = disagreements(model, plans, texts)
    each = [disagreements(model, prune_model_(copy.deepcopy(model), plan), texts) for plan in plans]
    assert set(union) == set(each[0]) | set(each[1])
    assert all(len(answers) >= 2 and list(answers) == sorted(answers) for answers in union.values())
    data = CertificationData(texts, labels={index: label_of(rows[index]) for index in union})
    path, whole = (certify_path(model, plans, it, max_drop=DROP) for it in (data, rows))
    counts = [[(step.regressions, step.improvements) for step in it.steps] for it in (path, whole)]
    assert counts[0] == counts[1]
    assert path.certified_index == 1
    certificate = certify(model, copy.deepcopy(pruned), data, max_drop=DROP, path=path)
    assert verify_certificate(certificate, pruned, data, dense=model).holds
    assert furthest_within(model, plans, data, max_drop=DROP)[0] == 1


def test_without_labels_the_changed_answers_are_bounded(case):
    model, _, pruned, rows = case
    texts = without_labels(rows)
    certificate = certify(model, pruned, texts, "agreement", max_drop=0.9)
    changed = len(disagreements(model, pruned, texts))
    assert (certificate.evidence.regressions, certificate.evidence.changed) == (changed, changed)
    assert certificate.statement.startswith(
        "PASS. Compared with the dense model, the share of answers that the pruned model changes is less than 90 %"
    )
    assert "No label was used: the accuracy drops at most by the share of changed answers" in certificate.statement
    assert not any("labels are right" in sentence for sentence in certificate.assumptions)
    assert Certificate.from_json(certificate.to_json()) == certificate
    for data in (texts, rows):  # labels are not looked at
        assert verify_certificate(certificate, pruned, data, dense=model).holds
    assert verify_certificate(certificate).holds
    labelled = certify(model, pruned, rows, max_drop=0.9).evidence
    assert changed / COUNT >= labelled.dense_metric - labelled.pruned_metric


def test_the_bound_on_changed_answers_is_that_of_clopper_and_pearson():
    claim = Claim("agreement", "agreement", 0.05, 0.05, 0.05)
    for changed, bound in ((0, 1 - 0.05 ** (1 / 200)), (5, 0.0518), (200, 1.0)):
        assert evidence_of_changes(changed, 200, claim).upper_bound == pytest.approx(bound, abs=1e-4)
    assert [evidence_of_changes(changed, 200, claim).verdict for changed in (3, 10, 40)] == [
        "PASS",
        "INCONCLUSIVE",
        "FAIL",
    ]


def test_groups_of_examples_are_bet_on_without_labels_too(case):
    model, _, pruned, rows = case
    grouped = CertificationData([{**row, "text": i // 2} for i, row in enumerate(without_labels(rows))], groups="text")
    certificate = certify(model, pruned, grouped, "agreement", max_drop=0.9)
    assert certificate.claim.kind == "bounded"
    assert "changes is less than 90 %" in certificate.statement
    assert verify_certificate(certificate, pruned, grouped, dense=model).holds


def test_no_label_could_make_an_unlabelled_example_worse():
    generator = np.random.default_rng(0)
    claim = Claim("accuracy", "bounded", 0.3, 0.05, 0.05)
    for _ in range(20):
        gold, before, after = generator.integers(0, 2, (3, 50, 4)).astype(float)
        known = generator.random(50) < 0.5
        likeness = MultiLabelScorer(4).likeness
        outcomes = [Outcome(likeness(answers, gold), answers) for answers in (before, after)]
        whole, few = PairedScores.of(*outcomes), PairedScores.of(*outcomes, None, known, likeness)
        assert (few.differences >= whole.differences - 1e-12).all()
        assert (few.least_differences <= whole.differences + 1e-12).all()
        assert few.contradiction() is None
        assert evidence_of(few, claim).p_value >= evidence_of(whole, claim).p_value - 1e-12


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({COUNT: 0}, "labels must be a mapping of indices"),
        ([0], "or a list with a label or None for each of the 60 examples"),
        ("yes", "labels must be a mapping"),
        ({0: 7}, "labels must be 0..2, received"),
    ],
)
def test_labels_that_can_not_be_are_refused(labels, message):
    model, rows, _ = task_of("classes", COUNT)
    with pytest.raises(InvalidSettingError, match=message):
        certify(model, model, without_labels(rows), labels=labels)


def test_labels_are_given_once_and_for_answers_that_can_be_compared():
    model, rows, task = task_of("classes", COUNT)
    with pytest.raises(InvalidSettingError, match="for examples without labels of their own"):
        certify(model, model, rows, labels={0: 1})
    for metric in ("macro_f1", Metric("own", "binary", task.scores)):
        with pytest.raises(InvalidSettingError, match="are enough for the accuracy of classes"):
            certify(model, model, without_labels(rows), metric, labels={0: 1})
    numbers, rows, _ = task_of("regression", COUNT)
    with pytest.raises(InvalidSettingError, match="'agreement' compares classes and lists of labels"):
        disagreements(numbers, numbers, without_labels(rows))
    assert disagreements(model, model, task_of("classes", COUNT)[1]) == {}
    assert scores_of(model, task_of("classes", COUNT)[1]).shape == (COUNT,)


def test_the_planner_says_how_many_labels():
    words = describe_labels(5000, 0.01, PowerAssumptions(disagreement=0.02))
    assert words.startswith("Labels are needed for the examples on which the models disagree, and for no other: about ")
    numbers = re.search(r"about ([0-9,]+) of ([0-9,]+)", words).groups()
    labels, texts = (int(number.replace(",", "")) for number in numbers)
    assert (labels, texts) == (pytest.approx(28, abs=1), pytest.approx(1376, rel=0.02))


class _Bias(WeightsOfPlan):
    """A refit that lets one class win whatever the text is."""

    kind = fits = belong = other = "bias"


def test_two_refits_of_one_plan_answer_each_for_itself():
    model, rows, _ = task_of("classes", COUNT)
    texts, plan = without_labels(rows), PruningPlan.of(model)
    refit = _Bias({"classifier.bias": model.classifier.bias.detach() + torch.tensor([9.0, 0.0, 0.0])}, plan)
    plans = [RefittedPlan(plan), RefittedPlan(plan, refit)]
    assert plans[0] == plans[1]  # plans are compared without their refits
    assert len(disagreements(model, plans, texts)) == len(disagreements(model, plans[1:], texts)) > 0
