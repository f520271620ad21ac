"""A tiny model with a tokenizer in a folder, for libraries that read texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tests.support.models import BERT_SIZES, _seeded

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("red", "blue", "pale", "kite", "lamp", "boat", "found", "sold", "drew", "Anna", "Ben", "Cleo", "in", "a")
TEXTS = ["red kite in a boat", "Anna found a pale lamp", "Ben sold blue"]


def tokenizer_of(words: Sequence[str]) -> Any:
    """Returns a tokenizer that knows these words, and the special tokens of a BERT before them."""
    vocabulary = [*SPECIAL, *words]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_text_model(folder: Path, class_name: str, **settings: Any) -> Path:
    """Saves a tiny BERT with random weights, and a tokenizer that knows a few words; returns the folder."""
    tokenizer = tokenizer_of(WORDS)
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(**{**BERT_SIZES, "vocab_size": len(tokenizer), **settings})
    _seeded(class_name, config, 0).save_pretrained(folder)
    return folder
