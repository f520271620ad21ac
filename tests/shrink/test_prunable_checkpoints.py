"""Saved, loaded, generated, refused: the classes and configurations of pruned models."""

from __future__ import annotations

import json
import pickle
import re
from functools import partial
from inspect import signature

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    TOKENIZER_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedImageModeling,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    ViTModel,
    pipeline,
)

from hf_headprune.anatomy import anatomy_of, family_of
from hf_headprune.errors import InvalidConfigError, InvalidSettingError
from hf_headprune.families import FAMILIES
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.onnx import export_onnx
from hf_headprune.publish.openvino import export_openvino
from hf_headprune.shrink import prunable
from hf_headprune.shrink.config import prunable_config
from hf_headprune.shrink.export import export_model
from hf_headprune.shrink.prunable import class_names, prunable_named, prunable_of
from hf_headprune.shrink.registration import register_auto_classes
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import made
from tests.support.models import (
    CACHE,
    EOS,
    TINY_FAMILIES,
    VOCAB_SIZE,
    text_inputs,
    tiny_bart,
    tiny_bert,
    tiny_electra,
    tiny_marian,
    tiny_xlm_roberta,
    translation_inputs,
)

PrunableBertConfig = prunable_named("PrunableBertConfig")
PrunableMarianConfig = prunable_named("PrunableMarianConfig")
PrunableLlamaConfig = prunable_named("PrunableLlamaConfig")
DENSE_CLASSES = [
    getattr(transformers, name.removeprefix("Prunable")) for name in class_names() if not name.endswith("Config")
]
BERT_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def pruned(model):
    """Layer 0 of the first stack keeps some heads and three units; the last site of each kind keeps nothing."""
    plan = PruningPlan.of(model)
    heads, ffn = list(plan.num_heads), list(plan.num_ffn)
    kept_heads = {heads[0]: {1, plan.num_heads[heads[0]] - 1}, heads[-1]: ()} if heads else {}
    kept_ffn = {ffn[0]: (0, 7, plan.num_ffn[ffn[0]] - 1), ffn[-1]: ()}
    return prune_model_(model, plan.replace(kept_heads=kept_heads, kept_ffn=kept_ffn))


@torch.no_grad()
def logits_of(model, inputs):
    first = model(**inputs)[0]
    return first[-1] if isinstance(first, tuple) else first  # the last stage of a backbone


# --- every class -----------------------------------------------------------------------------------------------------


def inputs_for(model):
    family, accepted = TINY_FAMILIES[family_of(model).model_type], signature(type(model).forward).parameters
    own = {name: tensor for name, tensor in family.inputs().items() if name in accepted}
    if own and not {"input_ids", "decoder_input_ids"} <= own.keys() and family.inputs is not text_inputs:
        return own  # images, sound, or an encoder alone
    inputs = text_inputs()
    if model.config.is_encoder_decoder:
        if not re.search("Classification|Answering", type(model).__name__):
            return translation_inputs()
        inputs["input_ids"][:, 5] = EOS  # BART classifies at the last of them
    if "MultipleChoice" in type(model).__name__:
        return {name: tensor.unsqueeze(0) for name, tensor in inputs.items()}
    return inputs


@pytest.mark.parametrize("dense_class", DENSE_CLASSES, ids=lambda cls: cls.__name__)
def test_every_task_class_is_pruned_saved_and_reloaded(dense_class, tmp_path):
    config = made(dense_class.config_class.model_type)[0].config
    config.is_decoder = dense_class.__name__.endswith(("ForCausalLM", "LMHeadModel"))
    torch.manual_seed(0)
    model = pruned(dense_class(config).eval())
    assert type(model) is prunable_of(dense_class)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits_of(reloaded, inputs_for(model)), logits_of(model, inputs_for(model)))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [f"Prunable{dense_class.__name__}"]


@pytest.mark.parametrize("num_labels", [1, 2, 3])
@pytest.mark.parametrize("make", [tiny_bert, tiny_bart], ids=["bert", "bart"])
def test_a_classifier_of_any_number_of_labels_is_read_again(make, num_labels, tmp_path):
    dense = make(
        "BartForSequenceClassification" if make is tiny_bart else "SequenceClassification", num_labels=num_labels
    )
    pruned(dense).save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert reloaded.config.num_labels == num_labels
    assert torch.equal(logits_of(reloaded, inputs_for(dense)), logits_of(dense, inputs_for(dense)))


@pytest.mark.parametrize("make", [tiny_electra, tiny_xlm_roberta], ids=["electra", "xlm-roberta"])
def test_decoders_of_other_families_look_at_an_encoder(make, tmp_path):
    model = pruned(make("CausalLM", is_decoder=True, add_cross_attention=True))
    states = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    inputs = text_inputs() | {"encoder_hidden_states": states}
    assert torch.equal(logits_of(reloaded, inputs), logits_of(model, inputs))


def siblings_of(found):
    return tuple(map(prunable_of, found)) if isinstance(found, (tuple, list)) else prunable_of(found)


@pytest.fixture(scope="module")
def auto_classes():
    return [getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel")]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_auto_class_of_the_dense_model_knows_the_pruned_one(family, auto_classes):
    config_class = prunable_config(family)
    dense_config = transformers.CONFIG_MAPPING[family]
    known = 0
    for auto_class in auto_classes:
        mapping = getattr(auto_class, "_model_mapping", None) or {}
        if dense_config in mapping:
            assert mapping[config_class] == siblings_of(mapping[dense_config])
            known += 1
    assert known >= 1 or FAMILIES[family].body  # which no Auto class makes
    assert transformers.AutoConfig.for_model(f"prunable_{family}").model_type == f"prunable_{family}"
    assert TOKENIZER_MAPPING.get(config_class, None) == TOKENIZER_MAPPING.get(dense_config, None)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_dense_class_that_opens_a_pruned_checkpoint_says_which_class_can(family, tmp_path):
    model, _ = made(family)
    dense = type(model)
    pruned(model).save_pretrained(tmp_path)
    with pytest.raises(InvalidConfigError, match=rf"of type 'prunable_{family}'; .*by hf_headprune\.Prunable.*plain"):
        dense.from_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).num_parameters() == model.num_parameters()


def test_registering_twice_is_harmless():
    register_auto_classes()
    register_auto_classes()
    assert transformers.AutoConfig.for_model("prunable_bert").__class__ is PrunableBertConfig


@pytest.mark.parametrize("name", class_names())
def test_classes_are_found_by_module_and_name(name):
    cls = prunable_named(name)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert getattr(prunable, name) is cls
    assert cls.__name__ == name


# --- saving and loading ----------------------------------------------------------------------------------------------


def test_a_sharded_checkpoint_reloads(any_model, any_inputs, tmp_path):
    pruned(any_model).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    reloaded = type(any_model).from_pretrained(tmp_path)
    assert torch.equal(logits_of(reloaded, any_inputs), logits_of(any_model, any_inputs))


@pytest.mark.parametrize("variant", [None, "mine"])
@pytest.mark.parametrize("sizes", [("1GB", "8KB"), ("8KB", "1GB"), ("8KB", "16KB")])
def test_a_folder_holds_the_weights_that_were_saved_last_whatever_number_of_files_they_have(sizes, variant, tmp_path):
    model = pruned(tiny_bert())
    for size in sizes:
        with torch.no_grad():
            model.classifier.bias.add_(1.0)
        model.save_pretrained(tmp_path, max_shard_size=size, variant=variant)
    reloaded = type(model).from_pretrained(tmp_path, variant=variant)
    assert torch.equal(reloaded.classifier.bias, model.classifier.bias)
    ends = {file.name for file in tmp_path.glob("*safetensors*")}
    assert len(ends & {"model.safetensors", "model.mine.safetensors"}) == (sizes[-1] == "1GB")
    assert any("index" in name for name in ends) == (sizes[-1] != "1GB")


def test_weights_of_another_model_are_not_saved_in_place_of_its_own(tmp_path):
    model = pruned(tiny_bert())
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidSettingError, match=r"state_dict is of another model: .* has shape"):
        model.save_pretrained(tmp_path, state_dict=tiny_bert().state_dict())
    reloaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(reloaded.classifier.weight, model.classifier.weight)


def test_a_plain_checkpoint_replaces_one_of_several_files(tmp_path):
    model = tiny_bert()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    full = PruningPlan.of(model)
    prune_model_(model, full.replace(kept_ffn={site: range(8) for site in full.num_ffn}))
    export_model(model, tmp_path, mode="plain")
    assert sorted(file.name for file in tmp_path.glob("model*")) == ["model.safetensors"]


def test_reloaded_weights_lie_in_memory_as_fresh_ones_do(any_model, tmp_path):
    pruned(any_model).save_pretrained(tmp_path)
    reloaded = type(any_model).from_pretrained(tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in reloaded.parameters()} == {0}


def test_dtype_and_attention_of_the_reloaded_model_may_be_chosen(any_model, tmp_path):
    pruned(any_model).save_pretrained(tmp_path)
    reloaded = type(any_model).from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    floating = {parameter.dtype for parameter in reloaded.parameters()}
    assert floating == {torch.bfloat16}
    assert reloaded.config._attn_implementation == "eager"


def test_a_checkpoint_is_smaller_on_disk_by_what_the_plan_removed(tmp_path):
    model = tiny_bert()
    model.save_pretrained(tmp_path / "dense")
    before = anatomy_of(model).num_bytes
    pruned(model).save_pretrained(tmp_path / "pruned")
    dense_size, pruned_size = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "pruned"))
    header_change = 4096  # fewer and shorter entries in the header
    assert abs((dense_size - pruned_size) - (before - anatomy_of(model).num_bytes)) < header_change
    assert anatomy_of(model).num_bytes < before - 10_000


def test_a_pipeline_reads_the_folder_with_its_tokenizer(tmp_path):
    model = pruned(tiny_bert(num_labels=3))
    model.save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("tokenizer_class")  # so that the class can come from the type of the configuration only
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is TOKENIZER_MAPPING[BertConfig]
    assert tokenizer.tokenize("a good film") == ["a", "good", "film"]
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    expected = logits_of(model, dict(tokenizer("a good film", return_tensors="pt"))).softmax(-1)
    answer = classify("a good film", top_k=None)
    assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(
        {f"LABEL_{index}": expected[0, index].item() for index in range(3)}
    )


def test_a_new_task_head_may_be_put_on_a_pruned_body(tmp_path):
    model = pruned(tiny_bert(num_labels=3))
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidConfigError, match=r"classifier.*pass ignore_mismatched_sizes=True"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert fresh.classifier.weight.shape == (5, 32)
    assert torch.equal(logits_of(fresh.bert, text_inputs()), logits_of(model.bert, text_inputs()))
    with pytest.raises(
        InvalidConfigError, match=r"classifier\.weight has shape \(3, 32\) in the weights and \(5, 32\)"
    ):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_a_pruned_classifier_of_images_is_read_for_masked_images_with_a_fresh_mask_token(name, tmp_path):
    pruned(TINY_FAMILIES[name].make()).save_pretrained(tmp_path)
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    assert type(model).__name__.startswith("Prunable")
    assert model.base_model.embeddings.mask_token.isfinite().all()
    model.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop(f"{name}.embeddings.mask_token"))
    with pytest.raises(InvalidConfigError, match=r"embeddings\.mask_token is missing"):
        AutoModelForMaskedImageModeling.from_pretrained(tmp_path)


def test_a_class_shows_the_arguments_of_its_dense_one(tmp_path):
    assert signature(prunable_named("PrunableViTModel")) == signature(ViTModel)
    pruned(TINY_FAMILIES["vit"].make()).save_pretrained(tmp_path)
    model = prunable_named("PrunableViTModel").from_pretrained(tmp_path, use_mask_token=True)
    model.save_pretrained(tmp_path)
    again = prunable_named("PrunableViTModel").from_pretrained(tmp_path, use_mask_token=True)
    assert torch.equal(again.embeddings.mask_token, model.embeddings.mask_token)


def test_loading_info_is_returned_where_asked_for(tmp_path):
    pruned(tiny_bert()).save_pretrained(tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == "PrunableBertForSequenceClassification"
    assert not info["missing_keys"]


def test_no_warning_about_global_numbers_is_logged(tmp_path, caplog, monkeypatch):
    model = pruned(tiny_bert())
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    AutoModelForSequenceClassification.from_pretrained(tmp_path)(**text_inputs())
    assert "per-layer attribute" not in caplog.text


# --- translation and summarization -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3], ids=["greedy", "beam"])
@pytest.mark.parametrize("heads", [(), (1,), (0, 2, 3)], ids=["none", "one", "three"])
@pytest.mark.parametrize("make", [tiny_marian, tiny_bart], ids=["marian", "bart"])
def test_a_pruned_model_writes_what_the_masked_one_writes_with_a_smaller_cache(make, heads, beams, tmp_path):
    model = make(init_std=0.6, decoder_layers=3)
    plan = PruningPlan.of(model).replace(
        kept_heads={
            "encoder.layers.1.self_attn": heads,
            "decoder.layers.0.self_attn": heads,
            "decoder.layers.0.encoder_attn": (2,),
            "decoder.layers.1.encoder_attn": heads,
            "decoder.layers.2.self_attn": (),
            "decoder.layers.2.encoder_attn": (),
        },
        kept_ffn={"decoder.layers.1.fc1": (), "encoder.layers.0.fc1": (3, 4, 5)},
    )
    source = text_inputs()
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "num_beams": beams}
    settings |= {"return_dict_in_generate": True, "no_repeat_ngram_size": 1}
    with masked(model, plan):
        expected = model.generate(**source, **settings)
    dense_cache = cached_numbers(expected[CACHE])
    prune_model_(model, plan)
    received = model.generate(**source, **settings)
    assert torch.equal(received.sequences, expected.sequences)
    assert len(set(received.sequences[0].tolist())) == 11
    assert cached_numbers(received[CACHE]) == dense_cache - removed_numbers(expected[CACHE], plan)
    assert model.generate(**source, **{**settings, "use_cache": False}).sequences.equal(expected.sequences)
    model.save_pretrained(tmp_path)
    reloaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(reloaded.generate(**source, **settings).sequences, expected.sequences)


def cached_numbers(cache):
    return sum(
        layer.keys.numel() + layer.values.numel()
        for side in (cache.self_attention_cache, cache.cross_attention_cache)
        for layer in side.layers
    )


def removed_numbers(cache, plan, head_dim=8):
    """What the cache of the masked model holds for closed heads, less the placeholder of each layer without heads."""
    removed = 0
    for block, side in (("self_attn", cache.self_attention_cache), ("encoder_attn", cache.cross_attention_cache)):
        for index, layer in enumerate(side.layers):
            rows, num_heads, tokens, _ = layer.keys.shape
            kept = len(plan.kept(f"decoder.layers.{index}.{block}"))
            removed += 2 * rows * tokens * ((num_heads - kept) * head_dim - (1 if kept == 0 else 0))
    return removed


def test_a_decoder_deeper_than_its_encoder_is_pruned_in_every_layer(tmp_path):
    model = tiny_marian(encoder_layers=1, decoder_layers=3)
    plan = PruningPlan.of(model).replace(
        kept_heads={"decoder.layers.2.self_attn": (1,), "decoder.layers.2.encoder_attn": (0, 1)},
        kept_ffn={"decoder.layers.1.fc1": (1, 2)},
    )
    prune_model_(model, plan)
    model.save_pretrained(tmp_path)
    reloaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(reloaded, translation_inputs()), logits_of(model, translation_inputs()))
    assert reloaded.config.num_hidden_layers == 3
    assert reloaded.config.get_text_config(decoder=True).num_hidden_layers == 3


def test_a_static_cache_generates_the_same():
    model = tiny_marian(init_std=0.6)
    prune_model_(model, PruningPlan.of(model).replace(kept_heads={"decoder.layers.0.self_attn": ()}))
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**text_inputs(), **settings)
    static = model.generate(**text_inputs(), **settings, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, expected)


# --- configurations that are refused ---------------------------------------------------------------------------------


def test_a_configuration_survives_json_and_pickle():
    entries = {"0": {"num_attention_heads": 3, "intermediate_size": 10}, "1": {"num_attention_heads": 0}}
    config = PrunableBertConfig(**BERT_SIZE, per_layer_config=entries)
    again = PrunableBertConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict()["per_layer_config"] == config.to_dict()["per_layer_config"] == entries
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
    assert (config.head_dim, config.num_attention_heads, config.num_cross_attention_heads) == (8, 4, 4)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"2": {"num_attention_heads": 1}}, r"layer 2: encoder\.layer has 2 layers with num_attention_heads"),
        ({-1: {"num_attention_heads": 1}}, r"layer -1: encoder\.layer has 2 layers"),
        ({"one": {"num_attention_heads": 1}}, r"layer 'one': the key must be the zero-based index of a layer"),
        ({"0": {}, 0: {}}, r"layer 0: the key must be .* each layer once"),
        ({True: {}}, r"layer True: the key must be the zero-based index"),
        (
            {"0": {"num_attention_heads": -1}},
            r"layer 0: num_attention_heads must be an integer from 0 to 4.* received -1",
        ),
        (
            {"0": {"num_attention_heads": 5}},
            r"layer 0: num_attention_heads must be an integer from 0 to 4.* received 5",
        ),
        ({"0": {"num_attention_heads": 1.0}}, r"layer 0: num_attention_heads must be an integer .* received 1\.0"),
        ({"0": {"num_attention_heads": True}}, r"layer 0: num_attention_heads must be an integer .* received True"),
        ({"1": {"intermediate_size": 65}}, r"layer 1: intermediate_size must be an integer from 0 to 64.* received 65"),
        ({"1": {"intermediate_size": None}}, r"layer 1: intermediate_size must be an integer .* received None"),
        ({"0": {"num_heads": 1}}, r"layer 0: unknown field 'num_heads' \(known: num_attention_heads"),
        ({"0": {"num_cross_attention_heads": 1}}, r"layer 0: encoder\.layer without add_cross_attention has 0 layers"),
        ({"0": {"skip": ["attention"]}}, r"layer 0: skip \['attention'\] is not supported"),
        ({"0": 3}, r"layer 0: the entry must map fields to numbers, received 3"),
        ([{}], r"per_layer_config must map layers to their numbers, received \[\{\}\]"),
        (
            {"0": {"num_attention_heads": 9}, "1": {"width": 1}},
            r"layer 0: num_attention_heads .*; layer 1: unknown field 'width'",
        ),
    ],
)
def test_a_malformed_entry_is_refused_with_layer_and_rule(entries, message):
    with pytest.raises(InvalidConfigError, match=message):
        PrunableBertConfig(**BERT_SIZE, per_layer_config=entries)


@pytest.mark.parametrize("numbers", [(5, 2), (8, 2), (0, 2), (4, 0), (2, 4), (6, None), (None, 3)])
def test_heads_of_a_layer_are_equally_many_for_each_of_its_groups(numbers):
    entry = dict(zip(("num_attention_heads", "num_key_value_heads"), numbers, strict=True))
    entry = {field: number for field, number in entry.items() if number is not None}  # else that of the dense model
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
    for valid in ((8, 4), (4, 4), (2, 1), (3, 3), (0, 0)):
        allowed = dict(zip(("num_attention_heads", "num_key_value_heads"), valid, strict=True))
        PrunableLlamaConfig(**sizes, per_layer_config={"1": allowed})
    with pytest.raises(InvalidConfigError, match=r"layer 1: num_attention_heads must be a multiple of .* at most 2"):
        PrunableLlamaConfig(**sizes, per_layer_config={"1": entry})


@pytest.mark.parametrize(
    "entries", [{}, {"1": {"num_attention_heads": 0}}, {0: {"intermediate_size": 64}, "1": {"skip": []}}]
)
def test_its_valid_neighbours_are_accepted(entries):
    model = prunable_named("PrunableBertModel")(PrunableBertConfig(**BERT_SIZE, per_layer_config=entries)).eval()
    assert logits_of(model, {"input_ids": torch.tensor([[3, 4]])}).shape == (1, 2, 32)


@pytest.mark.parametrize(
    ("config_class", "numbers", "message"),
    [
        (
            PrunableBertConfig,
            {"head_dim": 7},
            r"num_attention_heads x head_dim must be hidden_size = 32.* received 4 x 7",
        ),
        (
            PrunableBertConfig,
            {"num_attention_heads": 0},
            r"num_attention_heads must be a positive integer, the number of the dense model, received 0",
        ),
        (
            PrunableBertConfig,
            {"num_cross_attention_heads": 3},
            r"num_cross_attention_heads must be num_attention_heads = 4",
        ),
    ],
)
def test_dense_numbers_that_contradict_each_other_are_refused(config_class, numbers, message):
    with pytest.raises(InvalidConfigError, match=message):
        config_class(**{**BERT_SIZE, **numbers})


def test_marian_entries_may_name_any_layer_of_the_deeper_stack_and_no_other():
    size = {"encoder_layers": 1, "decoder_layers": 3}
    config = PrunableMarianConfig(**size, per_layer_config={"2": {"decoder_attention_heads": 5}})
    assert [layer.decoder_attention_heads for layer in config.per_layer_config] == [16, 16, 5]
    with pytest.raises(InvalidConfigError, match=r"layer 2: encoder\.layers has 1 layers with encoder_attention_heads"):
        PrunableMarianConfig(**size, per_layer_config={"2": {"encoder_attention_heads": 5}})
    with pytest.raises(InvalidConfigError, match=r"layer 3: decoder\.layers has 3 layers with cross_attention_heads"):
        PrunableMarianConfig(**size, per_layer_config={"3": {"cross_attention_heads": 5}})
    with pytest.raises(
        InvalidConfigError, match=r"num_hidden_layers must be 3, the depth of the deeper stack; received 2"
    ):
        PrunableMarianConfig(**size, num_hidden_layers=2)


def test_a_configuration_changed_by_hand_is_checked_again():
    config = PrunableBertConfig(**BERT_SIZE, per_layer_config={"1": {"num_attention_heads": 2}})
    config.num_hidden_layers = 1
    with pytest.raises(InvalidConfigError, match=r"layer 1: encoder\.layer has 1 layers"):
        prunable_named("PrunableBertModel")(config)
    with pytest.raises(InvalidConfigError, match=r"layer 0: num_attention_heads must be an integer"):
        config.per_layer_config = {"0": {"num_attention_heads": 9}}
    config.per_layer_config = {"0": {"num_attention_heads": 3}}
    assert PruningPlan.of(prunable_named("PrunableBertModel")(config)).num_kept_heads == 3


def test_a_dense_configuration_is_refused_by_a_prunable_class():
    with pytest.raises(InvalidConfigError, match=r"must be a PrunableBertConfig, received a BertConfig"):
        prunable_named("PrunableBertModel")(BertConfig(**BERT_SIZE))
    assert isinstance(prunable_named("PrunableBertModel")(PrunableBertConfig(**BERT_SIZE)), BertModel)


# --- weights that don't match ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    pruned(tiny_bert()).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, layer, field, number):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["per_layer_config"].setdefault(layer, {})[field] = number
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 50_000 + text,
        lambda text: text.replace('"hidden_size": ', '"hidden_size": ' + "9" * 6000),
        lambda text: text.replace('"hidden_act": "gelu"', '"hidden_act": "é"'),
        lambda text: text.replace('"hidden_dropout_prob": ', '"hidden_dropout_prob": 7'),
        lambda text: text.replace('"dtype": "float32"', '"dtype": 4611686018427387904'),
        lambda text: text.replace('"use_cache": true', '"use_cache": -1'),
    ],
    ids=["cut", "deep", "digits", "activation", "dropout", "dtype", "type"],
)
def test_a_configuration_that_transformers_refuses_is_an_error_of_ours(folder, edit):
    path = folder / "config.json"
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    with pytest.raises(InvalidConfigError, match=r"config\.json of .*received one that it refuses: \w+: "):
        prunable_named("PrunableBertForSequenceClassification").from_pretrained(folder)


def test_errors_that_the_configuration_did_not_cause_stay_as_they_are(folder):
    kind = prunable_named("PrunableBertForSequenceClassification")
    with pytest.raises(OSError, match="nowhere"):
        kind.from_pretrained(folder / "nowhere", local_files_only=True)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(Exception, match="header") as caught:  # of safetensors
        kind.from_pretrained(folder)
    assert not isinstance(caught.value, InvalidConfigError)


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("ignore", [False, True], ids=["strict", "ignore_mismatched_sizes"])
@pytest.mark.parametrize(
    ("layer", "field", "number", "message"),
    [
        (
            "0",
            "num_attention_heads",
            3,
            r"layer 0: bert\.encoder\.layer\.0\.attention\.self\.query\.weight .*has shape",
        ),
        (
            "0",
            "intermediate_size",
            9,
            r"layer 0: bert\.encoder\.layer\.0\.intermediate\.dense\.weight .*has shape \(3, 32\)",
        ),
        ("0", "num_attention_heads", 0, r"query\.weight \(num_attention_heads\) has weights, but no place"),
        (
            "1",
            "num_attention_heads",
            2,
            r"layer 1: .*query\.weight \(num_attention_heads\) is missing from the weights",
        ),
        ("1", "intermediate_size", 2, r"layer 1: .*intermediate\.dense\.weight .* is missing from the weights"),
        ("1", "num_attention_heads", 9, r"layer 1: num_attention_heads must be an integer from 0 to 4"),
    ],
)
def test_numbers_that_the_weights_contradict_are_refused(folder, layer, field, number, message, ignore):
    edit_config(folder, layer, field, number)
    with pytest.raises(InvalidConfigError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=ignore)


def test_a_weight_that_is_missing_is_refused_and_a_missing_head_is_not(folder):
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in ("classifier.weight", "classifier.bias")])
    assert AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight.isfinite().all()
    edit_weights(folder, lambda tensors: tensors.pop("bert.encoder.layer.1.attention.output.LayerNorm.weight"))
    with pytest.raises(InvalidConfigError, match=r"layer\.1\.attention\.output\.LayerNorm\.weight is missing"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("ignore", [False, True], ids=["strict", "ignore_mismatched_sizes"])
def test_embeddings_that_are_missing_or_of_another_size_are_refused_and_a_missing_pooler_is_not(folder, ignore):
    options = {"ignore_mismatched_sizes": ignore}
    lacking = ("bert.pooler.dense.weight", "classifier.weight", "classifier.bias")
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in lacking])
    assert AutoModelForSequenceClassification.from_pretrained(folder, **options) is not None
    key = "bert.embeddings.word_embeddings.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: tensors[key][:50].clone()}))
    with pytest.raises(InvalidConfigError, match=r"word_embeddings\.weight has shape \(50, 32\)"):
        AutoModelForSequenceClassification.from_pretrained(folder, **options)
    edit_weights(folder, lambda tensors: tensors.pop(key))
    with pytest.raises(InvalidConfigError, match=r"word_embeddings\.weight is missing from the weights"):
        AutoModelForSequenceClassification.from_pretrained(folder, **options)


def test_a_decoder_is_not_read_alone_with_random_embeddings_from_a_whole_checkpoint(tmp_path):
    model = tiny_bart()
    plan = PruningPlan.of(model)
    prune_model_(model, plan.replace(kept_heads={next(iter(plan.kept_heads)): (1,)}))
    model.save_pretrained(tmp_path)
    with pytest.raises(
        InvalidConfigError, match=r"configuration: model\.decoder\.embed_tokens\.weight is missing"
    ) as error:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "encoder" not in str(error.value)  # whose weights nobody asked for


def test_weights_of_a_layer_too_many_are_refused(folder):
    def add(tensors):
        tensors["bert.encoder.layer.2.output.dense.bias"] = torch.zeros(32)

    edit_weights(folder, add)
    with pytest.raises(InvalidConfigError, match=r"layer\.2\.output\.dense\.bias has weights, but no place"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_the_untouched_folder_loads(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert PruningPlan.of(model).num_kept_heads == 2
    assert model.config.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_is_no_folder_to_write_into(tmp_path, inside):
    model = tiny_bert()
    pruned = prune_model_(model, PruningPlan.of(model))
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / inside
    wanted = re.escape(f"{tmp_path / 'file'} is a file")
    exports = [partial(export, pruned) for export in (export_model, export_onnx, export_openvino)]
    for write in (pruned.save_pretrained, *exports):
        with pytest.raises(InvalidSettingError, match=wanted):
            write(path)
    assert (tmp_path / "file").read_text() == "mine"
