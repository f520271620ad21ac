"""Scores of examples: in the order of the data set, the same however they are batched, and never made of no numbers."""

import numpy as np
import pytest
import torch

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.tasks.batches import Batching, length_sorted_batches
from hf_headprune.tasks.examples import ModelExamples, PadRight
from hf_headprune.tasks.registry import metrics_of, scorer_for
from hf_headprune.tasks.scores import ScoredExamples, scores_of
from tests.support.models import tiny_bert, tiny_bert_decoder
from tests.support.tasks import ROUNDED, TASKS, numbers, tags, task_of


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_scores_are_those_of_one_example_after_the_other_in_their_order(name, batch_size):
    model, dataset, task = task_of(name)
    model.train()
    found = scores_of(model, dataset, task.metric, Batching(batch_size=batch_size))
    assert model.training
    model.eval()
    assert found == pytest.approx(task.scores(model, dataset), abs=1e-5 if name in ROUNDED else 1e-12)
    assert len(set(found.tolist())) > 1
    assert scorer_for(model, task.metric).kind == task.kind


@pytest.mark.parametrize("name", TASKS)
def test_their_mean_is_the_metric_that_a_search_measures(name):
    model, dataset, task = task_of(name)
    batches = length_sorted_batches(ModelExamples(dataset, model), PadRight(0), batch_size=8)
    searched = ExampleEvaluator(model, batches, metric=task.metric)(PruningPlan.of(model)).metric
    weights = [task.weight(example) for example in dataset]
    assert searched == pytest.approx(np.average(scores_of(model, dataset, task.metric), weights=weights), abs=1e-6)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_answers_that_are_not_finite_are_refused_alike_by_search_and_scores(name, value):
    model, dataset, task = task_of(name, count=8)
    batches = length_sorted_batches(ModelExamples(dataset, model), PadRight(0), batch_size=8)
    evaluator = ExampleEvaluator(model, batches, metric=task.metric)
    assert evaluator(PruningPlan.of(model)).metric > 0
    head = next(name for name, parameter in reversed([*model.named_parameters()]) if parameter.dim() == 1)
    owner = model.get_submodule(head.rpartition(".")[0])
    owner.register_forward_hook(lambda *given: given[-1].index_fill(-1, torch.tensor([0]), value))
    for measure in (lambda: scores_of(model, dataset, task.metric), lambda: evaluator(PruningPlan.of(model))):
        with pytest.raises(UnsupportedModelError, match=r"finite logits, received \d+ logits that are NaN or infinite"):
            measure()


def test_metrics_that_are_no_means_get_a_row_for_each_example():
    model, dataset, task = task_of("classes")
    rows = scores_of(model, dataset, "macro_f1")
    assert rows.shape == (30, 2)
    assert rows[:, 0].tolist() == [example["label"] for example in dataset]
    assert (rows[:, 0] == rows[:, 1]).tolist() == (task.scores(model, dataset) == 1).tolist()
    model, dataset, _ = task_of("regression")
    rows = scores_of(model, dataset, "spearman")
    assert rows[:, 0] == pytest.approx([example["labels"] for example in dataset])


def test_a_text_without_a_label_is_refused_since_it_would_make_any_drop_smaller():
    model, dataset, _ = task_of("tokens")
    dataset[3]["labels"] = [-100] * len(dataset[3]["labels"])
    with pytest.raises(InvalidSettingError, match=r"received none for 1 of 30 \(indices \[3\]\)"):
        scores_of(model, dataset)


def test_the_words_of_a_regression_state_the_range_of_the_labels():
    model, dataset, _ = task_of("regression")
    split = ScoredExamples(model, dataset, where="test")
    assert split.scorer.scored == "1 - (|error| / 5), at least 0; labels run from 0 to 5"
    with pytest.raises(InvalidSettingError, match="errors are measured in the range of the labels, received none"):
        scorer_for(model).margins(model(input_ids=torch.ones(1, 4, dtype=torch.long)), {"labels": torch.ones(1)})


def test_a_causal_model_reads_texts_without_labels_and_scores_only_tokens_that_it_predicts():
    model, dataset, task = task_of("texts")
    padded = [
        {"input_ids": [*e["input_ids"], 0, 0], "attention_mask": [1] * len(e["input_ids"]) + [0, 0]} for e in dataset
    ]
    masked_first = [{**e, "labels": [-100, *e["input_ids"][1:]]} for e in dataset]
    expected = task.scores(model, dataset)
    for rows in (padded, masked_first):
        assert scores_of(model, rows) == pytest.approx(expected, abs=1e-5)
    assert "1 / perplexity" in scorer_for(model).scored


def test_each_kind_of_model_has_its_metrics():
    found = {name: metrics_of(task.make()) for name, task in TASKS.items()}
    assert found["classes"] == ("accuracy", "macro_f1", "matthews_correlation")
    assert metrics_of(tiny_bert(num_labels=2)) == (*found["classes"], "f1")
    assert found["regression"] == ("closeness", "mse", "pearson", "spearman")
    assert found["texts"] == ("likelihood",)
    assert found["references"] == ("likelihood", "chrf")
    assert found["embeddings"] == ("similarity", "pearson", "spearman")
    others = [tiny_bert("MultipleChoice"), tiny_bert("MaskedLM"), torch.nn.Linear(2, 2)]
    others.append(tiny_bert(num_labels=2, problem_type="regression"))
    assert [metrics_of(model) for model in others] == [()] * 4
    for model in others:
        with pytest.raises(UnsupportedModelError, match="whose examples can be scored"):
            scorer_for(model)
    assert metrics_of(tiny_bert_decoder()) == ("likelihood",)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_size": True}, {"batch_size": "32"}, {"batch_size": 2.0}, {"data_collator": 5}]
)
def test_batches_that_can_not_be_made_are_refused(wrong):
    with pytest.raises(InvalidSettingError, match=f"Batching: {next(iter(wrong))} must be"):
        Batching(**wrong)


@pytest.mark.parametrize(("make", "rows"), [("regression", numbers), ("tokens", tags)])
def test_a_collator_of_the_user_makes_the_batches(make, rows):
    model, dataset, task = TASKS[make].model(), rows(20, 1), TASKS[make]
    seen = []

    def collate(examples):
        seen.append(len(examples))
        batch = PadRight(0)(examples)
        return {"label" if name == "labels" else name: tensor for name, tensor in batch.items()}

    found = scores_of(model, dataset, batching=Batching(data_collator=collate, batch_size=6))
    assert found == pytest.approx(task.scores(model, dataset), abs=1e-5)
    assert seen[-4:] == [6, 6, 6, 2]  # after one example, by which it is tried
