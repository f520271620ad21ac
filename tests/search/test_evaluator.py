"""Evaluators: the verdicts of a plain full evaluation, and a model that is left as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, UnsupportedModelError
from hf_headprune.masking import evaluating, masked
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.closed_units import ClosedUnits
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.tasks.batches import length_sorted_batches
from hf_headprune.tasks.examples import PadRight
from hf_headprune.tasks.metrics import CLASSIFICATION_METRICS
from tests.support.classifiers import NUM_LABELS, batches_of, classifier, examples, random_plan
from tests.support.families import made
from tests.support.models import tiny_bert, tiny_distilbert


@pytest.mark.parametrize("seed", range(6))
def test_verdict_equals_that_of_a_plain_evaluation_of_one_sentence_after_the_other(seed):
    model, dataset = classifier(), examples()
    plan = random_plan(model, seed)
    right, margins = 0, []
    with masked(model, plan), torch.no_grad():
        for example in sorted(dataset, key=lambda example: -len(example["input_ids"])):
            logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
            gold = example["label"]
            right += int(logits.argmax() == gold)
            margins.append(logits[gold] - max(logits[other] for other in range(NUM_LABELS) if other != gold))
    measured = ExampleEvaluator(model, batches_of(dataset))(plan)
    assert measured.metric == right / len(dataset)
    np.testing.assert_allclose(measured.margins, torch.stack(margins), atol=2e-4)
    assert ((measured.margins > 0).mean()) == measured.metric


def test_plans_differ_in_their_measurements():
    model = classifier()
    evaluator = ExampleEvaluator(model, batches_of(examples()))
    margins = [evaluator(random_plan(model, seed)).margins for seed in range(3)]
    assert not np.allclose(margins[0], margins[1])
    assert (evaluator(random_plan(model, 0)).margins == margins[0]).all()


def test_every_example_counts_also_in_the_last_partial_batch():
    model, dataset = classifier(), examples(count=9)
    measured = ExampleEvaluator(model, batches_of(dataset, batch_size=4))
    assert measured.num_examples == 9
    assert measured(PruningPlan.of(model)).margins.shape == (9,)


def test_model_is_left_as_it_was_after_an_error_too():
    model = classifier().train()
    model.bert.encoder.layer[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluator = ExampleEvaluator(model, batches_of(examples()))
    evaluator(random_plan(model, 0))
    with pytest.raises(ZeroDivisionError):
        MetricEvaluator(lambda: 1 / 0, model)(random_plan(model, 0))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all((tensor == state[name]).all() for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_dropout_is_off_while_measuring():
    model = classifier(hidden_dropout_prob=0.5).train()
    evaluator = ExampleEvaluator(model, batches_of(examples()))
    full = PruningPlan.of(model)
    assert (evaluator(full).margins == evaluator(full).margins).all()


def test_other_families_are_measured_too():
    model = tiny_distilbert(num_labels=NUM_LABELS)
    measured = ExampleEvaluator(model, batches_of(examples()))(random_plan(model, 1))
    assert measured.margins.shape == (24,)


def test_plan_of_another_model_is_refused():
    evaluator = ExampleEvaluator(classifier(), batches_of(examples()))
    with pytest.raises(InvalidPlanError, match="does not fit the model"):
        evaluator(PruningPlan.of(tiny_bert(num_hidden_layers=1)))


def test_fingerprint_follows_weights_data_and_metric():
    model, dataset = classifier(), examples()
    first = ExampleEvaluator(model, batches_of(dataset)).fingerprint()
    assert ExampleEvaluator(classifier(), batches_of(dataset)).fingerprint() == first
    others = {
        ExampleEvaluator(classifier(seed=1), batches_of(dataset)).fingerprint(),
        ExampleEvaluator(model, batches_of(examples(seed=1))).fingerprint(),
        ExampleEvaluator(model, batches_of(dataset[1:])).fingerprint(),
        ExampleEvaluator(model, batches_of(dataset), metric="macro_f1").fingerprint(),
        ExampleEvaluator(model, batches_of(dataset), calibration=batches_of(examples(seed=2))).fingerprint(),
        ExampleEvaluator(model.to(torch.bfloat16), batches_of(dataset)).fingerprint(),
    }
    assert len(others | {first}) == 7


def test_any_function_of_the_model_can_be_the_metric():
    model = classifier()
    plan = random_plan(model, 2)

    def mean_logit():
        assert not torch.is_grad_enabled()
        return model(input_ids=torch.tensor([[5, 6, 7]])).logits.mean()

    with masked(model, plan), evaluating(model):
        expected = float(mean_logit())
    assert MetricEvaluator(mean_logit, model)(plan).metric == expected
    lower = MetricEvaluator(mean_logit, model, higher_is_better=False)
    assert lower(plan).metric == -expected
    assert lower(plan).margins is None
    prints = {
        MetricEvaluator(mean_logit, m, data_fingerprint=d, higher_is_better=higher).fingerprint()
        for m in (model, classifier(seed=1))
        for d in "ab"
        for higher in (True, False)
    }
    assert len(prints) == 8


def test_a_class_is_not_read_off_logits_that_are_no_numbers():
    model = classifier()
    evaluator = ExampleEvaluator(model, batches_of(examples()))
    assert 0 < evaluator(PruningPlan.of(model)).metric < 1
    with torch.no_grad():
        model.classifier.bias[2] = torch.nan
    with pytest.raises(UnsupportedModelError, match=r"received \d+ logits that are NaN"):
        evaluator(PruningPlan.of(model))


def test_metric_that_is_no_number_is_refused():
    model = classifier()
    with pytest.raises(InvalidSettingError, match="must return one number, received dict"):
        MetricEvaluator(lambda: {"f1": 0.5}, model)(PruningPlan.of(model))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_metrics_equal_their_slow_definitions(pairs):
    confusion = np.zeros((3, 3), dtype=np.int64)
    for gold, predicted in pairs:
        confusion[gold, predicted] += 1
    assert CLASSIFICATION_METRICS["accuracy"](confusion) == sum(g == p for g, p in pairs) / len(pairs)
    f1 = []
    for c in {c for pair in pairs for c in pair}:
        hits = sum(g == p == c for g, p in pairs)
        f1.append(2 * hits / (sum(g == c for g, _ in pairs) + sum(p == c for _, p in pairs)))
    assert CLASSIFICATION_METRICS["macro_f1"](confusion) == pytest.approx(np.mean(f1))
    gold, predicted = (np.array([[p[i] == c for c in range(3)] for p in pairs], dtype=float) for i in (0, 1))
    gold, predicted = gold - gold.mean(axis=0), predicted - predicted.mean(axis=0)
    spread = np.sqrt((gold**2).sum() * (predicted**2).sum())
    expected = (gold * predicted).sum() / spread if spread > 1e-9 else 0.0
    assert CLASSIFICATION_METRICS["matthews_correlation"](confusion) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batches: [], "at least one labelled example"),
        (lambda batches: [{"input_ids": torch.ones(2, 3)}], r"received \['input_ids'\]"),
        (lambda batches: [*batches, {"input_ids": torch.ones(2, 3)}], "batch 6: labels must be whole numbers"),
        (lambda batches: [{**batches[0], "labels": batches[0]["labels"].float()}], "whole numbers"),
        (lambda batches: [{**batches[0], "labels": batches[0]["input_ids"]}], "whole numbers"),
        (lambda batches: [{**batches[0], "labels": batches[0]["labels"] - 1}], r"labels must be 0\.\.2, received"),
    ],
)
def test_data_without_proper_labels_is_refused(change, message):
    batches = batches_of(examples())
    ExampleEvaluator(classifier(), batches)
    with pytest.raises(InvalidSettingError, match=message):
        ExampleEvaluator(classifier(), change(batches))


def test_a_model_of_another_task_is_refused():
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM is no classifier of sequences"):
        ExampleEvaluator(tiny_bert("MaskedLM", num_labels=3), batches_of(examples()))


def test_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(InvalidSettingError, match=r"macro_f1, matthews_correlation for a BertFor.*received 'bleu'"):
        ExampleEvaluator(classifier(), batches_of(examples()), metric="bleu")


def test_batches_are_sorted_by_length_and_lose_nothing():
    dataset = examples()
    batches = batches_of(dataset, batch_size=5)
    lengths = [int(row.sum()) for batch in batches for row in batch["attention_mask"]]
    assert lengths == sorted((len(example["input_ids"]) for example in dataset), reverse=True)
    rows = [
        (row[mask.bool()].tolist(), int(label))
        for batch in batches
        for row, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]
    assert sorted(rows) == sorted((example["input_ids"], example["label"]) for example in dataset)


def test_sorting_looks_through_padding_and_renames_the_label():
    dataset = [
        {"input_ids": [7, 0, 0], "attention_mask": [1, 0, 0], "label": 0},
        {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1], "label": 1},
    ]
    batches = length_sorted_batches(
        dataset, lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}, batch_size=2
    )
    assert batches[0]["labels"].tolist() == [1, 0]
    assert "label" not in batches[0]


@pytest.mark.parametrize(
    ("dataset", "batch_size", "message"),
    [
        ([], 2, "data set is empty"),
        ([{"text": "a"}], 2, r"must hold 'input_ids', received \['text'\]"),
        ([{"input_ids": [1], "labels": 0}], 0, "batch_size must be at least 1"),
    ],
)
def test_data_that_cannot_be_batched_is_refused(dataset, batch_size, message):
    with pytest.raises(InvalidSettingError, match=message):
        length_sorted_batches(dataset, PadRight(0), batch_size=batch_size)


def test_padding_fills_each_input_and_masks_what_was_added():
    batch = PadRight(9)(
        [
            {"input_ids": [1, 2, 3], "token_type_ids": [0, 1, 1], "labels": 1},
            {"input_ids": [4], "token_type_ids": [1], "labels": 0},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_anatomy_of_the_tiny_model_has_the_heads_that_the_tests_count_on():
    assert anatomy_of(classifier()).num_heads == 8


def test_whole_groups_of_query_heads_are_taken_out_and_single_ones_stay_masked():
    model, inputs = made("llama")
    units, full = ClosedUnits(model), PruningPlan.of(model)
    first, second = full.num_heads
    plan = full.replace(kept_heads={first: (0, 1, 4, 5), second: (0, 2, 5)})
    with torch.no_grad(), units.attached():
        units.close(plan)
        closed = model(**inputs).logits
        units.take_out(plan)
        assert [len(layer.self_attn.k_proj.weight) for layer in model.model.layers] == [16, 32]
        torch.testing.assert_close(model(**inputs).logits, closed)
