"""The callback on tasks other than classifying sequences: what plans are measured by, and what is certified."""

from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
)

from hf_headprune import CertificationData, Metric, PruningPlan, certify, verify_certificate
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.callback.search_metric import metric_source
from hf_headprune.errors import DataLeakError, InvalidSettingError
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.batches import Batching
from hf_headprune.tasks.examples import IGNORED_LABEL
from hf_headprune.tasks.scores import scores_of
from tests.support.models import tiny_bert, tiny_marian
from tests.support.rows import (
    batch_of,
    choices,
    copies,
    numbers,
    questions,
    reversals,
    right_tags,
    several_labels,
    tagged,
)
from tests.support.settings import gates
from tests.support.tasks import word_tokenizer
from tests.support.trainers import GATES, labelled_rows, trainer_of

SHORT = AStarSearch(max_evaluations=4)


def accuracy_of_tokens(model, rows):
    shares, counts = right_tags(model, rows)
    return np.average(shares, weights=counts)


def f1_of_spans(model, rows):
    """Single tokens alone are answers, but longer spans may be found."""
    batch = batch_of(rows)
    with torch.no_grad():
        output = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    found = []
    for starts, ends, gold in zip(
        output.start_logits, output.end_logits, batch["start_positions"].tolist(), strict=True
    ):
        spans = [(i, j) for i in range(6) for j in range(i, 6) if i > 0 or j == 0]
        first, last = max(spans, key=lambda span: float(starts[span[0]] + ends[span[1]]))
        found.append(2 * (first <= gold <= last) / (last - first + 2))
    return np.mean(found)


def likelihood(model, rows):
    batch = batch_of(rows)
    with torch.no_grad():
        logits = model.eval()(**batch).logits.log_softmax(-1)
    return float(logits.gather(2, batch["labels"][:, :, None])[:, :, 0].mean(1).exp().mean())


def closeness(model, rows):
    batch = batch_of(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        errors = (model.eval()(**batch).logits[:, 0] - labels).abs() / (labels.max() - labels.min())
    return float((1 - errors).clamp(0, 1).mean())


TASKS = {
    "tags": (lambda: tiny_bert("TokenClassification"), tagged, "accuracy of tokens", accuracy_of_tokens),
    "questions": (lambda: tiny_bert("QuestionAnswering"), questions, "f1 of spans", f1_of_spans),
    "translation": (tiny_marian, reversals, "likelihood of references", likelihood),
    "regression": (lambda: tiny_bert(num_labels=1), numbers, "closeness", closeness),
}


AUTO_CLASSES = {
    "tags": AutoModelForTokenClassification,
    "questions": AutoModelForQuestionAnswering,
    "translation": AutoModelForSeq2SeqLM,
    "regression": AutoModelForSequenceClassification,
}


def trained(folder, task, callback, **settings):
    make, examples, *_ = TASKS[task]
    data = {"train_dataset": examples(64, 0), "eval_dataset": examples(24, 1)}
    trainer = trainer_of(folder, callback, model=make(), **(data | settings))
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_default_prunes_certifies_and_reloads_a_model_of_every_task(tmp_path, task):
    _, examples, name, _ = TASKS[task]
    drop = 0.001 if name.startswith("likelihood") else 0.01  # a likelihood after so little training is below .01
    trainer = trained(tmp_path / "run", task, callback := HeadPruneCallback(max_drop=drop, latency=None))
    assert callback.certificate.claim.metric == name
    assert callback.report.unseen.num_examples == 24
    assert callback.report.unseen.before - callback.report.unseen.after <= drop + 1e-9
    trainer.save_model(tmp_path / "saved")
    reloaded = AUTO_CLASSES[task].from_pretrained(tmp_path / "saved").eval()
    batch = batch_of(examples(4, 2))
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).loss, trainer.model.eval()(**batch).loss)


@pytest.mark.parametrize("task", TASKS)
def test_the_search_scores_the_examples_of_every_task_by_itself(tmp_path, task):
    make, examples, name, measured = TASKS[task]
    rows = examples(24, 1)
    callback = HeadPruneCallback(gates=GATES, search=SHORT, latency=None)
    trainer = trainer_of(tmp_path, callback, model=make(), train_dataset=examples(64, 0), eval_dataset=rows)
    trainer.evaluate = Mock(side_effect=AssertionError)
    trainer.train()
    report = callback.report.metric
    assert (report.name, report.num_examples) == (name, 24)
    assert report.after == pytest.approx(measured(trainer.model, rows), abs=1e-5)
    assert callback.search_result.refit is not None
    assert "eval_dataset has 24 examples outside of train_dataset, too few" in callback.report.certificate


def test_the_loss_is_searched_where_it_is_named(tmp_path):
    search = AStarSearch(max_evaluations=3, metric="loss")
    trainer = trained(tmp_path, "translation", callback := HeadPruneCallback(search=search, latency=None))
    assert callback.report.metric.name == "loss"
    assert callback.report.metric.after == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)


@pytest.mark.slow
def test_what_is_generated_is_searched_and_certified_where_chrf_is_named(tmp_path):
    search = AStarSearch(max_evaluations=2, metric="chrf", max_drop=0.5)
    callback = HeadPruneCallback(search=search, certification_dataset=reversals(20, 3), latency=None)
    trainer = trained(tmp_path, "translation", callback, processing_class=word_tokenizer())
    batching = Batching(word_tokenizer())
    report = callback.report.metric
    assert report.name == callback.certificate.claim.metric == "sentence chrF"
    assert report.after == pytest.approx(scores_of(trainer.model, reversals(24, 1), "chrf", batching).mean())
    with pytest.raises(InvalidSettingError, match="chrF needs the tokenizer"):
        trained(tmp_path / "without", "translation", HeadPruneCallback(search=search, latency=None))


OTHERS = {
    "several labels": (
        "SequenceClassification",
        several_labels,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        "Jaccard",
    ),
    "masked words": ("MaskedLM", copies, {}, "loss"),
    "multiple choice": ("MultipleChoice", choices, {}, "loss"),
}


@pytest.mark.parametrize("task", OTHERS)
def test_a_task_without_a_metric_of_its_own_follows_the_loss(tmp_path, task):
    name, examples, settings, metric = OTHERS[task]
    callback = HeadPruneCallback(confidence=None, latency=None)
    data = {"train_dataset": examples(64, 0), "eval_dataset": examples(24, 1)}
    trainer = trainer_of(tmp_path, callback, model=tiny_bert(name, **settings), **data)
    trainer.train()
    assert callback.report.metric.name.startswith(metric)
    if metric == "loss":
        assert callback.report.metric.after == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)
        assert callback.report.metric.after - callback.report.metric.before <= 0.01 + 1e-6


def test_examples_that_can_not_be_scored_can_be_measured_by_the_loss(tmp_path):
    data = {"train_dataset": several_labels(64, 0), "eval_dataset": several_labels(24, 1)}
    model = tiny_bert(num_labels=3)  # that there are several labels, the model finds out in its first forward pass
    with pytest.raises(InvalidSettingError, match=r"scores the examples.*by accuracy.*metric=.loss."):
        trainer_of(tmp_path, HeadPruneCallback(search=SHORT, latency=None), model=model, **data).train()
    callback = HeadPruneCallback(search=AStarSearch(max_evaluations=3, metric="loss"), latency=None)
    trainer_of(tmp_path, callback, model=tiny_bert(num_labels=3), **data).train()
    assert callback.report.metric.name == "loss"


class _Masking:
    """Makes labels of a random half of the tokens, as a collator for masked language models does."""

    def __call__(self, rows):
        batch = batch_of(rows, but=("labels",))
        is_masked = torch.rand(batch["input_ids"].shape) < 0.5
        return {**batch, "labels": batch["input_ids"].masked_fill(~is_masked, IGNORED_LABEL)}


def test_labels_that_a_collator_draws_are_the_same_for_every_plan(tmp_path):
    sets = [[{k: v for k, v in row.items() if k != "labels"} for row in labelled_rows(48, seed)] for seed in (0, 1)]
    data = dict(zip(("train_dataset", "eval_dataset"), sets, strict=True))
    callback = HeadPruneCallback(search=AStarSearch(max_evaluations=3, max_drop=10.0), latency=None)
    masking = partial(Trainer, data_collator=_Masking())
    trainer = trainer_of(tmp_path, callback, model=tiny_bert("MaskedLM"), trainer_class=masking, **data)
    trainer.train()
    sources = [metric_source(trainer, AStarSearch()) for _ in range(2)]
    plan = PruningPlan.of(trainer.model)
    before = torch.get_rng_state()
    assert len({source.evaluator(plan).metric for source in sources for _ in range(2)}) == 1
    assert len({source.evaluator.fingerprint() for source in sources}) == 1
    assert torch.equal(torch.get_rng_state(), before)


def _by_tags(**settings):
    return Metric("right tags of a sentence", "bounded", **{"score": lambda *given: right_tags(*given)[0]} | settings)


SEARCH = {"search": AStarSearch(max_drop=0.2, max_evaluations=8)}


def _certified(folder, *, data=None, metric=None, **parts):
    callback = HeadPruneCallback(
        **({"max_drop": 0.2} if "search" not in parts else {}) | parts,
        certification_dataset=tagged(300, 5) if data is None else data,
        certification_metric=_by_tags() if metric is None else metric,
        latency=None,
    )
    model = tiny_bert("TokenClassification")
    sets = {"train_dataset": tagged(64, 0), "eval_dataset": tagged(24, 1)}
    return callback, trainer_of(folder, callback, model=model, max_steps=40, **sets)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{"confidence": 0.95}, SEARCH], ids=["default", "search"])
def test_any_metric_can_be_certified_on_examples_of_its_own(tmp_path, capsys, parts):
    callback, trainer = _certified(tmp_path / "run", **parts)
    trainer.train()
    certificate = callback.certificate
    assert certificate.evidence.verdict == "PASS"
    assert (certificate.claim.metric, certificate.claim.kind) == ("right tags of a sentence", "bounded")
    assert certificate.evidence.pruned_metric == pytest.approx(np.mean(right_tags(trainer.model, tagged(300, 5))[0]))
    assert callback.plan.num_removed_ffn > 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "To be certified: the drop of right tags of a sentence on 300 examples" in printed
    trainer.save_model(tmp_path / "saved")
    assert verify_certificate(tmp_path / "saved", trainer.model, tagged(300, 5), metric=_by_tags()).holds


@pytest.mark.slow
def test_examples_with_groups_say_so_and_what_they_are_compared_with(tmp_path):
    rows = [{**row, "article": i // 3} for i, row in enumerate(tagged(300, 5))]
    data = CertificationData(rows, train=tagged(64, 0), search=tagged(24, 1), groups="article")
    callback, trainer = _certified(tmp_path, data=data)
    trainer.train()
    among = callback.certificate.path.planned  # these examples have chosen
    by_hand = certify(trainer.model, trainer.model, data, _by_tags(), 0.2, num_candidates=among)
    assert callback.certificate.split == by_hand.split
    assert callback.certificate.examples.groups == by_hand.examples.groups is not None
    assert {record.name for record in callback.certificate.disjointness} == {"train", "search"}


@pytest.mark.parametrize(
    ("settings", "error", "rule"),
    [
        ({"metric": _by_tags(score=lambda *_: [0.5] * 300)}, InvalidSettingError, "for each of the 4 examples"),
        ({"metric": _by_tags(score=lambda *_: [50.0] * 4)}, InvalidSettingError, r"must be a number in \[0, 1\]"),
        ({"max_drop": 1.0}, InvalidSettingError, "max_drop=1 is no drop that can be certified"),
        ({"data": tagged(24, 1)} | SEARCH, DataLeakError, "search"),
        ({"data": tagged(64, 0)}, DataLeakError, "train"),
        ({"confidence": None}, InvalidSettingError, "certifies nothing"),
    ],
)
def test_what_could_not_be_certified_is_refused_before_training(tmp_path, settings, error, rule):
    with pytest.raises(error, match=rule):
        _certified(tmp_path, **settings)


@pytest.mark.parametrize("wrong", [{"labels": 2}, {"labels": None}], ids=str)
def test_every_label_for_a_certificate_is_read_before_training(tmp_path, wrong):
    rows = labelled_rows(60, 5)
    rows[50] |= wrong
    with pytest.raises(InvalidSettingError, match="label"):
        trainer_of(tmp_path, HeadPruneCallback(certification_dataset=rows))


def test_a_metric_without_examples_of_its_own_is_refused():
    with pytest.raises(InvalidSettingError, match="Pass them as certification_dataset"):
        HeadPruneCallback(certification_metric=_by_tags())


def test_what_chose_is_remembered_and_certifies_nothing(tmp_path):
    callback = HeadPruneCallback(gates=gates(kept_heads=3, scoring_examples=16), search=SHORT, latency=None)
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    with pytest.raises(DataLeakError, match="search split"):
        certify(tiny_bert(), trainer.model, labelled_rows(24, 1))
