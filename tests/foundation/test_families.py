"""The contract of every declared family: masked == pruned == reloaded, and the saved file is what the plan costs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

from hf_headprune._certificate_file import attach_certificate_, weights_sha256
from hf_headprune.anatomy import anatomy_of
from hf_headprune.cost import cost_of
from hf_headprune.errors import InvalidConfigError
from hf_headprune.families import FAMILIES
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.prunable import class_names
from hf_headprune.shrink.saved_plan import plan_from_dense
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import implementations, made, random_plan
from tests.support.models import FAMILY_NAMES, TINY_FAMILIES, tiny_bert_decoder

OTHERS = [(name, attention) for name in FAMILIES if name not in FAMILY_NAMES for attention in implementations(name)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
PROPERTY = settings(max_examples=4, deadline=None, database=None)


@st.composite
def plans(draw, model):
    """Any plan of a model; layers that lose everything are as likely as those that lose nothing."""
    full = PruningPlan.of(model)
    kept = {}
    for site, units in {**full.num_heads, **full.num_ffn}.items():
        subsets = st.sets(st.integers(0, units - 1), max_size=min(units, 8)).map(sorted)
        kept[site] = tuple(draw(st.one_of(st.just(()), st.just(tuple(range(units))), subsets)))
    return full.replace(
        kept_heads={site: kept[site] for site in full.num_heads}, kept_ffn={site: kept[site] for site in full.num_ffn}
    )


@torch.no_grad()
def logits_of(model, inputs):
    return model(**inputs)[0]


def assert_saved_as_planned(folder, cost, model):
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 # the file is no mapping
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == cost.size_bytes
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters


def test_every_declared_family_has_a_tiny_model_for_these_tests():
    assert set(TINY_FAMILIES) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_masked_equals_pruned_equals_reloaded_for_any_plan(name, attention, dtype):
    family = TINY_FAMILIES[name]

    @PROPERTY
    @given(data=st.data(), seed=st.integers(0, 1000))
    def holds(data, seed):
        model = family.make(seed=seed).to(dtype)
        model.set_attn_implementation(attention)
        assert_contract(model, data.draw(plans(model)), family.inputs(seed=seed), auto=family.auto)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attention"), OTHERS)
def test_masked_equals_pruned_equals_reloaded(name, attention, tmp_path):
    for seed, dtype in ((0, torch.float32), (1, torch.bfloat16)):
        model, inputs = made(name, seed=seed)
        if dtype != torch.float32:  # what is no parameter gets the precision that loading gives it
            model.save_pretrained(tmp_path)
            model = type(model).from_pretrained(tmp_path, dtype=dtype)
        inputs = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in inputs.items()}
        model.set_attn_implementation(attention)
        assert_contract(model, random_plan(model, seed=seed), inputs, auto=TINY_FAMILIES[name].auto)


VARIANTS = [
    ("deberta-v2", {"share_att_key": True}),
    ("deberta-v2", {"pos_att_type": ["c2p"], "conv_kernel_size": 3}),
    ("deberta-v2", {"relative_attention": False}),
    ("dinov2", {"use_swiglu_ffn": True}),
    ("gpt2", {"n_inner": 40}),
    ("qwen2", {"num_key_value_heads": 8}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 4}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("t5", {"num_decoder_layers": 3}),
    ("bart", {"decoder_attention_heads": 2}),
    ("albert", {"num_hidden_groups": 1, "inner_group_num": 2}),
    ("modernbert", {"attention_bias": True, "mlp_bias": True}),
    ("wav2vec2", {"do_stable_layer_norm": True}),
    ("swin", {"use_absolute_embeddings": True, "qkv_bias": False, "depths": [1, 1], "mlp_ratio": 3.0}),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_other_forms_of_a_family_keep_the_same_contract(name, settings):
    model, inputs = made(name, seed=3, **settings)
    assert_contract(model, random_plan(model, seed=3), inputs, auto=TINY_FAMILIES[name].auto)


@pytest.mark.parametrize("name", ["qwen3", "phi3"])
def test_groups_of_query_heads_are_cut_twice_and_known_by_their_first_numbers(name):
    model, inputs = made(name, num_key_value_heads=2)  # four query heads each
    full = PruningPlan.of(model)
    first, second = full.num_heads
    plan = full.replace(kept_heads={first: (0, 2, 3, 4, 5, 7), second: (5, 7)})
    assert_contract(model, plan, inputs, auto=TINY_FAMILIES[name].auto)
    entries = model.config.to_dict()["per_layer_config"]
    assert entries["0"] == {"num_attention_heads": 6}  # two groups, as before
    assert entries["1"] == {"num_attention_heads": 2, "num_key_value_heads": 1}
    assert PruningPlan.of(model).heads_per_group == {first: 3, second: 2}
    again = PruningPlan.of(model).replace(kept_heads={first: (1, 2, 3, 5), second: (1,)})
    assert_contract(model, again, inputs, auto=TINY_FAMILIES[name].auto)
    assert plan_from_dense(model).kept_heads == {first: (2, 3, 4, 7), second: (7,)}


def test_gpt2_with_cross_attention_keeps_the_same_contract():
    model, inputs = made("gpt2", add_cross_attention=True)
    inputs["encoder_hidden_states"] = torch.randn(3, 5, 32)
    assert {site.kind for site in anatomy_of(model).sites} == {"decoder", "cross", "ffn"}
    assert_contract(model, random_plan(model, seed=0), inputs, auto="AutoModelForCausalLM")


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_classifier_with_the_image_tower_alone_keeps_the_same_contract(name):
    towers, inputs = made(name, num_labels=3)
    model = getattr(transformers, type(towers).__name__.replace("Model", "ForImageClassification"))(towers.config)
    assert {site.tower for site in anatomy_of(model).sites} == {"vision_config"}
    images = {"pixel_values": inputs["pixel_values"]}
    assert_contract(model.eval(), random_plan(model, seed=0), images, auto="AutoModelForImageClassification")


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_new_head_may_be_put_on_a_pruned_image_tower(name, tmp_path):
    towers, _ = made(name, num_labels=3)
    prune_model_(towers, random_plan(towers, seed=0)).save_pretrained(tmp_path)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)  # the whole has no classifier
    assert model.classifier.weight.shape[0] == 3
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidConfigError, match=r"classifier\.bias has shape .*pass ignore_mismatched_sizes=True"):
        type(model).from_pretrained(tmp_path, num_labels=5)
    fresh = type(model).from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert fresh.classifier.weight.shape[0] == 5
    state = {key: value for key, value in model.state_dict().items() if "post_layernorm" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InvalidConfigError, match=r"post_layernorm\.weight is missing from the weights"):
        type(model).from_pretrained(tmp_path)


def test_the_layers_of_each_tower_are_in_its_own_configuration(tmp_path):
    model, _ = made("siglip")
    heads = {"vision_model.encoder.layers.1.self_attn": (2,), "text_model.encoder.layers.2.self_attn": (0, 1, 3)}
    prune_model_(model, PruningPlan.of(model).replace(kept_heads=heads)).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert [type(found).__name__ for found in (config, config.text_config, config.vision_config)] == [
        "PrunableSiglipConfig",
        "PrunableSiglipTextConfig",
        "PrunableSiglipVisionConfig",
    ]
    assert config.text_config.to_dict()["per_layer_config"] == {"2": {"num_attention_heads": 3}}
    assert config.vision_config.to_dict()["per_layer_config"] == {"1": {"num_attention_heads": 1}}
    config.vision_config = transformers.SiglipVisionConfig()
    with pytest.raises(InvalidConfigError, match="vision_config must be a PrunableSiglipVisionConfig"):
        type(model)(config)


def test_a_tower_is_pruned_alone_and_the_whole_says_so(tmp_path):
    model, inputs = made("clip")
    tower = model.vision_model
    plan = random_plan(tower, seed=1)
    prefixed = {f"vision_model.{site}": units for site, units in {**plan.kept_heads, **plan.kept_ffn}.items()}
    full = PruningPlan.of(model)
    same = full.replace(
        kept_heads={site: units for site, units in prefixed.items() if site in full.kept_heads},
        kept_ffn={site: units for site, units in prefixed.items() if site in full.kept_ffn},
    )
    with masked(model, same):
        expected = logits_of(model, inputs)
    prune_model_(tower, plan)
    assert type(model).__name__ == "PrunableCLIPModel"
    assert model.config.vision_config is tower.config
    torch.testing.assert_close(logits_of(model, inputs), expected)
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(logits_of(reloaded, inputs), logits_of(model, inputs))
    with pytest.raises(InvalidConfigError, match=r"both towers of a clip: load it by AutoModel, and take its \.vision"):
        type(tower).from_pretrained(tmp_path)


def test_stages_of_a_swin_have_numbers_of_their_own(tmp_path):
    model, _ = made("swin")
    kept = {"encoder.layers.0.blocks.1.attention": (1,), "encoder.layers.1.blocks.0.attention": (0, 2, 3)}
    prune_model_(model, PruningPlan.of(model).replace(kept_heads=kept)).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    entries = config.to_dict()["per_layer_config"]
    assert [entries[str(layer)]["num_layer_heads"] for layer in range(4)] == [2, 1, 3, 4]
    assert [entries[str(layer)]["num_ffn_units"] for layer in range(4)] == [32, 32, 64, 64]
    assert (config.num_heads, config.num_hidden_layers) == ([2, 4], 4)
    with pytest.raises(InvalidConfigError, match=r"layer 1: num_layer_heads must be an integer from 0 to 2, "):
        config.per_layer_config = {1: {"num_layer_heads": 3}}


def assert_contract(model, plan, inputs, *, auto):
    """Checks that masked, pruned and reloaded models compute the same, that the file is what the plan costs, and that a
    certificate of the weights stays with them.
    """
    cost, dtype, attention = cost_of(plan, anatomy_of(model), seq_len=9), model.dtype, model.config._attn_implementation
    with masked(model, plan):
        expected = logits_of(model, inputs)
    prune_model_(model, plan)
    received = logits_of(model, inputs)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(received / scale, expected / scale, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    certificate = json.dumps({"pruned": {"weights": weights_sha256(model.state_dict())}})
    attach_certificate_(model, certificate)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        assert_saved_as_planned(folder, cost, model)
        reloaded = getattr(transformers, auto).from_pretrained(folder, attn_implementation=attention)
    assert type(reloaded) is type(model)
    assert reloaded.dtype == dtype
    assert torch.equal(logits_of(reloaded, inputs), received)
    assert PruningPlan.of(reloaded) == PruningPlan.of(model)
    assert reloaded.headprune_certificate == certificate
    assert weights_sha256(reloaded.state_dict()) == json.loads(certificate)["pruned"]["weights"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_bert_decoder_with_cross_attention_keeps_the_same_contract(attention, tmp_path):
    model = tiny_bert_decoder()
    model.set_attn_implementation(attention)
    inputs = {**TINY_FAMILIES["bert"].inputs(), "encoder_hidden_states": torch.randn(3, 5, 32)}
    plan = PruningPlan.of(model).replace(
        kept_heads={
            "encoder.layer.0.attention": (),
            "encoder.layer.0.crossattention": (1, 2),
            "encoder.layer.1.attention": (0, 3),
            "encoder.layer.1.crossattention": (),
        },
        kept_ffn={"encoder.layer.0.intermediate": (5, 9)},
    )
    with masked(model, plan):
        expected = logits_of(model, inputs)
    prune_model_(model, plan)
    received = logits_of(model, inputs)
    torch.testing.assert_close(received, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(logits_of(reloaded, inputs), received)
    assert reloaded.config.to_dict()["per_layer_config"]["0"]["num_cross_attention_heads"] == 2


def test_every_head_and_unit_of_a_model_may_go(any_model, any_inputs, tmp_path):
    full = PruningPlan.of(any_model)
    plan = full.replace(kept_heads=dict.fromkeys(full.num_heads, ()), kept_ffn=dict.fromkeys(full.num_ffn, ()))
    with masked(any_model, plan):
        expected = logits_of(any_model, any_inputs)
    prune_model_(any_model, plan)
    torch.testing.assert_close(logits_of(any_model, any_inputs), expected, atol=1e-5, rtol=1e-5)
    any_model.save_pretrained(tmp_path)
    reloaded = type(any_model).from_pretrained(tmp_path)
    assert torch.equal(logits_of(reloaded, any_inputs), logits_of(any_model, any_inputs))
    assert PruningPlan.of(reloaded).num_kept_heads == PruningPlan.of(reloaded).num_kept_ffn == 0


def test_the_base_model_alone_is_pruned_saved_and_reloaded(tiny_family, tmp_path):
    model = tiny_family.make().base_model.eval()
    inputs = tiny_family.inputs()
    plan = PruningPlan.of(model)
    site = next(iter(plan.num_heads))
    prune_model_(model, plan.replace(kept_heads={site: (2,)}))
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert type(reloaded) is type(model)
    assert torch.equal(logits_of(reloaded, inputs), logits_of(model, inputs))


def test_a_base_model_is_read_from_the_checkpoint_of_a_task(any_model, tmp_path, tiny_family):
    plan = PruningPlan.of(any_model)
    prune_model_(any_model, plan.replace(kept_heads={next(iter(plan.num_heads)): ()}))
    any_model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert PruningPlan.of(base) == PruningPlan.of(any_model)
    expected = logits_of(any_model.base_model, tiny_family.inputs())
    torch.testing.assert_close(logits_of(base, tiny_family.inputs()), expected)


def test_the_configuration_speaks_the_schema_of_transformers(any_model, tmp_path):
    plan = PruningPlan.of(any_model)
    prune_model_(any_model, plan.replace(kept_heads={next(iter(plan.num_heads)): (0, 1, 2)}))
    any_model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    site = anatomy_of(any_model).sites[0]
    assert type(config).__name__ in class_names()
    assert config.head_dim == 8
    assert config.to_dict()["per_layer_config"] == {"0": {site.field: 3}}
    assert getattr(config.per_layer_config[0], site.field) == 3
    assert getattr(config.per_layer_config[1], site.field) == getattr(config, site.dense_field) == 4


def test_a_fresh_model_is_built_from_a_configuration_alone(any_model, any_inputs):
    plan = PruningPlan.of(any_model)
    prune_model_(any_model, plan.replace(kept_heads={next(iter(plan.num_heads)): ()}))
    torch.manual_seed(0)
    fresh = type(any_model)(any_model.config).eval()
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == {
        name: tensor.shape for name, tensor in any_model.state_dict().items()
    }
    assert all(parameter.isfinite().all() for parameter in fresh.parameters())
    assert logits_of(fresh, any_inputs).isfinite().all()


class WithExtraState(torch.nn.Linear):
    """Keeps something beside its tensors, as quantized modules do."""

    def get_extra_state(self):
        return torch.float32


def test_what_a_state_holds_beside_tensors_has_no_size():
    model, _ = made("bert")
    expected = anatomy_of(model).num_bytes
    model.classifier.__class__ = WithExtraState
    assert "classifier._extra_state" in model.state_dict()
    assert anatomy_of(model).num_bytes == expected
