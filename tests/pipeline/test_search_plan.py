"""search_plan: any data, collator and metric of the user's; the search itself is tested in tests/search."""

import json
from unittest.mock import Mock

import pytest
import torch

from hf_headprune.errors import DataLeakError, InvalidSettingError, UnsupportedModelError
from hf_headprune.masking import masked
from hf_headprune.pipeline.search import search_plan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.settings import AStarSearch, SearchTuning
from hf_headprune.tasks.classification import ClassScorer
from tests.support.classifiers import NUM_LABELS, batches_of, classifier, examples, own_examples
from tests.support.models import tiny_bert
from tests.support.tasks import task_of


def test_columns_that_the_model_does_not_take_are_left_out():
    plain = examples()
    rich = [
        {**example, "sentence": "text", "idx": number, "attention_mask": [1] * len(example["input_ids"])}
        for number, example in enumerate(plain)
    ]
    chosen = AStarSearch(max_evaluations=5)
    model = classifier()
    assert (
        search_plan(model, rich, search=chosen, progress=False).search.history
        == search_plan(model, plain, search=chosen, progress=False).search.history
    )


def test_collator_and_batch_size_of_the_user_are_used():
    sizes = []

    def collate(rows):
        sizes.append(len(rows))
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": torch.tensor([r["labels"] for r in rows]),
        }

    model, chosen = classifier(), AStarSearch(max_evaluations=3)
    result = search_plan(model, examples(), search=chosen, data_collator=collate, batch_size=10, progress=False)
    assert sizes[-3:] == [10, 10, 4]  # after one example, by which it is tried
    assert result.search.history == search_plan(model, examples(), search=chosen, progress=False).search.history


def test_metric_of_the_settings_wins():
    model = classifier()
    chosen = AStarSearch(max_evaluations=1, metric="macro_f1")
    result = search_plan(model, examples(), "accuracy", chosen, progress=False).search
    f1 = ExampleEvaluator(model, batches_of(examples()), metric="macro_f1")(result.start).metric
    assert result.metric == f1


def test_progress_is_shown_on_request(capsys):
    chosen = AStarSearch(max_evaluations=4)
    search_plan(classifier(), examples(), search=chosen)
    shown = capsys.readouterr().err
    assert "Search: 100%" in shown
    assert "heads/ffn removed, metric" in shown
    search_plan(classifier(), examples(), search=chosen, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "dataset is empty"),
        ({"train": 1}, "must be sized and indexable.*received dict"),
        (iter([1]), "must be sized and indexable"),
        ([3], "must hold 'labels' or 'label', received int"),
        ([{"input_ids": [1]}], "must hold 'labels' or 'label'"),
        ([{"text": "a", "label": 0}], "Tokenize the data set first"),
        ([{"input_ids": [5], "label": NUM_LABELS}], r"labels must be 0\.\.2, received \[3\]"),
        ([{"input_ids": [5], "label": 0}, {"input_ids": [5]}], "example 1 has no label"),
    ],
)
def test_unusable_data_is_refused(dataset, message):
    with pytest.raises(InvalidSettingError, match=message):
        search_plan(classifier(), dataset, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "bleu"}, "metric must be one of accuracy, .*received 'bleu'"),
        ({"search": AStarSearch(metric="eval_loss")}, "received 'eval_loss'"),
        ({"search": AStarSearch(max_drop=1)}, "max_drop is absolute"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"journal": "journal.json", "head_scores": [1.0]}, "head_scores and journal are for an A\\* search"),
    ],
)
def test_unusable_settings_are_refused(arguments, message):
    with pytest.raises(InvalidSettingError, match=message):
        search_plan(classifier(), examples(), progress=False, **arguments)


@pytest.mark.parametrize("model", [lambda: tiny_bert("MaskedLM"), lambda: torch.nn.Linear(2, 2)])
def test_unusable_model_is_refused(model):
    with pytest.raises(UnsupportedModelError):
        search_plan(model(), examples(), progress=False)


def test_any_function_of_the_model_can_be_the_metric():
    model = classifier()
    dataset = own_examples(model)
    batches = batches_of(dataset)

    def accuracy(masked_model):
        assert masked_model is model
        right = [
            masked_model(**{k: v for k, v in b.items() if k != "labels"}).logits.argmax(-1) == b["labels"]
            for b in batches
        ]
        return float(torch.cat(right).float().mean())

    settings = AStarSearch(max_drop=0.1, max_evaluations=12)
    found = search_plan(model, None, accuracy, settings, progress=False)
    assert "Metric: accuracy on examples (its own); before" in found.report.to_text()
    result = found.search
    with masked(model, found), torch.no_grad():
        assert result.metric == pytest.approx(accuracy(model))
    assert result.metric >= result.threshold
    assert result.evaluations == 12


def test_a_function_as_metric_refuses_data_and_must_return_a_number():
    model = classifier()
    with pytest.raises(InvalidSettingError, match=r"has examples of its own, received dataset besides"):
        search_plan(model, examples(), lambda _: 1.0, progress=False)
    with pytest.raises(InvalidSettingError, match="must return one number"):
        search_plan(model, None, lambda _: {"f1": 1.0}, AStarSearch(max_evaluations=3), progress=False)


def test_a_metric_that_is_no_number_is_null_in_json():
    answers = iter([1.0] * 3 + [float("nan")] * 9)  # the start is measured before, in and after the check
    search = AStarSearch(max_evaluations=3, tuning=SearchTuning(refit=False))
    result = search_plan(classifier(), None, lambda _: next(answers), search, progress=False)
    assert [step["metric"] for step in json.loads(result.search.to_json())["history"]] == [1.0, None, None]


def test_a_search_works_on_a_copy_that_an_interrupt_may_leave_as_it_is(monkeypatch):
    model, calls = classifier(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers = ClassScorer.answers

    def count(self, outputs, batch):
        calls.append(any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return answers(self, outputs, batch)

    monkeypatch.setattr(ClassScorer, "answers", count)
    with pytest.raises(KeyboardInterrupt):
        search_plan(model, own_examples(model), search=AStarSearch(max_evaluations=9), progress=False)
    assert calls == [False] * 9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_call_that_is_refused_leaves_the_examples_unseen():
    model, dev, train = classifier(), examples(24, seed=1), examples(40)
    unseen = examples(10, seed=2)
    with pytest.raises(InvalidSettingError, match=r"confidence=0\.95"):
        search_plan(model, dev, calibration=train, certify=unseen, confidence=0.95, progress=False)
    assert search_plan(model, dev, calibration=train, progress=False).certificate is not None


def test_examples_in_both_splits_are_named_by_the_arguments_that_hold_them():
    train = examples(40)
    with pytest.raises(DataLeakError, match="no example that certifies may be in calibration= too"):
        search_plan(classifier(), [*examples(24, seed=1), train[0]], calibration=train, progress=False)


def test_a_drop_that_leaves_nothing_of_the_metric_prunes_nothing_and_says_so():
    model, rows, _ = task_of("texts", 40)
    train, dev = rows[:20], rows[20:]
    result = search_plan(
        model, dev, calibration=train, max_drop=0.5, recover=Mock(side_effect=AssertionError), progress=False
    )
    assert not result.plan.num_removed_heads
    assert not result.plan.num_removed_ffn
    told = result.report.certificate
    assert "max_drop=0.5 is absolute, and the likelihood of texts before pruning is 0.0" in told
    assert "so it allows anything" in told


def test_a_drop_of_much_of_the_metric_is_said(caplog):
    model, rows, _ = task_of("texts", 40)
    search_plan(model, rows[20:], calibration=rows[:20], max_drop=1e-4, progress=False)
    assert "% of it may be lost; a hundredth of it is max_drop=" in caplog.text
