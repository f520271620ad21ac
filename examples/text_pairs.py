"""What the examples that write text share: parallel files, a tokenizer and a model from scratch, and their metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

IGNORED = -100
PLACE = "{lang}"
PAD, UNK, EOS = "<pad>", "<unk>", "</s>"


@dataclass
class ModelArguments:
    """Which model; a small one is trained from scratch if none is named."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint: a Hub name or a folder."})
    max_source_length: int = field(default=128, metadata={"help": "Longer sources are cut."})
    max_target_length: int = field(default=64, metadata={"help": "Longer targets are cut, and no more is written."})
    vocab_size: int = field(default=8000, metadata={"help": "From scratch: tokens, learned from the training texts."})
    layers: int = field(default=6, metadata={"help": "From scratch: layers of the encoder, and of the decoder."})
    hidden_size: int = field(default=256, metadata={"help": "From scratch: width; the FFN is four times as wide."})
    heads: int = field(default=4, metadata={"help": "From scratch: heads of each attention block."})

    def load(self, texts: list[str]) -> tuple[Any, Any]:
        """Returns tokenizer and model: those of the checkpoint, or new ones, with a vocabulary of these texts."""
        if self.model_name_or_path is not None:
            name = self.model_name_or_path
            return AutoTokenizer.from_pretrained(name), AutoModelForSeq2SeqLM.from_pretrained(name)
        tokenizer = tokenizer_of(texts, self.vocab_size)
        sizes = {f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in self._sizes().items()}
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = MarianConfig(
            vocab_size=len(tokenizer),
            d_model=self.hidden_size,
            max_position_embeddings=max(self.max_source_length, self.max_target_length),
            decoder_start_token_id=tokenizer.pad_token_id,
            forced_eos_token_id=tokenizer.eos_token_id,
            max_length=self.max_target_length,
            num_beams=1,
            scale_embedding=True,
            **ids,
            **sizes,
        )
        return tokenizer, MarianMTModel(config)

    def _sizes(self) -> dict[str, int]:
        return {"layers": self.layers, "attention_heads": self.heads, "ffn_dim": 4 * self.hidden_size}


def tokenizer_of(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns a byte-pair vocabulary from texts."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [PAD, UNK, EOS]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {EOS}", f"$A {EOS} $B {EOS}", [(EOS, 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, eos_token=EOS)


def parallel_lines(pattern: str, languages: tuple[str, str]) -> Dataset:
    """Reads files with one sentence per line, perhaps compressed; `{lang}` in the pattern stands for each language."""
    if PLACE not in pattern:
        raise ValueError(
            f"{pattern}: files of sentences are named with {PLACE} for the language, such as dev.{PLACE}.gz."
        )
    texts = {}
    for language in languages:
        path = Path(pattern.replace(PLACE, language))
        texts[language] = common.lines_of(path)
    source, target = texts.values()
    if len(source) != len(target):
        raise ValueError(f"{pattern}: the languages have {len(source)} and {len(target)} sentences, one for each line.")
    return Dataset.from_dict({"source": source, "target": target})


class TextMetrics:
    """Decodes what was generated, and scores it against the references."""

    def __init__(self, tokenizer: Any, metrics: dict[str, common.TextMetric]) -> None:
        """Keeps the tokenizer, and functions of predicted texts and references."""
        self._tokenizer, self._metrics = tokenizer, metrics

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns the values of the metrics; what a Trainer takes as `compute_metrics`."""
        predicted, gold = (self._decoded(ids) for ids in (prediction.predictions, prediction.label_ids))
        return {name: metric(predicted, gold) for name, metric in self._metrics.items()}

    def _decoded(self, ids: Any) -> list[str]:
        ids = np.where(np.asarray(ids) < 0, self._tokenizer.pad_token_id, ids)
        return [text.strip() for text in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]


def trainer_and_splits(
    splits: dict[str, Dataset],
    model_args: ModelArguments,
    pruning_args: common.PruningArguments,
    training_args: Seq2SeqTrainingArguments,
    metrics: dict[str, common.TextMetric],
) -> tuple[Seq2SeqTrainer, dict[str, Dataset]]:
    """Returns a Trainer that reads the columns "source" and "target", and the splits as it reads them."""
    tokenizer, model = model_args.load([*splits["train"]["source"], *splits["train"]["target"]])

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        found = tokenizer(batch["source"], truncation=True, max_length=model_args.max_source_length)
        target = tokenizer(text_target=batch["target"], truncation=True, max_length=model_args.max_target_length)
        return {
            "input_ids": found["input_ids"],
            "attention_mask": found["attention_mask"],
            "labels": target["input_ids"],
        }

    encoded = common.encoded(splits, encode)
    training_args.predict_with_generate = True
    training_args.generation_max_length = model_args.max_target_length
    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED),
        processing_class=tokenizer,
        compute_metrics=TextMetrics(tokenizer, metrics),
        callbacks=pruning_args.callbacks(),
    )
    return trainer, encoded


def smoke_arguments(folder: Path, names: tuple[str, str], pair: Callable[[], tuple[Any, Any]], own: str) -> list[str]:
    """Writes toy pairs as .jsonl files, and returns the arguments of a run of a few seconds on them.

    Args:
        folder: Of the files, and of what the run writes.
        names: Columns of source and target.
        pair: Makes a source and its target.
        own: Arguments that belong to one script.
    """
    arguments = []
    for split, size in (("train", 128), ("validation", 24), ("test", 24)):
        path = folder / f"{split}.jsonl"
        lines = [json.dumps(dict(zip(names, pair(), strict=True))) for _ in range(size)]
        path.write_text("\n".join(lines), encoding="utf-8")
        arguments += [f"--{split}_file", str(path)]
    model = "--layers 2 --hidden_size 32 --heads 4"
    training = "--learning_rate 5e-3 --per_device_train_batch_size 16 --report_to none --use_cpu --save_strategy no"
    how = f"--logging_steps 50 {own} --output_dir"
    return [*arguments, *model.split(), *training.split(), *how.split(), str(folder / "out")]
