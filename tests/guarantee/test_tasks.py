"""Every task that is scored can be certified without code of the user's, and its certificate says what was scored."""

import copy

import numpy as np
import pytest
import torch

from hf_headprune.errors import CertificateError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.certify import certify, certify_path, furthest_within, name_of
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.scored import CertificationData, ScoredSplit
from hf_headprune.guarantee.splits import three_way_split
from hf_headprune.guarantee.verify import verify_certificate
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.tasks.batches import Batching
from tests.support.tasks import TASKS, task_of

COUNT = 60
SEVERE = 0.8  # a drop that tiny models with a head less stay within
WORDS = {
    "classes": "whether the predicted class is right",
    "several labels": "the Jaccard index of its labels and those predicted, 1 where both are none",
    "regression": "1 - (|error| / 5), at least 0; labels run from 0 to 5",
    "regression by mse": "1 - (|error| / 5)^2, at least 0; labels run from 0 to 5",
    "tokens": "the share of its labelled tokens whose predicted class is right",
    "spans": "the F1 of the tokens of the predicted and the right span, each window for itself",
    "spans by match": "whether the predicted span is the right one, each window for itself",
    "references": "the geometric mean of the probabilities of its reference's tokens (1 / perplexity)",
    "texts": "the geometric mean of the probabilities of its tokens, each given those before it (1 / perplexity)",
    "embeddings": "the cosine similarity of its embedding to that of the dense model",
}


def smaller(model, heads=(1,)):
    plan = PruningPlan.of(model)
    site = next(iter(plan.kept_heads))
    plan = plan.replace(kept_heads={site: [head for head in plan.kept_heads[site] if head not in heads]})
    return prune_model_(copy.deepcopy(model), plan)


def asked_metric(name):
    """The first metric of the task needs no name."""
    return TASKS[name].metric if name in ("regression by mse", "spans by match") else None


@pytest.fixture(scope="module", params=TASKS)
def case(request):
    model, rows, task = task_of(request.param, COUNT)
    pruned = smaller(model)
    certificate = certify(model, pruned, rows, asked_metric(request.param), max_drop=SEVERE)
    return request.param, task, model, pruned, rows, certificate


def test_the_numbers_are_those_of_a_slow_evaluation(case):
    _, task, model, pruned, rows, certificate = case
    before, after = (task.scores(each, rows) for each in (model, pruned))
    evidence = certificate.evidence
    assert certificate.claim.kind == task.kind
    assert (evidence.dense_metric, evidence.pruned_metric) == pytest.approx((before.mean(), after.mean()), abs=1e-5)
    assert evidence.regressions + evidence.improvements > 0
    assert certificate.verdict == "PASS"


def test_the_certificate_says_what_was_scored_and_holds_when_it_is_checked(case):
    name, _, model, pruned, rows, certificate = case
    assert f"Scored of each example: {WORDS[name]}." in certificate.statement
    assert Certificate.from_json(certificate.to_json()) == certificate
    for metric in (None, TASKS[name].metric):
        found = verify_certificate(certificate, pruned, rows, dense=model, metric=metric)
        assert found.holds, found.to_text()
        assert "models: the pruned model was run on 60 examples" in found.checked
    assert verify_certificate(certificate).holds
    worse = smaller(model, heads=(0, 2, 3))
    assert "pruned model" in {finding.name for finding in verify_certificate(certificate, worse, rows).findings}


def test_plans_are_certified_and_chosen_by_the_same_scores(case):
    name, task, model, pruned, rows, _ = case
    full = PruningPlan.of(model)
    site = next(iter(full.kept_heads))
    plans = [full, full.replace(kept_heads={site: [0, 2, 3]})]
    path = certify_path(model, plans, rows, asked_metric(name), max_drop=SEVERE)
    assert path.certified_index == 1
    certificate = certify(model, pruned, rows, asked_metric(name), max_drop=SEVERE, path=path)
    assert certificate.path == path
    drop = task.scores(model, rows).mean() - task.scores(pruned, rows).mean()
    for allowed, last in ((drop + 1e-4, 1), (drop - 1e-4, 0)):
        if 0 <= allowed < 1:
            assert furthest_within(model, plans, rows, asked_metric(name), max_drop=allowed)[0] == last


def test_labels_are_read_before_the_model_runs_and_a_rehearsal_runs_few_examples(case):
    _, _, model, _, rows, _ = case
    sizes = []
    hook = model.register_forward_pre_hook(lambda *given: sizes.append(len(given[2]["input_ids"])), with_kwargs=True)
    ScoredSplit(CertificationData(rows, batching=Batching(batch_size=9)), None, model).rehearse(model)
    assert sizes == [COUNT % 9]
    for name in {"labels", "label", "start_positions"} & set(rows[0]):
        with pytest.raises(InvalidSettingError, match="example 5 has no label"):
            ScoredSplit(CertificationData([*rows[:5], {**rows[5], name: None}, *rows[6:]]), None, model)
    assert len(sizes) == 1
    hook.remove()


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_of_a_regression_get_a_bootstrap(name):
    model, rows, _ = task_of("regression", COUNT)
    pruned = smaller(model)
    certificate = certify(model, pruned, rows, name, max_drop=0.3)
    assert (certificate.claim.metric, certificate.claim.kind) == (name, "corpus")
    assert "This is a bootstrap: the confidence is approximate" in certificate.statement
    assert "Scored of each example: its label and its predicted number." in certificate.statement
    assert verify_certificate(certificate, pruned, rows, dense=model).holds
    assert any("the metric was not given" in text for text in verify_certificate(certificate).skipped)


def test_groups_of_windows_are_bet_on_whatever_the_scores_are():
    for name in ("spans", "spans by match", "classes"):
        model, rows, task = task_of(name, COUNT)
        grouped = CertificationData([{**row, "question": i // 2} for i, row in enumerate(rows)], groups="question")
        pruned = smaller(model)
        certificate = certify(model, pruned, grouped, task.metric, max_drop=SEVERE)
        assert certificate.claim.kind == "bounded"
        assert "Groups of examples are independent" in certificate.assumptions[-1]
        alone = certify(model, pruned, rows, Metric("own", "bounded", task.scores), max_drop=SEVERE)
        assert certificate.evidence.p_value > alone.evidence.p_value
        for given in (grouped, grouped.dataset):
            assert verify_certificate(certificate, pruned, given, dense=model).holds
            assert verify_certificate(certificate, pruned, given, dense=model, metric=task.metric).holds


@pytest.mark.parametrize("column", ["example_id", "overflow_to_sample_mapping"])
def test_windows_of_one_example_are_known_by_the_names_that_scripts_give_their_column(column):
    model, rows, task = task_of("spans", COUNT)
    windows = [{**row, column: i // 2} for i, row in enumerate(rows)]
    pruned = smaller(model)
    certificate = certify(model, pruned, windows, task.metric, max_drop=SEVERE)
    asked = certify(model, pruned, CertificationData(windows, groups=column), task.metric, max_drop=SEVERE)
    assert (certificate.evidence, certificate.examples) == (asked.evidence, asked.examples)
    assert certificate.examples.groups is not None
    found = verify_certificate(certificate, pruned, windows, dense=model)
    assert found.holds
    assert not any("groups" in text for text in found.skipped)
    one_each = [{**row, column: i} for i, row in enumerate(rows)]
    alone = certify(model, pruned, one_each, task.metric, max_drop=SEVERE)
    assert alone.examples.groups is None
    assert verify_certificate(alone, pruned, windows, dense=model).holds  # made before the names were known
    split = three_way_split(windows)
    assert not {row[column] for row in split.search} & {row[column] for row in split.certify}


def test_an_example_without_a_number_is_not_taken_for_independent():
    model, rows, task = task_of("spans", COUNT)
    windows = [{**row, "example_id": i // 2} for i, row in enumerate(rows)]
    pruned = smaller(model)
    for nothing in (None, float("nan")):
        windows[7]["example_id"] = nothing
        for use in (three_way_split, lambda split: certify(model, pruned, split, task.metric, max_drop=SEVERE)):
            with pytest.raises(
                InvalidSettingError, match=f"the column 'example_id' .* 1 of {len(rows)} examples have no"
            ):
                use(windows)
    nowhere = [{**row, "example_id": None} for row in rows]
    assert certify(model, pruned, nowhere, task.metric, max_drop=SEVERE).examples.groups is None


def test_numbers_that_a_tokenizer_counts_anew_in_each_batch_tell_nothing(caplog):
    model, rows, task = task_of("spans", COUNT)
    pruned, column = smaller(model), "overflow_to_sample_mapping"
    one_each = [{**row, column: i % 10} for i, row in enumerate(rows)]
    assert certify(model, pruned, one_each, task.metric, max_drop=SEVERE).examples.groups is None
    assert "counts anew" not in caplog.text
    windows = [{**row, column: i // 2 % 10} for i, row in enumerate(rows)]
    assert certify(model, pruned, windows, task.metric, max_drop=SEVERE).examples.groups is None
    assert "'overflow_to_sample_mapping' counts anew in each batch" in caplog.text


def test_the_first_sentence_says_against_what():
    model, rows, _ = task_of("classes", COUNT)
    pruned = smaller(model)
    known = certify(model, pruned, rows, max_drop=SEVERE, reference_name="the fine-tuned model before pruning")
    assert known.statement.startswith("PASS. Compared with the fine-tuned model before pruning, the accuracy of the")
    assert certify(model, pruned, rows, max_drop=SEVERE).reference == "the dense model"
    assert verify_certificate(known, pruned, rows, dense=model).holds
    assert "what the pruned model is compared with: the fine-tuned model before" in verify_certificate(known).to_text()
    for wrong in ("", "x" * 201, 5, None):
        with pytest.raises(InvalidSettingError, match="reference_name must be a text of 1 to 200 letters"):
            certify(model, pruned, rows, max_drop=SEVERE, reference_name=wrong)


@pytest.mark.parametrize(
    ("max_drop", "words"),
    [
        (0.01, "than 1 percentage point on"),
        (0.02, "than 2 percentage points on"),
        (0.005, "than 0.5 percentage points on"),
    ],
)
def test_drops_are_in_percentage_points(max_drop, words):
    model, rows, _ = task_of("classes", COUNT)
    sentences = certify(model, smaller(model), rows, max_drop=max_drop).statement.split(". ")
    assert words in sentences[1]
    assert "percentage points are excluded" in " ".join(sentences)
    assert " %" not in sentences[1].replace("95 % confidence", "")


@pytest.fixture(scope="module")
def refitted():
    model, rows, _ = task_of("classes", COUNT)
    settings = SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8))
    return model, rows, second_order_plan(model, TASKS["classes"].dataset(model, 40, 9), settings)


def test_plans_with_their_refit_are_tested_as_they_are_cut(refitted):
    model, rows, found = refitted
    full = PruningPlan.of(model)
    results = [RefittedPlan(full, found.refit), RefittedPlan(found.plan, found.refit)]  # one refit, two plans
    before = copy.deepcopy(model.state_dict())
    path = certify_path(model, results, rows, max_drop=0.49)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    cut = prune_model_(copy.deepcopy(model), results[1])
    own = TASKS["classes"].scores(model, rows) - TASKS["classes"].scores(cut, rows)
    assert (path.steps[-1].regressions, path.steps[-1].improvements) == ((own > 0).sum(), (own < 0).sum())
    bare = certify_path(model, [full, found.plan], rows, max_drop=0.49)
    assert bare.steps[-1] != path.steps[-1]
    assert ", refitted, plan " in path.steps[-1].name
    assert name_of(results[1]).replace(", refitted", "") == name_of(found.plan) == bare.steps[-1].name


def test_a_result_can_be_what_plans_are_compared_with(refitted):
    model, rows, found = refitted
    path = certify_path(model, [found], rows, max_drop=0.4, reference=found)
    assert (path.steps[0].regressions, path.steps[0].improvements) == (0, 0)
    assert furthest_within(model, [found], rows, max_drop=0.0, reference=found)[0] == 0


def test_a_score_of_another_meaning_is_no_check_of_a_certificate():
    model, rows, task = task_of("classes", COUNT)
    pruned = smaller(model)
    by_user = Metric("accuracy", "binary", lambda m, d: 1 - task.scores(m, d))
    certificate = certify(model, pruned, rows, by_user, max_drop=SEVERE)
    alone = verify_certificate(certificate, pruned, rows, dense=model)
    assert alone.holds  # nothing says how it was scored
    assert any("models or metric were not given" in text for text in alone.skipped)
    named = verify_certificate(certificate, pruned, rows, dense=model, metric="accuracy")
    assert {finding.name for finding in named.findings} == {"scored"}
    with pytest.raises(CertificateError, match="received a metric 'macro_f1' of kind 'corpus'"):
        verify_certificate(certificate, pruned, rows, metric="macro_f1")
    assert "Scored of each example: a score that a function of the user returned." in certificate.statement


def test_metrics_that_are_negative_can_be_certified():
    model, rows, _ = task_of("regression", COUNT)
    opposite = [{**row, "labels": 5 - row["labels"]} for row in rows]
    assert certify(model, smaller(model), opposite, "pearson", max_drop=0.4).evidence.dense_metric < 0
    beyond = Metric("m", "corpus", lambda m, d: np.zeros((len(d), 2)), lambda table: -1.5)
    with pytest.raises(InvalidSettingError, match=r"m must be in \[-1, 1\]"):
        certify(model, smaller(model), rows, beyond)
