"""A model in hand that is not what its class and configuration say; classes of the user's own; composites."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    DistilBertForSequenceClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_headprune import HeadPruneCallback, masked, plan_for_budget, prune_model_, register_prunable, search_plan
from hf_headprune.errors import InvalidConfigError, UnsupportedModelError
from hf_headprune.plan import PruningPlan
from tests.support.models import BERT_SIZES, text_inputs, tiny_bart, tiny_bert, tiny_distilbert, tiny_electra
from tests.support.trainers import CountSteps, labelled_rows, trainer_of

ATTENTION = "encoder.layer.0.attention"


# --- what class and configuration do not say -------------------------------------------------------------------------


def without_the_last_layer():
    model = tiny_bert()
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    return model


def with_a_layer_twice():
    model = tiny_electra()
    model.electra.encoder.layer.append(copy.deepcopy(model.electra.encoder.layer[0]))
    return model


def with_a_head_of_two_layers():
    model = tiny_bert()
    model.classifier = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 2))
    return model


def with_more_classes():
    model = tiny_distilbert()
    model.classifier = nn.Linear(32, 5)
    return model


def with_more_tokens():
    model = tiny_bart()
    model.model.shared = nn.Embedding(140, 32)
    return model


def with_a_second_head():
    model = tiny_bert()
    model.regressor = nn.Linear(32, 1)
    return model


CHANGED = {
    without_the_last_layer: r"encoder\.layer\.1\.attention.* is missing.* and \d+ more",
    with_a_layer_twice: r"encoder\.layer\.2\..* has no place in it",
    with_a_head_of_two_layers: r"classifier\.0\.weight has no place in it",
    with_more_classes: r"classifier\.weight has shape \(5, 32\) instead of \(2, 32\)",
    with_more_tokens: r"shared\.weight has shape \(140, 32\) instead of \(100, 32\)",
    with_a_second_head: r"regressor\.weight has no place in it",
}


@pytest.mark.parametrize("make", CHANGED)
def test_a_model_that_could_not_be_loaded_again_is_not_cut(make):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=CHANGED[make]):
        prune_model_(model, PruningPlan.of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("parts", [{}, {"density": 0.5}])
def test_it_is_refused_before_a_single_step(tmp_path, parts):
    counter = CountSteps()
    with pytest.raises(UnsupportedModelError, match="not what its class and its configuration say"):
        trainer_of(
            tmp_path, HeadPruneCallback(**parts, latency=None), model=with_a_head_of_two_layers(), callbacks=[counter]
        ).train()
    assert counter.steps == 0


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: search_plan(model, labelled_rows(8, 1), max_drop=0.5),
        lambda model: plan_for_budget(model, labelled_rows(8, 1), density=0.5),
    ],
)
def test_it_is_refused_before_a_search(verb):
    with pytest.raises(UnsupportedModelError, match="not what its class and its configuration say"):
        verb(with_more_classes())


def test_what_the_configuration_says_too_is_cut():
    model = without_the_last_layer()
    model.config.num_hidden_layers = 1
    assert prune_model_(model, PruningPlan.of(model).replace(kept_heads={ATTENTION: ()})) is model
    larger = tiny_bert()
    larger.resize_token_embeddings(111)
    prune_model_(larger, PruningPlan.of(larger).replace(kept_heads={ATTENTION: (1,)}))


# --- classes of the user's own ---------------------------------------------------------------------------------------


class WithTwoHeads(BertPreTrainedModel):
    """A body of the family, and heads of its own."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.first, self.second = nn.Linear(config.hidden_size, 2), nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        logits = self.first(hidden)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits + 0 * self.second(hidden).sum())


class Weighted(DistilBertForSequenceClassification):
    """A task class of Transformers with a loss of its own, which passes on what it is given."""

    def forward(self, *args, labels=None, **kwargs):
        found = super().forward(*args, **kwargs)
        if labels is not None:
            found.loss = nn.functional.cross_entropy(found.logits, labels, weight=torch.tensor([1.0, 9.0]))
        return found


class WithOwnConfig(BertForSequenceClassification):
    """A task class that reads a field of its own."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = getattr(config, "scale", 1.0)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        found = super().forward(input_ids, attention_mask=attention_mask, labels=labels)
        found.logits = found.logits * self.scale
        return found


def own(kind):
    torch.manual_seed(0)
    config = tiny_distilbert().config if kind is Weighted else BertConfig(**BERT_SIZES)
    if kind is WithOwnConfig:
        config.scale = 3.0
    return kind(config).eval()


own_classes = pytest.mark.parametrize("kind", [WithTwoHeads, Weighted, WithOwnConfig])


def logits(model):
    with torch.no_grad():
        return model.eval()(**text_inputs()).logits


def smaller(model):
    plan = PruningPlan.of(model)
    first, second = list(plan.num_heads)[:2]
    return plan.replace(kept_heads={first: (1, 2), second: ()}, kept_ffn={next(iter(plan.num_ffn)): range(8)})


@own_classes
def test_a_class_of_the_users_own_is_cut_saved_and_read_again(kind, tmp_path):
    model = own(kind)
    with masked(model, smaller(model)):
        expected = logits(model)
    prune_model_(model, smaller(model))
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert isinstance(model, kind)
    model.save_pretrained(tmp_path)
    again = register_prunable(kind).from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert torch.equal(logits(again), logits(model))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), logits(model))
    prune_model_(again, PruningPlan.of(again).replace(kept_heads={next(iter(PruningPlan.of(again).num_heads)): ()}))


@own_classes
def test_the_callback_prunes_it(kind, tmp_path):
    trainer = trainer_of(
        tmp_path / "run", HeadPruneCallback(density=0.5, latency=None), model=own(kind), remove_unused_columns=False
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert torch.equal(logits(register_prunable(kind).from_pretrained(tmp_path / "saved")), logits(trainer.model))


def test_a_loss_of_its_own_costs_no_argument():
    found = plan_for_budget(own(Weighted), labelled_rows(16, 0), density=0.5)
    assert found.plan.num_removed_heads


def test_an_auto_class_does_not_read_heads_of_another_class_with_a_fresh_head_of_its_own(tmp_path):
    model = own(WithTwoHeads)
    prune_model_(model, smaller(model))
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidConfigError, match=r"written by a PrunableWithTwoHeads.*register_prunable"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert fresh.classifier.out_features == 2
    assert AutoModel.from_pretrained(tmp_path).pooler is not None


@pytest.mark.parametrize("kind", [nn.Linear, BertConfig, "Bert", None, BertPreTrainedModel.__mro__[1]])
def test_what_is_no_class_of_a_family_is_not_registered(kind):
    with pytest.raises(UnsupportedModelError, match="register_prunable: pass a subclass of the PreTrainedModel"):
        register_prunable(kind)


def test_a_class_of_transformers_has_its_sibling_already():
    assert register_prunable(BertForSequenceClassification).__name__ == "PrunableBertForSequenceClassification"
    assert register_prunable(WithTwoHeads) is register_prunable(WithTwoHeads)


def test_a_class_that_can_not_be_built_from_its_configuration_is_refused():
    class Needy(BertForSequenceClassification):
        def __init__(self, config, tokenizer):
            super().__init__(config)
            self.tokenizer = tokenizer

    model = Needy(BertConfig(**BERT_SIZES), "a tokenizer")
    with pytest.raises(UnsupportedModelError, match=r"can't be built from its configuration alone.*tokenizer"):
        prune_model_(model, PruningPlan.of(model))


# --- a part of a whole -----------------------------------------------------------------------------------------------


@own_classes
def test_a_body_that_is_cut_takes_the_whole_model_along(kind, tmp_path):
    model = own(kind)
    body = model.base_model
    prune_model_(body, smaller(body))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(register_prunable(kind).from_pretrained(tmp_path)), logits(model))


def test_an_encoder_that_is_cut_inside_of_a_composite_is_read_again(tmp_path):
    sizes = {**BERT_SIZES, "bos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**sizes), BertConfig(**sizes))
    model = EncoderDecoderModel(config).eval()
    prune_model_(model.encoder, smaller(model.encoder))
    inputs = {**text_inputs(), "decoder_input_ids": text_inputs(seed=3)["input_ids"]}
    with torch.no_grad():
        expected = model(**inputs).logits
        model.save_pretrained(tmp_path)
        again = EncoderDecoderModel.from_pretrained(tmp_path).eval()
        assert type(again.encoder).__name__ == "PrunableBertModel"
        assert torch.equal(again(**inputs).logits, expected)


def test_a_part_of_a_whole_that_could_not_say_so_is_not_cut():
    model = own(WithTwoHeads)
    model.bert.config = copy.deepcopy(model.config)
    with pytest.raises(UnsupportedModelError, match="is a part of a WithTwoHeads, whose configuration does not hold"):
        prune_model_(model.bert, smaller(model.bert))
    assert type(model.bert) is BertModel


@pytest.mark.parametrize("path", ["text_model", "model.language_model"])
def test_a_part_of_a_whole_that_could_not_be_read_again_is_not_cut(path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if path == "text_model":  # no sibling
        ids = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        whole = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **ids, projection_dim=16))
        message = "CLIPTextModelWithProjection has no prunable sibling"
    else:  # a configuration that reads its parts as dense ones
        text = {**sizes, "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 16}
        image = {**sizes, "image_size": 16, "patch_size": 4}
        ids = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 4}
        whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=image, **ids))
        message = "is a part of a Gemma3Model, whose Gemma3Config reads it as a dense one again"
    part = whole.get_submodule(path)
    before, plan = type(part), PruningPlan.of(part)
    with pytest.raises(UnsupportedModelError, match=message):
        prune_model_(part, plan.replace(kept_heads={next(iter(plan.num_heads)): (0, 1)}))
    assert type(part) is before


def test_a_part_of_a_plain_module_is_cut():
    whole = nn.ModuleDict({"body": tiny_bert(None)})
    prune_model_(whole["body"], smaller(whole["body"]))
    assert type(whole["body"]).__name__ == "PrunableBertModel"


# --- weights that loading makes up -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    model = tiny_bert()
    prune_model_(model, smaller(model))
    model.save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def drop(tensors, *words):
    for name in [name for name in tensors if any(word in name for word in words)]:
        del tensors[name]


def test_a_pooler_is_not_made_up_for_a_head_that_was_trained_with_another(folder):
    edit(folder, lambda tensors: drop(tensors, "pooler"))
    with pytest.raises(InvalidConfigError, match=r"pooler\.dense\.weight is missing"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    edit(folder, lambda tensors: drop(tensors, "classifier"))
    assert AutoModelForSequenceClassification.from_pretrained(folder) is not None  # for a task of its own
    assert AutoModel.from_pretrained(folder) is not None


def test_half_of_a_head_is_not_made_up(folder):
    edit(folder, lambda tensors: drop(tensors, "classifier.bias"))
    with pytest.raises(InvalidConfigError, match=r"classifier\.bias is missing"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.bool])
def test_codes_are_not_read_as_weights(folder, dtype):
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    edit(folder, lambda tensors: tensors.update({name: tensors[name].mul(10).to(dtype)}))
    with pytest.raises(InvalidConfigError, match=r"intermediate\.dense\.weight .*dtype"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_dtype_are_read(folder, dtype):
    edit(folder, lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()}))
    assert AutoModelForSequenceClassification.from_pretrained(folder) is not None


def test_a_module_around_a_model_is_refused_with_the_name_of_the_part_to_pass():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = nn.ModuleDict({"body": tiny_bert(None)})

    with pytest.raises(
        UnsupportedModelError, match=r"Around is no Transformers model, but holds one: pass its \.text\.body"
    ):
        prune_model_(Around(), PruningPlan.of(tiny_bert(None)))
