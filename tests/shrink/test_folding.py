"""What the reference implementation of block pruning gets wrong when it cuts, family by family; here it is exact."""

import copy

import pytest
import torch

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.folding import fold_dead_units_, refill_zeros_
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import text_inputs, tiny_bert, tiny_bert_decoder

HEAD_DIM = 8


def site_of(model, kind):
    sites = anatomy_of(model).sites
    return next(site for site in sites if (site.kind == "ffn") == (kind == "ffn"))


def rows_of(model, site, position, units, *, bias):
    """Zeroes the rows of units in one of the input matrices of a site, and their biases where asked."""
    linear = base_model(model).get_submodule(site.inputs[position])
    for unit in units:
        rows = slice(unit * site.unit_width, (unit + 1) * site.unit_width)
        linear.weight.data[rows] = 0.0
        if bias:
            linear.bias.data[rows] = 0.0


def columns_of(model, site, units):
    linear = base_model(model).get_submodule(site.output)
    for unit in units:
        linear.weight.data[:, unit * site.unit_width : (unit + 1) * site.unit_width] = 0.0


@torch.no_grad()
def logits(model, inputs):
    output = model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def cut(model, inputs):
    """Folds and cuts a copy; checks the function at each stage and returns the plan."""
    expected = logits(model, inputs)
    twin = copy.deepcopy(model)
    plan = fold_dead_units_(twin)
    torch.testing.assert_close(logits(twin, inputs), expected, atol=2e-6, rtol=1e-5)
    prune_model_(twin, plan)
    torch.testing.assert_close(logits(twin, inputs), expected, atol=2e-6, rtol=1e-5)
    return plan


QUERY, KEY, VALUE = 0, 1, 2


@pytest.mark.parametrize("position", [QUERY, KEY], ids=["query", "key"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias dead", "bias alive"])
def test_a_head_with_dead_query_or_key_rows_alone_stays(any_model, any_inputs, position, bias):
    rows_of(any_model, site_of(any_model, "head"), position, [1], bias=bias)
    assert cut(any_model, any_inputs).num_removed_heads == 0


@pytest.mark.parametrize("bias", [True, False], ids=["bias dead", "bias alive"])
def test_a_head_with_dead_value_rows_goes_and_its_constant_is_folded(any_model, any_inputs, bias):
    site = site_of(any_model, "head")
    rows_of(any_model, site, VALUE, [0, 2], bias=bias)
    plan = cut(any_model, any_inputs)
    assert plan.kept_heads[site.name] == (1, 3)
    assert plan.num_removed_heads == 2


def test_a_head_with_dead_output_columns_goes(any_model, any_inputs):
    site = site_of(any_model, "head")
    columns_of(any_model, site, [3])
    assert cut(any_model, any_inputs).kept_heads[site.name] == (0, 1, 2)


def test_a_head_with_some_living_value_row_or_output_column_stays(any_model, any_inputs):
    site = site_of(any_model, "head")
    rows_of(any_model, site, VALUE, [1], bias=True)
    columns_of(any_model, site, [2])
    base = base_model(any_model)
    base.get_submodule(site.inputs[VALUE]).weight.data[HEAD_DIM + 3, 5] = 0.2
    base.get_submodule(site.output).weight.data[4, 2 * HEAD_DIM + 1] = 0.2
    assert cut(any_model, any_inputs).num_removed_heads == 0


@pytest.mark.parametrize("kind", ["head", "ffn"])
@pytest.mark.parametrize("how", ["rows", "columns"])
def test_a_dead_block_really_goes(any_model, any_inputs, kind, how):
    site = site_of(any_model, kind)
    if how == "rows":
        rows_of(any_model, site, -1, range(site.units), bias=False)
    else:
        columns_of(any_model, site, range(site.units))
    assert cut(any_model, any_inputs).kept(site.name) == ()


@pytest.mark.parametrize("bias", [True, False], ids=["bias dead", "bias alive"])
def test_dropped_ffn_rows_leave_the_activation_of_their_bias(any_model, any_inputs, bias):
    site = site_of(any_model, "ffn")
    rows_of(any_model, site, 0, range(10, 40), bias=bias)
    columns_of(any_model, site, [50])
    plan = cut(any_model, any_inputs)
    assert plan.kept_ffn[site.name] == (*range(10), *range(40, 50), *range(51, 64))
    assert plan.num_removed_ffn == 31


@pytest.mark.parametrize("act", ["relu", "silu", "sigmoid"])
def test_any_activation_is_folded_as_the_model_computes_it(act):
    model = tiny_bert(hidden_act=act)
    site = site_of(model, "ffn")
    rows_of(model, site, 0, range(30), bias=False)
    assert cut(model, text_inputs()).num_removed_ffn == 30


def test_causal_and_cross_attention_fold_the_same_constant():
    model = tiny_bert_decoder()
    inputs = text_inputs() | {"encoder_hidden_states": torch.randn(3, 5, 32)}
    sites = anatomy_of(model).attention_sites
    for site in sites:
        rows_of(model, site, VALUE, [1], bias=False)
    assert cut(model, inputs).num_removed_heads == len(sites)


def test_a_dead_unit_with_a_constant_stays_where_no_bias_can_take_it(any_model, any_inputs):
    for kind, position in (("head", VALUE), ("ffn", 0)):
        site = site_of(any_model, kind)
        base_model(any_model).get_submodule(site.output).register_parameter("bias", None)
        rows_of(any_model, site, position, [0], bias=False)
        rows_of(any_model, site, position, [1], bias=True)
        columns_of(any_model, site, [2])
    plan = fold_dead_units_(any_model)
    assert plan.kept_heads[site_of(any_model, "head").name] == (0, 3)
    assert plan.kept_ffn[site_of(any_model, "ffn").name] == (0, *range(3, 64))


def test_folding_changes_nothing_where_nothing_is_dead(any_model):
    before = copy.deepcopy(any_model.state_dict())
    assert fold_dead_units_(any_model) == PruningPlan.of(any_model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in any_model.state_dict().items())


def test_folding_keeps_the_precision_of_the_weights(any_model, any_inputs):
    model = any_model.double()
    expected = logits(model, any_inputs)
    rows_of(model, site_of(model, "ffn"), -1, [3], bias=False)
    changed = logits(model, any_inputs)
    fold_dead_units_(model)
    assert not torch.equal(changed, expected)
    torch.testing.assert_close(logits(model, any_inputs), changed, rtol=1e-12, atol=1e-12)


def test_folding_works_on_a_cut_model_and_keeps_the_training_mode(any_model, any_inputs):
    plan = PruningPlan.of(any_model)
    first = next(iter(plan.kept_heads))
    prune_model_(any_model, plan.replace(kept_heads={first: ()})).train()
    site = site_of(any_model, "ffn")
    rows_of(any_model, site, 0, [5], bias=False)
    plan = fold_dead_units_(any_model)
    assert any_model.training
    assert (plan.num_removed_heads, plan.num_removed_ffn) == (0, 1)


def test_a_model_on_the_meta_device_is_refused():
    with pytest.raises(UnsupportedModelError, match="meta device"):
        fold_dead_units_(tiny_bert().to("meta"))


def test_refilling_draws_small_numbers_around_the_mean_at_the_zeros_only():
    model = tiny_bert()
    site = site_of(model, "ffn")
    weight = base_model(model).get_submodule(site.output).weight
    weight.data[:, ::2] = 0.0
    weight.data[:, 1::2] += 0.3
    before, biases = weight.detach().clone(), {n: p.clone() for n, p in model.named_parameters() if n.endswith("bias")}
    other = copy.deepcopy(model)
    assert refill_zeros_(model, seed=3) == weight.numel() // 2
    filled = weight[:, ::2]
    assert filled.mean().item() == pytest.approx(before.mean().item(), abs=1e-3)
    assert filled.std().item() == pytest.approx(0.01 * before.std().item(), rel=0.1)
    assert torch.equal(weight[:, 1::2], before[:, 1::2])
    assert all(torch.equal(p, biases[n]) for n, p in model.named_parameters() if n.endswith("bias"))
    refill_zeros_(other, seed=3)
    assert torch.equal(base_model(other).get_submodule(site.output).weight, weight)
    assert refill_zeros_(model, seed=4) == 0
