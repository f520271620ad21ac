"""A tiny model with a tokenizer in a folder, for libraries that read texts."""

from __future__ import annotations

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


def save_text_model(folder: Path, class_name: str, **settings: Any) -> Path:
    """Saves a tiny BERT with random weights, and a tokenizer that knows a few words; returns the folder."""
    vocabulary = [*SPECIAL, *WORDS]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = transformers.BertConfig(**{**BERT_SIZES, "vocab_size": len(vocabulary), **settings})
    _seeded(class_name, config, 0).save_pretrained(folder)
    return folder
