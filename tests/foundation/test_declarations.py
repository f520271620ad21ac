"""What a declaration refuses: models whose layers differ from it, families that can't be pruned, and why."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from hf_headprune import anatomy
from hf_headprune.anatomy import Price, anatomy_of, family_of
from hf_headprune.budgets import budget_groups
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.families import FAMILIES, REFUSED
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.resize import check_can_cut
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import made
from tests.support.models import IMAGE_SIZES


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("modernbert", "layers.0.attn.Wqkv", r"Wqkv has 95 rows, but '3 u d' makes 96"),
        ("llama", "layers.0.self_attn.k_proj", r"k_proj has 31 rows, but 'u d' makes 32"),
        ("phi3", "layers.0.self_attn.qkv_proj", r"qkv_proj has 127 rows, but 'u r d \+ u d \+ u d' makes 128"),
        ("gpt_neox", "layers.0.attention.query_key_value", r"query_key_value has 95 rows, but 'u 3 d' makes 96"),
    ],
)
def test_each_layout_must_account_for_every_row(name, path, message):
    model, _ = made(name)
    anatomy_of(model)
    linear = model.base_model.get_submodule(path)
    linear.weight = nn.Parameter(linear.weight[:-1])
    linear.out_features -= 1
    with pytest.raises(UnsupportedModelError, match=message):
        anatomy_of(model)


def test_an_output_projection_must_hold_whole_units():
    model, _ = made("vit")
    model.vit.layers[1].attention.o_proj.in_features = 31
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.attention: .*31 columns, no multiple of u d"):
        anatomy_of(model)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_not_supported_is_refused_with_the_reason(name):
    assert name not in FAMILIES
    config = transformers.AutoConfig.for_model(name)
    with pytest.raises(UnsupportedModelError, match=f"{type(config).__name__} can't be pruned: {REFUSED[name][:20]}"):
        family_of(config)


def test_heads_that_depend_on_each_other_are_left_out_with_the_reason():
    model, _ = made("olmo2")
    found = anatomy_of(model)
    assert not found.attention_sites
    assert found.ffn_sites
    with pytest.raises(InvalidSettingError, match=r"heads of olmo2 can't be pruned, since .*normalised over all heads"):
        budget_groups(3, found)


def test_an_older_transformers_is_named_where_the_layers_were_others(monkeypatch):
    model = transformers.Dinov2Model(transformers.Dinov2Config(**IMAGE_SIZES))
    monkeypatch.setattr(anatomy, "is_older_than", lambda version: version == FAMILIES["dinov2"].since)
    with pytest.raises(UnsupportedModelError, match=r"from Transformers 5\.24 on"):
        anatomy_of(model)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_query_heads_are_the_units_where_groups_of_them_share_keys(name):
    model, _ = made(name)  # eight query heads of width 8 in four groups
    (site, *_) = anatomy_of(model).attention_sites
    assert (site.units, site.unit_width, site.group, site.groups, site.group_width) == (8, 8, 2, 4, 16)
    assert sum(part.rows.per_unit for part in site.parts) == 16 + 8 + 8
    assert site.parameters == Price(site.hidden_size * (8 + 8), site.hidden_size * (8 + 8))
    assert site.bytes == Price(4 * site.parameters.per_unit, 4 * site.parameters.per_group)
    assert site.price(site.parameters, (0, 2, 3)) == site.hidden_size * (3 * 16 + 2 * 16)


def test_a_gated_unit_has_two_rows_and_a_column():
    for name in ("modernbert", "llama"):
        model, _ = made(name)
        (site, *_) = anatomy_of(model).ffn_sites
        assert site.is_gated
        assert site.parameters == Price(3 * 32)


def test_a_layer_that_albert_shares_costs_as_often_as_it_is_used():
    model, _ = made("albert")  # four layers in two groups
    assert {site.uses for site in anatomy_of(model).sites} == {2}


def test_a_transposed_matrix_of_another_class_is_not_cut():
    model, _ = made("gpt2")
    block = model.transformer.h[0].attn
    block.c_proj = nn.Linear(32, 32)
    with pytest.raises(UnsupportedModelError, match=r"c_proj is a torch\.nn\.modules\.linear\.Linear"):
        check_can_cut(model, anatomy_of(model).sites)


def test_heads_kept_of_a_shared_bias_are_in_the_checkpoint(tmp_path):
    model, inputs = made("mpnet")
    plan = PruningPlan.of(model).replace(kept_heads={"encoder.layer.1.attention.attn": (0, 3)})
    prune_model_(model, plan)
    assert model.mpnet.encoder.layer[1].attention.attn.headprune_kept_heads.tolist() == [0, 3]
    again = PruningPlan.of(model).replace(kept_heads={"encoder.layer.1.attention.attn": (1,)})
    prune_model_(model, again).save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert reloaded.mpnet.encoder.layer[1].attention.attn.headprune_kept_heads.tolist() == [3]
    with torch.no_grad():
        assert torch.equal(reloaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["t5", "mpnet"])
def test_a_model_built_without_memory_takes_the_first_heads_of_a_shared_bias(name, tmp_path):
    def kept(model):
        return {key: value.tolist() for key, value in model.named_buffers() if key.endswith("headprune_kept_heads")}

    model, inputs = made(name)
    plan = PruningPlan.of(model)
    prune_model_(model, plan.replace(kept_heads=dict.fromkeys(plan.num_heads, (1, 3))))
    assert [*map(tuple, kept(model).values())] == [(1, 3)] * len(plan.num_heads)
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = type(model)(model.config).eval()
    for value in empty.to_empty(device="cpu").state_dict().values():
        value.fill_(77)
    empty.init_weights()
    assert kept(empty) == {key: [0, 1] for key in kept(model)}
    assert empty(**inputs)[0].isfinite().all()
    loaded = type(model).from_pretrained(tmp_path)
    loaded.init_weights()
    assert kept(loaded) == kept(model)
