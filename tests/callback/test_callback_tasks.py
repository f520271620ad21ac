"""The callback on tasks other than classifying sequences: what the search measures, and what is certified."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import Trainer

from hf_headprune import CertificationData, Metric, PruningPlan, SubsetGates, certify, verify_certificate
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.callback.search_metric import metric_source
from hf_headprune.errors import DataLeakError, InvalidSettingError
from hf_headprune.learn.gates.settings import GateTuning
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.examples import IGNORED_LABEL
from tests.callback.test_callback import GATES
from tests.support.models import tiny_bert, tiny_marian
from tests.support.trainers import labelled_rows as _examples
from tests.support.trainers import trainer_of as _trainer

SHORT = AStarSearch(max_evaluations=4)


def tagged(count, seed):
    """Examples whose first token has no label."""
    examples = _examples(count, seed)
    return [{**e, "labels": [IGNORED_LABEL, *(int(i > 50) for i in e["input_ids"][1:])]} for e in examples]


def questions(count, seed):
    """Examples whose answer is the largest token."""
    found = []
    for example in _examples(count, seed):
        where = int(np.argmax(example["input_ids"][1:])) + 1
        inputs = {name: example[name] for name in ("input_ids", "attention_mask")}
        found.append({**inputs, "start_positions": where, "end_positions": where})
    return found


def reversals(count, seed):
    return [{**example, "labels": example["input_ids"][::-1]} for example in _examples(count, seed)]


def _batch(examples):
    return {name: torch.tensor([e[name] for e in examples]) for name in examples[0] if name != "article"}


def right_tags(model, examples):
    """Shares of right tokens, and how many tokens have a label."""
    batch = _batch(examples)
    labels, labelled = batch["labels"], batch["labels"] != IGNORED_LABEL
    with torch.no_grad():
        right = (model.eval()(**batch).logits.argmax(-1) == labels) & labelled
    return (right.sum(1) / labelled.sum(1)).tolist(), labelled.sum(1).tolist()


def accuracy_of_tokens(model, examples):
    shares, counts = right_tags(model, examples)
    return np.average(shares, weights=counts)


def exact_spans(model, examples):
    """Single tokens alone are answers, but longer spans may be found."""
    batch = _batch(examples)
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


def likelihood(model, examples):
    batch = _batch(examples)
    with torch.no_grad():
        logits = model.eval()(**batch).logits.log_softmax(-1)
    return float(logits.gather(2, batch["labels"][:, :, None])[:, :, 0].mean(1).exp().mean())


TASKS = {
    "tags": (lambda: tiny_bert("TokenClassification"), tagged, "accuracy of tokens", accuracy_of_tokens),
    "questions": (lambda: tiny_bert("QuestionAnswering"), questions, "f1 of spans", exact_spans),
    "translation": (tiny_marian, reversals, "likelihood of references", likelihood),
}


class _NeverEvaluates(Trainer):
    def evaluate(self, *args, **kwargs):
        if self.compute_metrics is not None:
            raise AssertionError("the search scores examples by itself")
        return super().evaluate(*args, **kwargs)


@pytest.mark.parametrize("task", TASKS)
def test_the_search_scores_the_examples_of_every_task_by_itself(tmp_path, task):
    make, examples, name, measured = TASKS[task]
    callback = HeadPruneCallback(gates=GATES, search=SHORT)
    data = {"train_dataset": examples(64, 0), "eval_dataset": examples(24, 1)}
    trainer = _trainer(tmp_path, callback, model=make(), trainer_class=_NeverEvaluates, **data)
    trainer.train()
    report = callback.report.metric
    assert (report.name, report.num_examples) == (name, 24)
    assert report.after == pytest.approx(measured(trainer.model, data["eval_dataset"]), abs=1e-5)
    assert callback.search_result.refit is not None
    assert "too few to hold some back" in callback.report.certificate


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_searched_where_it_is_named(tmp_path, task):
    make, examples, *_ = TASKS[task]
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3, metric="loss"))
    trainer = _trainer(tmp_path, callback, model=make(), train_dataset=examples(64, 0), eval_dataset=examples(24, 1))
    trainer.train()
    assert callback.report.metric.name == "loss"
    assert callback.report.metric.after == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)


def test_what_a_trainer_computes_goes_before_what_the_library_knows_by_that_name(tmp_path):
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3, metric="f1"))
    trainer = _trainer(
        tmp_path,
        callback,
        model=tiny_bert("QuestionAnswering"),
        train_dataset=questions(64, 0),
        eval_dataset=questions(24, 1),
        compute_metrics=lambda _: {"f1": 0.625},
    )
    trainer.train()
    assert (callback.report.metric.name, callback.report.metric.after) == ("f1", 0.625)


def values(count, seed):
    return [{**example, "labels": example["input_ids"][0] / 100} for example in _examples(count, seed)]


def several(count, seed):
    return [
        {**example, "labels": [float(i > 50) for i in example["input_ids"][:3]]} for example in _examples(count, seed)
    ]


def copies(count, seed):
    return [{**example, "labels": example["input_ids"]} for example in _examples(count, seed)]


def choices(count, seed):
    first, second = _examples(count, seed), _examples(count, seed + 10)
    return [
        {**{name: [a[name], b[name]] for name in ("input_ids", "attention_mask")}, "labels": i % 2}
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]


OTHERS = {
    "regression": ("SequenceClassification", values, {"num_labels": 1}),
    "several labels": (
        "SequenceClassification",
        several,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "masked words": ("MaskedLM", copies, {}),
    "multiple choice": ("MultipleChoice", choices, {}),
}


@pytest.mark.parametrize("task", OTHERS)
def test_any_task_is_searched_by_its_loss_where_it_is_named(tmp_path, task):
    name, examples, settings = OTHERS[task]
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3, metric="loss"))
    data = {"train_dataset": examples(64, 0), "eval_dataset": examples(24, 1)}
    trainer = _trainer(tmp_path, callback, model=tiny_bert(name, **settings), **data)
    trainer.train()
    assert callback.report.metric.name == "loss"
    assert callback.report.metric.after == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)
    assert callback.plan.num_kept_heads <= 4


def test_examples_that_can_not_be_scored_can_be_searched_by_the_loss(tmp_path):
    data = {"train_dataset": several(64, 0), "eval_dataset": several(24, 1)}
    model = tiny_bert(num_labels=3)  # that there are several labels, the model finds out in its first forward pass
    with pytest.raises(InvalidSettingError, match=r"scores the examples.*by accuracy.*metric=.loss."):
        _trainer(tmp_path, HeadPruneCallback(gates=GATES, search=SHORT), model=model, **data).train()
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3, metric="loss"))
    _trainer(tmp_path, callback, model=tiny_bert(num_labels=3), **data).train()
    assert callback.report.metric.name == "loss"


class _Masking:
    """Makes labels of a random half of the tokens, as a collator for masked language models does."""

    def __call__(self, examples):
        batch = _batch([{"input_ids": e["input_ids"], "attention_mask": e["attention_mask"]} for e in examples])
        is_masked = torch.rand(batch["input_ids"].shape) < 0.5
        return {**batch, "labels": batch["input_ids"].masked_fill(~is_masked, IGNORED_LABEL)}


def test_labels_that_a_collator_draws_are_the_same_for_every_plan(tmp_path):
    data = {
        name: [{k: v for k, v in e.items() if k != "labels"} for e in _examples(48, i)] for i, name in enumerate("ab")
    }
    callback = HeadPruneCallback(gates=GATES, search=AStarSearch(max_evaluations=3, max_drop=10.0))
    masking = partial(Trainer, data_collator=_Masking())
    sets = {"train_dataset": data["a"], "eval_dataset": data["b"]}
    trainer = _trainer(tmp_path, callback, model=tiny_bert("MaskedLM"), trainer_class=masking, **sets)
    trainer.train()
    sources = [metric_source(trainer, AStarSearch()) for _ in range(2)]
    plan = PruningPlan.of(trainer.model)
    before = torch.get_rng_state()
    first, *others = [source.evaluator(plan).metric for source in sources for _ in range(2)]
    assert others == pytest.approx([first] * 3, rel=1e-6)
    assert len({source.evaluator.fingerprint() for source in sources}) == 1
    assert torch.equal(torch.get_rng_state(), before)


def _by_tags(**settings):
    return Metric("right tags of a sentence", "bounded", **{"score": lambda *given: right_tags(*given)[0]} | settings)


def _certified(tmp_path, *, data=None, metric=None, confidence=0.95, **search):
    callback = HeadPruneCallback(
        gates=SubsetGates(kept_heads=6, tuning=GateTuning(scoring_examples=8)),
        search=AStarSearch(**{"max_drop": 0.2, "max_evaluations": 12} | search),
        confidence=confidence,
        certification_dataset=tagged(300, 5) if data is None else data,
        certification_metric=_by_tags() if metric is None else metric,
    )
    model = tiny_bert("TokenClassification")
    sets = {"train_dataset": tagged(64, 0), "eval_dataset": tagged(24, 1)}
    return callback, _trainer(tmp_path, callback, model=model, max_steps=40, **sets)


def test_any_metric_can_be_certified_on_examples_of_its_own(tmp_path, capsys):
    callback, trainer = _certified(tmp_path / "run")
    trainer.train()
    certificate = callback.certificate
    assert certificate.verdict == "PASS"
    assert (certificate.claim.metric, certificate.claim.kind) == ("right tags of a sentence", "bounded")
    assert certificate.evidence.pruned_metric == pytest.approx(np.mean(right_tags(trainer.model, tagged(300, 5))[0]))
    assert {record.name for record in certificate.disjointness} == {"train", "search"}
    assert callback.plan.num_kept_heads <= 6
    printed = " ".join(capsys.readouterr().out.split())
    assert "To be certified: the drop of right tags of a sentence on 300 examples, 95 % confidence (betting" in printed
    trainer.save_model(tmp_path / "saved")
    checked = verify_certificate(tmp_path / "saved", trainer.model, tagged(300, 5), metric=_by_tags())
    assert checked.holds


def test_examples_with_groups_say_so_and_what_they_are_compared_with(tmp_path):
    rows = [{**example, "article": i // 3} for i, example in enumerate(tagged(300, 5))]
    data = CertificationData(rows, train=tagged(64, 0), search=tagged(24, 1), groups="article")
    callback, trainer = _certified(tmp_path, data=data)
    trainer.train()
    by_hand = certify(trainer.model, trainer.model, data, _by_tags(), 0.2)
    assert callback.certificate.split == by_hand.split
    assert callback.certificate.examples.groups == by_hand.examples.groups is not None


@pytest.mark.parametrize(
    ("settings", "error", "rule"),
    [
        ({"metric": _by_tags(score=lambda *_: [0.5] * 300)}, InvalidSettingError, "for each of the 4 examples"),
        ({"metric": _by_tags(score=lambda *_: [50.0] * 4)}, InvalidSettingError, r"must be a number in \[0, 1\]"),
        ({"max_drop": 1.0}, InvalidSettingError, "is no drop that can be certified"),
        ({"data": tagged(24, 1)}, DataLeakError, "search"),
        ({"data": tagged(64, 0)}, DataLeakError, "train"),
        ({"confidence": None}, InvalidSettingError, "certifies nothing"),
    ],
)
def test_what_could_not_be_certified_is_refused_before_training(tmp_path, settings, error, rule):
    with pytest.raises(error, match=rule):
        _certified(tmp_path, **settings)


@pytest.mark.parametrize("wrong", [{"labels": 2}, {"labels": None}], ids=str)
def test_every_label_for_a_certificate_is_read_before_training(tmp_path, wrong):
    rows = _examples(60, 5)
    rows[50] |= wrong
    with pytest.raises(InvalidSettingError, match="label"):
        _trainer(tmp_path, HeadPruneCallback(certification_dataset=rows))


def test_a_metric_without_examples_of_its_own_is_refused():
    with pytest.raises(InvalidSettingError, match="Pass them as certification_dataset"):
        HeadPruneCallback(certification_metric=_by_tags())


@pytest.mark.parametrize("confidence", ["auto", None])
def test_what_the_search_has_seen_is_remembered_without_a_certificate_too(tmp_path, confidence):
    callback = HeadPruneCallback(gates=GATES, search=SHORT, confidence=confidence)
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    with pytest.raises(DataLeakError, match="search split"):
        certify(tiny_bert(), trainer.model, _examples(24, 1))
