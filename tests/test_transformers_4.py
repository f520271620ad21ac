"""`head_mask` and `prune_heads` do what Transformers 4 did, against masks by hand; and raise where they would not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hf_headprune.compat import head_mask, prune_heads
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, ModelInUseError, UnsupportedModelError
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import TINY_FAMILIES, amplified, text_inputs, tiny_bart, tiny_bert, tiny_bert_decoder

MASK = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.25]])


def logits(model, rows=slice(None)):
    return model(**{name: tensor[rows] for name, tensor in text_inputs().items()}).logits


@torch.no_grad()
def folded(model, mask):
    """A copy with the factors of heads in the columns of its output projections."""
    model = copy.deepcopy(model)
    for layer, row in zip(model.bert.encoder.layer, mask, strict=True):
        layer.attention.output.dense.weight *= row.repeat_interleave(8)
    return model


@torch.no_grad()
def test_a_mask_scales_heads_by_layer_and_is_gone_afterwards():
    model = amplified(tiny_bert())
    before, expected = logits(model), logits(folded(model, MASK))
    assert (before - expected).abs().max() > 1e-2
    with head_mask(model, MASK) as same:
        assert same is model
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model), before)


@torch.no_grad()
def test_one_row_is_for_all_layers_and_may_change_inside():
    model, row, second = amplified(tiny_bert()), MASK[0].clone(), torch.tensor([1.0, 0.0, 0.5, 0.0])
    expected = [logits(folded(model, [factors, factors])) for factors in (row, second)]
    with head_mask(model, row):
        torch.testing.assert_close(logits(model), expected[0], rtol=1e-4, atol=1e-5)
        row[3] = 0
        torch.testing.assert_close(logits(model), expected[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_sample_may_have_a_mask_of_its_own():
    model = amplified(tiny_bert())
    masks = torch.stack([MASK, torch.ones(2, 4), MASK.flip(1)], dim=1)  # (layers, batch, heads)
    expected = [logits(folded(model, masks[:, sample]), slice(sample, sample + 1)) for sample in range(3)]
    with head_mask(model, masks):
        torch.testing.assert_close(logits(model), torch.cat(expected), rtol=1e-4, atol=1e-5)
        with pytest.raises(InvalidSettingError, match="factors for 3 samples, and the model runs 2"):
            logits(model, slice(2))


def test_gradients_reach_the_mask_as_importance_scores_need_them():
    model, mask = amplified(tiny_bert()), torch.ones(2, 4, requires_grad=True)
    with head_mask(model, mask):
        for _ in range(2):  # over batches
            logits(model).sum().backward()
    step = torch.zeros(2, 4)
    step[0, 1] = 1e-2
    with torch.no_grad():
        higher, lower = (logits(folded(model, 1 + sign * step)).double().sum() for sign in (1, -1))
    assert mask.grad[0, 1] == pytest.approx((higher - lower).item() / 1e-2, rel=1e-2)


@torch.no_grad()
def test_cross_attention_takes_the_mask_of_its_layer():
    model = amplified(tiny_bert_decoder())
    inputs = {
        **text_inputs(),
        "encoder_hidden_states": torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)),
    }
    expected = folded(model, MASK)
    for layer, row in zip(expected.bert.encoder.layer, MASK, strict=True):
        layer.crossattention.output.dense.weight *= row.repeat_interleave(8)
    with head_mask(model, MASK):
        torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_a_block_in_which_the_model_never_ran_ends_with_an_error():
    model = amplified(tiny_bert())
    with pytest.raises(InvalidSettingError, match="did not run inside the block"), head_mask(model, MASK):
        logits(copy.deepcopy(amplified(tiny_bert())))
    with pytest.raises(KeyError, match="inside"), head_mask(model, MASK):
        raise KeyError("inside")  # it is not replaced


def test_heads_can_not_be_pruned_under_a_mask():
    model = tiny_bert()
    with head_mask(model, MASK):
        logits(model)
        with pytest.raises(ModelInUseError, match="in use by head_mask"):
            prune_heads(model, {0: [1]})


@pytest.mark.parametrize(
    ("make", "mask", "error", "message"),
    [
        (tiny_bert, None, InvalidSettingError, "the mask must be a floating-point tensor"),
        (
            tiny_bert,
            torch.ones(2, 4, dtype=torch.long),
            InvalidSettingError,
            "the mask must be a floating-point tensor",
        ),
        (tiny_bert, torch.ones(2, 3), InvalidSettingError, r"\(4,\), \(2, 4\) or \(2, batch, 4\), received \(2, 3\)"),
        (tiny_bert, torch.ones(3, 4), InvalidSettingError, r"received \(3, 4\)"),
        (tiny_bert, torch.full((2, 4), float("nan")), InvalidSettingError, "a mask must hold finite numbers"),
        (tiny_bert, torch.ones(2, 1, 4, 1, 1), InvalidSettingError, r"received \(2, 1, 4, 1, 1\)"),
        (tiny_bart, torch.ones(2, 4), UnsupportedModelError, "two of its stacks have a layer 0"),
        (TINY_FAMILIES["olmo2"].make, torch.ones(2, 4), UnsupportedModelError, "have no heads"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(make, mask, error, message):
    with pytest.raises(error, match=message), head_mask(make(), mask):
        pytest.fail("the block must not begin")


def test_a_mask_is_refused_where_layers_have_different_numbers_of_heads():
    model = amplified(tiny_bert())
    prune_heads(model, {0: [1]})
    with pytest.raises(UnsupportedModelError, match=r"have \[3, 4\] heads"), head_mask(model, MASK):
        pytest.fail("the block must not begin")


@torch.no_grad()
def test_prune_heads_cuts_and_counts_as_the_dense_model_does():
    model, mask = amplified(tiny_bert()), torch.ones(2, 4)
    mask[0, [1, 2]] = mask[1, 3] = 0
    expected = logits(folded(model, mask))
    assert prune_heads(model, {0: [1], 1: []}) is None
    prune_heads(model, {0: {1, 2}, 1: [3]})  # head 1 has gone; 2 and 3 are those of the dense model
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert type(model).__name__ == "PrunableBertForSequenceClassification"
    assert [layer.attention.self.query.out_features for layer in model.bert.encoder.layer] == [16, 24]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({}, "no head is named, so nothing would be pruned"),
        ({0: []}, "no head is named, so nothing would be pruned"),
        ({0: [0]}, "the model has none of the heads"),
        ({2: [0]}, "there is no layer 2"),
        ({1: [4, "a"]}, "layer 1 has 4 heads, and no head 4; layer 1 has 4 heads, and no head 'a'"),
        ({1: 3}, "layer 1: the heads must be a list, received 3"),
        ([0], "pass a mapping from layers"),
    ],
)
def test_heads_that_do_not_exist_are_refused(heads, message):
    model = amplified(tiny_bert())
    prune_heads(model, {0: [0]})
    with pytest.raises(InvalidPlanError, match=message):
        prune_heads(model, heads)
    assert PruningPlan.of(model).num_kept_heads == 7


def test_heads_whose_numbers_in_the_dense_model_are_not_known_are_refused():
    model = prune_model_(
        amplified(tiny_bert()),
        PruningPlan.of(amplified(tiny_bert())).replace(kept_heads={"encoder.layer.0.attention": (1,)}),
    )
    model.base_model.headprune_plan = None
    with pytest.raises(InvalidPlanError, match="which heads of the dense model"):
        prune_heads(model, {1: [0]})


@pytest.mark.parametrize("heads", [[1, 2], iter([1, 2]), (head for head in (1, 2)), np.array([1, 2]), {1, 2}])
def test_heads_may_come_in_any_collection(heads):
    model = tiny_bert()
    prune_heads(model, {0: heads, np.int64(1): [np.int32(0)]})
    assert [len(kept) for kept in PruningPlan.of(model).kept_heads.values()] == [2, 3]
