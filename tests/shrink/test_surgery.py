"""The cut: what it keeps, what it computes, what it refuses."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.cost import cost_of
from hf_headprune.errors import HeadPruneError, InvalidPlanError, InvalidSettingError, UnsupportedModelError
from hf_headprune.masking import UnitScale, attach, masked
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.prunable import check_buildable, class_names
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import made
from tests.support.models import CACHE, text_inputs, tiny_bert, tiny_bert_decoder, tiny_distilbert, tiny_marian

ATTENTION = "encoder.layer.0.attention"
FFN = "encoder.layer.0.intermediate"


def small_plan(model):
    """Layer 0 keeps two heads and three units; layer 1 loses all its heads and all its units."""
    plan = PruningPlan.of(model)
    first_head, last_head = next(iter(plan.num_heads)), list(plan.num_heads)[-1]
    first_ffn, last_ffn = next(iter(plan.num_ffn)), list(plan.num_ffn)[-1]
    return plan.replace(kept_heads={first_head: (1, 3), last_head: ()}, kept_ffn={first_ffn: (0, 7, 63), last_ffn: ()})


@torch.no_grad()
def first_output(model, inputs):
    return model(**inputs)[0]


def test_the_right_rows_and_columns_stay():
    model = tiny_bert()
    dense = copy.deepcopy(model)
    plan = PruningPlan.of(model).replace(kept_heads={ATTENTION: (1, 3)}, kept_ffn={FFN: (0, 7, 63)})
    prune_model_(model, plan)
    rows = [*range(8, 16), *range(24, 32)]
    before, after = dense.bert.encoder.layer[0], model.bert.encoder.layer[0]
    for name in ("query", "key", "value"):
        old, new = getattr(before.attention.self, name), getattr(after.attention.self, name)
        assert torch.equal(new.weight, old.weight[rows])
        assert torch.equal(new.bias, old.bias[rows])
        assert (new.in_features, new.out_features) == (32, 16)
    assert torch.equal(after.attention.output.dense.weight, before.attention.output.dense.weight[:, rows])
    assert torch.equal(after.attention.output.dense.bias, before.attention.output.dense.bias)
    assert torch.equal(after.intermediate.dense.weight, before.intermediate.dense.weight[[0, 7, 63]])
    assert torch.equal(after.output.dense.weight, before.output.dense.weight[:, [0, 7, 63]])
    assert torch.equal(model.bert.encoder.layer[1].output.dense.weight, dense.bert.encoder.layer[1].output.dense.weight)


def test_the_same_object_returns_as_its_prunable_class_all_the_way_down():
    model = tiny_bert()
    assert prune_model_(model, small_plan(model)) is model
    assert type(model).__name__ == "PrunableBertForSequenceClassification"
    assert isinstance(model, BertForSequenceClassification)
    assert type(model.bert).__name__ == "PrunableBertModel"
    configs = {id(module.config) for module in model.modules() if hasattr(module, "config")}
    assert configs == {id(model.config)}
    assert model.config.model_type == "prunable_bert"
    assert model.config.to_dict()["per_layer_config"] == {
        "0": {"num_attention_heads": 2, "intermediate_size": 3},
        "1": {"num_attention_heads": 0, "intermediate_size": 0},
    }


def test_a_configuration_shared_with_another_model_stays_dense():
    model = tiny_bert()
    teacher = BertForSequenceClassification(model.config).eval()
    prune_model_(model, small_plan(model))
    assert teacher.config.model_type == "bert"
    assert type(teacher.config).__name__ == "BertConfig"
    assert first_output(teacher, text_inputs()).shape == (3, 2)


def test_a_layer_that_lost_everything_keeps_the_output_biases_under_their_names():
    model = tiny_bert()
    bias = model.bert.encoder.layer[1].attention.output.dense.bias.clone()
    prune_model_(model, small_plan(model))
    left = {name for name in model.state_dict() if name.startswith("bert.encoder.layer.1.")}
    assert left == {
        f"bert.encoder.layer.1.{name}"
        for name in (
            "attention.output.dense.bias",
            "attention.output.LayerNorm.weight",
            "attention.output.LayerNorm.bias",
            "output.dense.bias",
            "output.LayerNorm.weight",
            "output.LayerNorm.bias",
        )
    }
    assert torch.equal(model.bert.encoder.layer[1].attention.output.dense.bias, bias)


def test_the_anatomy_of_the_result_counts_what_the_plan_kept(any_model):
    plan = small_plan(any_model)
    cost = cost_of(plan, anatomy_of(any_model), seq_len=7)
    prune_model_(any_model, plan)
    anatomy = anatomy_of(any_model)
    assert {site.name: site.units for site in anatomy.sites} == {
        site: len(plan.kept(site)) for site in (*plan.num_heads, *plan.num_ffn)
    }
    assert cost_of(PruningPlan.full(anatomy), anatomy, seq_len=7) == cost
    assert sum(parameter.numel() for parameter in any_model.parameters()) == cost.parameters


def test_an_already_pruned_model_is_pruned_again(any_model, any_inputs):
    prune_model_(any_model, small_plan(any_model))
    again = PruningPlan.of(any_model)
    sites = [site for site, units in again.num_heads.items() if units]
    ffns = [site for site, units in again.num_ffn.items() if units]
    again = again.replace(kept_heads={sites[0]: (1,)}, kept_ffn={ffns[0]: (2,)})
    with masked(any_model, again):
        expected = first_output(any_model, any_inputs)
    prune_model_(any_model, again)
    torch.testing.assert_close(first_output(any_model, any_inputs), expected, atol=1e-6, rtol=1e-5)
    assert len(anatomy_of(any_model).sites) == len(again.num_heads) + len(again.num_ffn)
    assert any_model.config.per_layer_config[0].head_dim == 8


def test_a_plan_that_keeps_everything_changes_the_class_and_nothing_else(any_model, any_inputs):
    expected, names = first_output(any_model, any_inputs), set(any_model.state_dict())
    prune_model_(any_model, PruningPlan.of(any_model))
    assert torch.equal(first_output(any_model, any_inputs), expected)
    assert set(any_model.state_dict()) == names
    assert type(any_model).__name__ in class_names()


def test_training_mode_frozen_parameters_and_dtype_stay():
    model = tiny_bert(dtype=torch.bfloat16).to(torch.bfloat16).train()
    model.bert.pooler.eval()
    query = model.bert.encoder.layer[0].attention.self.query
    query.weight.requires_grad_(False)
    prune_model_(model, small_plan(model))
    assert model.training
    assert model.bert.encoder.layer[1].attention.self.training
    assert model.bert.encoder.layer[1].intermediate.dense.training
    assert not model.bert.pooler.training
    assert model.bert.encoder.layer[0].attention.self.query is query
    assert not query.weight.requires_grad
    assert query.bias.requires_grad
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_the_state_of_the_random_generator_stays():
    model = tiny_bert()
    state = torch.get_rng_state()
    prune_model_(model, small_plan(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_embeddings_stay_tied():
    model = tiny_bert("MaskedLM")
    prune_model_(model, small_plan(model))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    translator = tiny_marian()
    prune_model_(translator, small_plan(translator))
    assert translator.lm_head.weight is translator.model.decoder.embed_tokens.weight


def test_a_model_on_the_meta_device_is_cut_without_a_probe():
    with torch.device("meta"):
        model = tiny_bert()
    prune_model_(model, small_plan(model))
    assert model.bert.encoder.layer[0].attention.self.query.weight.shape == (16, 32)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def without_dropout(model):
    for module in model.modules():
        for name in ("p", "dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def test_a_pruned_model_trains_under_activation_checkpointing_to_the_same_gradients(any_model, any_inputs):
    plain = without_dropout(prune_model_(any_model, small_plan(any_model)))
    checkpointed = copy.deepcopy(plain)
    # the older end of the supported range knows the older name only, the newer end deprecates it
    enable = (
        getattr(checkpointed, "activation_checkpointing_enable", None) or checkpointed.gradient_checkpointing_enable
    )
    enable()
    for model in (plain, checkpointed):
        model(**any_inputs)[0].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    assert sum("layer" in name for name in gradients) > 10
    for name, parameter in checkpointed.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_compute_the_same(any_model, any_inputs, copied):
    prune_model_(any_model, small_plan(any_model))
    twin = copied(any_model)
    assert type(twin) is type(any_model)
    assert torch.equal(first_output(twin, any_inputs), first_output(any_model, any_inputs))
    assert twin.config.to_dict()["per_layer_config"] == any_model.config.to_dict()["per_layer_config"]


def test_attentions_of_a_headless_layer_are_empty_instead_of_missing(any_model, any_inputs):
    prune_model_(any_model, small_plan(any_model))
    any_model.set_attn_implementation("eager")
    output = any_model(**any_inputs, output_attentions=True)
    for name in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
        if output.get(name) is not None:
            assert len(output[name]) == 2
    if any_model.config.is_encoder_decoder:
        assert [weights.shape for weights in output.encoder_attentions] == [(3, 2, 9, 9), (3, 4, 9, 9)]
        assert [weights.shape for weights in output.decoder_attentions] == [(3, 4, 7, 7), (3, 4, 7, 7)]
        assert [weights.shape for weights in output.cross_attentions] == [(3, 4, 7, 9), (3, 0, 7, 9)]
    else:
        assert [weights.shape for weights in output.attentions] == [(3, 2, 9, 9), (3, 0, 9, 9)]


def test_attentions_are_recorded_after_a_cut_that_follows_a_recording():
    model = tiny_bert()
    model.set_attn_implementation("eager")
    assert len(model(**text_inputs(), output_attentions=True).attentions) == 2
    prune_model_(model, small_plan(model))
    attentions = model(**text_inputs(), output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(3, 2, 9, 9), (3, 0, 9, 9)]


def counted_flops(model, inputs):
    """What torch counts inside the layers of a model."""
    names = tuple(stack + "." for stack in ("encoder.layer", "encoder.layers", "transformer.layer", "decoder.layers"))
    counted = []
    with FlopCounterMode(display=False, depth=None) as counter:  # it follows modules by their gradient functions
        model(**inputs)
    for name, per_operator in counter.get_flop_counts().items():
        path = name.partition(".")[2]
        inside = any(f".{prefix}" in f".{path}" for prefix in names)
        if inside and path.rpartition(".")[2].isdecimal():
            counted.append(sum(per_operator.values()))
    return sum(counted)


def test_macs_equal_those_that_torch_counts(any_model, any_inputs):
    any_model.set_attn_implementation("eager")  # the counter knows matrix products, not fused attention on CPUs
    plan = small_plan(any_model)
    cost = cost_of(plan, anatomy_of(any_model), seq_len=9, target_len=7)
    prune_model_(any_model, plan)
    assert counted_flops(any_model, {name: tensor[:1] for name, tensor in any_inputs.items()}) == 2 * cost.macs > 0


@pytest.mark.parametrize("lengths", [{"seq_len": 0}, {"seq_len": 5, "target_len": 0}, {"seq_len": 2.5}])
def test_a_sequence_without_tokens_costs_no_number(lengths):
    anatomy = anatomy_of(tiny_marian())
    with pytest.raises(InvalidSettingError, match="lengths must be whole numbers of at least 1 token"):
        cost_of(PruningPlan.full(anatomy), anatomy, **lengths)


@pytest.mark.parametrize("cross", [True, False], ids=["with cross-attention", "alone"])
def test_macs_of_a_model_that_is_a_decoder_equal_those_that_torch_counts(cross):
    model = tiny_bert_decoder(add_cross_attention=cross, attn_implementation="eager")
    anatomy = anatomy_of(model)
    assert {site.kind for site in anatomy.attention_sites} == ({"decoder", "cross"} if cross else {"decoder"})
    cost = cost_of(PruningPlan.full(anatomy), anatomy, seq_len=5, target_len=9)
    inputs = {"input_ids": text_inputs(batch=1)["input_ids"], "use_cache": False}
    if cross:
        inputs["encoder_hidden_states"] = torch.randn(1, 5, 32)
    assert counted_flops(model, inputs) == 2 * cost.macs > 0


@pytest.mark.parametrize("heads", [(), (2,)], ids=["headless", "one head"])
def test_a_bert_decoder_with_a_cache_computes_what_it_computes_at_once(heads):
    model = tiny_bert_decoder()
    plan = PruningPlan.of(model).replace(
        kept_heads={ATTENTION: heads, "encoder.layer.0.crossattention": heads, "encoder.layer.1.crossattention": ()}
    )
    prune_model_(model, plan)
    inputs = {"input_ids": text_inputs(batch=2)["input_ids"], "encoder_hidden_states": torch.randn(2, 5, 32)}
    with torch.no_grad():
        at_once = model(**inputs, use_cache=False).logits
        first = model(**{**inputs, "input_ids": inputs["input_ids"][:, :4]}, use_cache=True)
        rest = {**inputs, "input_ids": inputs["input_ids"][:, 4:], CACHE: first[CACHE]}
        second = model(**rest, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), at_once, atol=1e-5, rtol=1e-5)
    assert second[CACHE].get_seq_length() == 9


def test_a_model_that_computes_its_ffn_in_chunks_is_cut():
    model = tiny_bert(chunk_size_feed_forward=16).eval()
    plan = PruningPlan.of(model)
    prune_model_(model, plan.replace(kept_heads={next(iter(plan.kept_heads)): (1,)}))
    assert model(torch.zeros(1, 16, dtype=torch.long)).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wrapped", "outside", "function", "in place"])
def test_a_compiled_model_is_masked_and_restored(how):
    model, inputs = tiny_bert().eval(), text_inputs()
    plan = PruningPlan.of(model)
    plan = plan.replace(kept_heads={**dict.fromkeys(plan.kept_heads, ()), next(iter(plan.kept_heads)): (0,)})
    with torch.no_grad():
        dense = model(**inputs).logits
        with masked(model, plan):
            expected = model(**inputs).logits
        compiled = torch.compile(model, backend="eager") if how in ("wrapped", "outside") else model
        if how == "function":
            compiled = torch.compile(partial(type(model).__call__, model), backend="eager")
        if how == "in place":
            model.compile(backend="eager")
        given = compiled if how == "wrapped" else model
        for _ in range(2):
            torch.testing.assert_close(compiled(**inputs).logits, dense)
            with masked(given, plan):
                torch.testing.assert_close(compiled(**inputs).logits, expected)
        torch.testing.assert_close(compiled(**inputs).logits, dense)
    assert not torch.allclose(dense, expected)


def test_a_causal_bert_generates_what_its_masked_one_does():
    model = tiny_bert_decoder(add_cross_attention=False, eos_token_id=2, bos_token_id=1)
    plan = PruningPlan.of(model).replace(kept_heads={ATTENTION: ()}, kept_ffn={FFN: (1, 2)})
    prompt = torch.tensor([[5, 9, 3], [7, 11, 40]])
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    mask = torch.ones_like(prompt)
    with masked(model, plan):
        expected = model.generate(prompt, attention_mask=mask, **settings)
    prune_model_(model, plan)
    assert torch.equal(model.generate(prompt, attention_mask=mask, **settings), expected)
    assert expected.shape == (2, 11)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_bert, tiny_distilbert, tiny_marian])
def test_a_compiled_pruned_model_computes_the_same_in_one_graph(make):
    model = make()
    inputs = {"input_ids": text_inputs()["input_ids"]}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
        model.config.use_cache = False
    prune_model_(model, small_plan(model))
    expected = first_output(model, inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # tracing is what surgery could break
    torch.testing.assert_close(first_output(compiled, inputs), expected)
    torch.compiler.reset()


def test_a_plan_of_another_model_is_refused_before_a_tensor_changes():
    model = tiny_bert()
    before = copy.deepcopy(model.state_dict())
    plan = PruningPlan.of(tiny_bert(num_hidden_layers=3)).replace(kept_heads={ATTENTION: (0,)})
    with pytest.raises(
        InvalidPlanError, match=r"encoder\.layer\.2\.attention: the plan counts 4 units, the model has None"
    ):
        prune_model_(model, plan)
    assert type(model) is BertForSequenceClassification
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    prune_model_(model, PruningPlan.of(model).replace(kept_heads={ATTENTION: (0,)}))


@pytest.mark.parametrize("verb", [prune_model_, lambda model, plan: masked(model, plan).__enter__()])
def test_what_is_no_plan_is_refused_by_name(verb):
    with pytest.raises(
        InvalidPlanError, match=r"must be a PruningPlan or a result that holds one, received a dict: \{'encoder"
    ):
        verb(tiny_bert(), {ATTENTION: [0]})


class Adapter(nn.Linear):
    """Stands for a LoRA or quantized linear module."""


def with_adapter(model):
    model.bert.encoder.layer[0].attention.self.value = Adapter(32, 32)


def with_parametrization(model):
    parametrizations.spectral_norm(model.bert.encoder.layer[0].attention.self.value)


def with_torch_pruning(model):
    prune.l1_unstructured(model.bert.encoder.layer[0].attention.self.value, "weight", amount=0.5)


def with_sharing(model):
    layers = model.bert.encoder.layer
    layers[0].attention.self.value.weight = layers[1].attention.self.value.weight


def with_gates(model):
    site = anatomy_of(model).sites[0]
    attach(model, site, UnitScale(site.unit_width, torch.ones(site.units)))


def with_flattened_weight(model):
    linear = model.bert.encoder.layer[0].attention.self.value
    linear.weight = nn.Parameter(torch.empty(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_adapter, r"layer\.0\.attention\.self\.value is a .*Adapter"),
        (with_parametrization, r"layer\.0\.attention\.self\.value is a .*ParametrizedLinear"),
        (with_torch_pruning, r"layer\.0\.attention\.self\.value\.weight is no ordinary parameter"),
        (with_sharing, r"layer\.0\.attention\.self\.value shares a parameter with another module"),
        (with_gates, r"layer\.0\.attention\.output\.dense still carries gates or a mask"),
        (with_flattened_weight, r"layer\.0\.attention\.self\.value\.weight has shape \(0,\)"),
    ],
)
def test_a_module_that_is_no_plain_linear_one_is_refused_where_it_would_be_cut(change, message):
    model = tiny_bert()
    plan = PruningPlan.of(model).replace(kept_heads={ATTENTION: (0,)})
    change(model)
    with pytest.raises(UnsupportedModelError, match=message):
        prune_model_(model, plan)
    assert type(model) is BertForSequenceClassification


def test_an_adapter_elsewhere_is_no_obstacle():
    model = tiny_bert()
    model.classifier = Adapter(32, 2)
    prune_model_(model, PruningPlan.of(model).replace(kept_heads={ATTENTION: (0,)}))
    assert anatomy_of(model).num_heads == 5


@pytest.mark.parametrize("given", [None, "bert"])
def test_what_is_no_model_is_refused(given):
    with pytest.raises(UnsupportedModelError, match="no declaration says where its heads are"):
        prune_model_(given, PruningPlan.of(tiny_bert()))


def test_a_wrapper_is_refused_with_the_classes_that_have_a_sibling():
    class Wrapper(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.config, self.base_model = model, model.config, model.base_model

    model = Wrapper(tiny_bert())
    with pytest.raises(UnsupportedModelError, match=r"Wrapper has no prunable sibling.*BertForSequenceClassification"):
        prune_model_(model, PruningPlan.of(model))


def test_a_hook_that_uses_what_was_cut_makes_the_check_fail():
    model = tiny_bert()
    value = model.bert.encoder.layer[0].attention.self.value
    value.register_forward_hook(lambda module, args, output: output * module.out_features)
    plan = PruningPlan.of(model).replace(kept_heads={ATTENTION: (0,)})
    with pytest.raises(HeadPruneError, match=r"after pruning, the last hidden state .* differs"):
        prune_model_(model, plan)


def test_infinities_in_the_outputs_are_reported_and_do_not_stop_the_cut(caplog):
    model = tiny_bert()
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.bias.fill_(3e38)  # finite itself
    prune_model_(model, small_plan(model))
    assert "could not be checked against the mask" in caplog.text


def test_the_probe_fits_models_with_few_positions_and_tokens():
    model = tiny_bert("MaskedLM", vocab_size=5, max_position_embeddings=3)
    prune_model_(model, PruningPlan.of(model).replace(kept_heads={ATTENTION: (0,)}))
    assert anatomy_of(base_model(model)).num_heads == 5


def test_a_plan_whose_model_the_host_could_not_build_again_is_refused_before_the_cut(tmp_path):
    dense, _ = made("modernbert")
    config = copy.deepcopy(dense.config)
    scaled = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    config.rope_parameters = dict.fromkeys(config.rope_parameters, scaled)
    model = type(dense)(config).eval()
    full = PruningPlan.of(model)
    kinds = zip(full.num_heads, config.layer_types, strict=True)
    emptied = full.replace(kept_heads={site: () for site, kind in kinds if kind == "full_attention"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        prune_model_(model, emptied)
    except UnsupportedModelError:
        assert type(model) is type(dense)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    else:  # a version of the host that builds it
        model.save_pretrained(tmp_path)
        assert anatomy_of(type(model).from_pretrained(tmp_path)).num_heads < sum(full.num_heads.values())


def test_what_the_host_does_not_build_is_named():
    class Host:
        def __init__(self, config):
            self.size = 32 // config.num_attention_heads

    with pytest.raises(UnsupportedModelError, match=r"Host: what would be saved could not be read.*ZeroDivisionError"):
        check_buildable(Host, BertConfig(num_attention_heads=0))


def test_a_model_is_not_cut_inside_of_inference_mode():
    model = tiny_bert()
    plan = PruningPlan.of(model).replace(kept_heads={"encoder.layer.0.attention": (0,)})
    with torch.inference_mode(), pytest.raises(InvalidSettingError, match="weights that are made inside of"):
        prune_model_(model, plan)
    assert type(model).__name__ == "BertForSequenceClassification"
