"""Examples as users have them become what a model takes, or are refused; nothing is turned into something else."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BatchEncoding

from hf_headprune import PruningPlan, SecondOrder, certify, plan_for_budget, search_plan
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.search.settings import AStarSearch
from hf_headprune.tasks.examples import DEEPEST, PadRight, plain
from tests.support.classifiers import classifier, examples
from tests.support.models import tiny_bert, tiny_marian

HALF = SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8))


def found_by(verb, model, rows):
    """What one of the verbs that read examples returns, of a number that tells results apart."""
    if verb == "search":
        search = AStarSearch(max_evaluations=4, max_drop=0.1)
        return search_plan(model, rows, search=search, progress=False).search.metric
    if verb == "one-shot":
        return float(second_order_plan(model, rows, HALF).refit.blocks["encoder.layer.1.attention"].bias.sum())
    return certify(model, copy.deepcopy(model), rows).evidence.dense_metric


@pytest.mark.parametrize("form", ["tensors", "arrays", "torch format", "numpy format"])
@pytest.mark.parametrize("verb", ["search", "one-shot", "certify"])
def test_tensors_and_arrays_are_read_as_lists_are(verb, form):
    model, rows = classifier(), examples(24)
    convert = {"tensors": torch.tensor, "arrays": np.array}.get(form)
    if convert is None:
        given = Dataset.from_list(rows).with_format(form.split()[0])
    else:
        given = [{name: convert(value) for name, value in row.items()} for row in rows]
    assert found_by(verb, model, given) == found_by(verb, model, rows)


def test_lists_may_hold_tensors():
    batch = PadRight(0)([{"input_ids": [torch.tensor(5), torch.tensor(6)], "labels": torch.tensor(1)}])
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[5, 6]], [1])


def test_numbers_with_fractions_stay_what_they_are():
    rows = [{"input_ids": [5, 6], "labels": 0.57}, {"input_ids": [7], "labels": 0.3}]
    batch = PadRight(0)(rows)
    torch.testing.assert_close(batch["labels"], torch.tensor([0.57, 0.3]))
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    several = PadRight(0)([{**row, "labels": [1.0, 0.5]} for row in rows])
    assert several["labels"].tolist() == [[1.0, 0.5], [1.0, 0.5]]


def test_a_regression_is_pruned_for_the_loss_of_its_own_labels():
    def costs(scale):
        model = tiny_bert(num_labels=1)
        rows = [{**row, "labels": scale * (0.25 + row["label"])} for row in examples(24)]
        return second_order_plan(model, rows, HALF).refit.blocks["encoder.layer.1.attention"].sensitivity

    assert not torch.allclose(costs(0.5), costs(0.9))  # whole numbers would make both zero


@pytest.mark.parametrize("label", ["positive", [[1, 2], [3, 4]], None], ids=str)
def test_what_is_no_number_is_refused(label):
    with pytest.raises(InvalidSettingError, match="'labels' must hold a number"):
        PadRight(0)([{"input_ids": [5], "labels": label}])


@pytest.mark.parametrize("mask", [[1], [0, 0], 1], ids=str)
def test_a_mask_that_says_nothing_of_the_tokens_is_refused(mask):
    with pytest.raises(InvalidSettingError, match="attention_mask must have a number for each of the 2 tokens"):
        PadRight(0)([{"input_ids": [5, 6], "attention_mask": mask, "labels": 1}])


def test_what_a_tokenizer_returns_is_no_data_set():
    with pytest.raises(InvalidSettingError, match="plan_for_budget: dataset must be sized and indexable"):
        plan_for_budget(tiny_bert(), BatchEncoding({"input_ids": [[5, 6]], "labels": [1]}), density=0.5)


@pytest.mark.parametrize("verb", ["search", "one-shot", "certify"])
def test_multiple_choice_is_refused_with_what_to_do(verb):
    rows = [{"input_ids": [[5, 6], [7, 8]], "labels": i % 2} for i in range(8)]
    with pytest.raises((InvalidSettingError, UnsupportedModelError), match=r"data_collator|function that measures it"):
        found_by(verb, tiny_bert("MultipleChoice"), rows)


@pytest.mark.parametrize("label", [-1, 3])
def test_one_shot_refuses_a_label_that_is_no_class(label):
    rows = examples(8)
    rows[3] |= {"label": label}
    with pytest.raises(InvalidSettingError, match=rf"labels must be 0..2, received \[{label}\]"):
        second_order_plan(tiny_bert(num_labels=3), rows, HALF)


def test_one_shot_refuses_a_model_without_a_loss():
    with pytest.raises(UnsupportedModelError, match="BertForPreTraining returns no loss"):
        second_order_plan(tiny_bert("PreTraining", num_labels=3), examples(8), HALF)
    with pytest.raises(
        UnsupportedModelError, match=r"outputs of a .* are a tuple\. Set model\.config\.return_dict = True"
    ):
        second_order_plan(tiny_bert(num_labels=3, return_dict=False), examples(8), HALF)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("verb", ["search", "one-shot"])
def test_a_compiled_model_is_refused_as_a_wrapper(verb):
    with pytest.raises(
        UnsupportedModelError, match=r"not a wrapper around it|rather than a wrapper|Unwrap the model first"
    ):
        found_by(verb, torch.compile(classifier()), examples(8))


def test_a_decoder_with_a_vocabulary_of_its_own_is_scored_by_it():
    model = tiny_marian(decoder_vocab_size=120, share_encoder_decoder_embeddings=False, tie_word_embeddings=False)
    rows = [{"input_ids": [5 + i, 6, 7], "labels": [110, 50 + i]} for i in range(8)]
    found = search_plan(model, rows, search=AStarSearch(max_evaluations=3), progress=False)
    assert 0 < found.search.reference_metric < 1


def quantized(model):
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_is_refused():
    model = classifier()
    with pytest.raises(UnsupportedModelError, match="its weight is no tensor"):
        PruningPlan.of(quantized(model))
    with pytest.raises(UnsupportedModelError, match="have no fingerprint"):
        certify(model, quantized(model), examples(8))


def test_lists_are_copied_up_to_the_depth_that_is_allowed():
    value = 7
    for _ in range(DEEPEST):
        value = [value]
    assert plain(value) == value
    with pytest.raises(InvalidSettingError, match=f"nested at most {DEEPEST} deep"):
        plain([value])
