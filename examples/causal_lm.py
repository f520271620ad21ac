"""Train and prune a causal language model on texts: from a checkpoint, or a small Llama from scratch; perplexity.

    python examples/causal_lm.py --train_file train.en.gz --validation_file val.en.gz --test_file test.en.gz \
        --num_train_epochs 3 --learning_rate 1e-3 --density 0.75 --output_dir out
    python examples/causal_lm.py --model_name_or_path HuggingFaceTB/SmolLM2-135M --dataset_name wikitext \
        --dataset_config_name wikitext-2-raw-v1 --density 0.75 --output_dir out
    python examples/causal_lm.py --smoke

Files have one text per line (.txt, .gz), or rows with a column of texts. Plans are compared by the likelihood of each
text, 1 / perplexity; the perplexity of all tokens is measured at the end. Without --model_name_or_path, a model of
Llama's shape with grouped heads is trained from scratch, with a vocabulary of the training texts.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from datasets import Dataset
from text_pairs import tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

LINES = (".txt", ".gz")


@dataclass
class ModelArguments:
    """Which model; a small one is trained from scratch if none is named."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint: a Hub name or a folder."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})
    vocab_size: int = field(default=8000, metadata={"help": "From scratch: tokens, learned from the training texts."})
    layers: int = field(default=6, metadata={"help": "From scratch: layers."})
    hidden_size: int = field(default=256, metadata={"help": "From scratch: width; the FFN is three times as wide."})
    heads: int = field(default=8, metadata={"help": "From scratch: query heads of each layer."})
    key_value_heads: int = field(default=4, metadata={"help": "From scratch: heads of keys and values."})

    def load(self, texts: list[str]) -> tuple[Any, Any]:
        """Returns tokenizer and model: those of the checkpoint, or new ones, with a vocabulary of these texts."""
        if self.model_name_or_path is not None:
            name = self.model_name_or_path
            tokenizer = AutoTokenizer.from_pretrained(name)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            return tokenizer, AutoModelForCausalLM.from_pretrained(name)
        tokenizer = tokenizer_of(texts, self.vocab_size)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=3 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=self.max_seq_length,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
        return tokenizer, LlamaForCausalLM(config)


@dataclass
class DataArguments(common.DataArguments):
    """Which texts."""

    text_column: str = field(default="text", metadata={"help": "Column of the texts."})

    def texts(self) -> dict[str, Dataset]:
        """Returns splits with the column "text", without empty ones."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        if all(file is None or Path(file).suffix in LINES for file in files.values()) and self.train_file:
            found = {name: common.lines_of(Path(file)) for name, file in files.items() if file}
        else:
            found = {name: [*split[self.text_column]] for name, split in self.read().items()}
        return self.complete(
            {name: Dataset.from_dict({"text": [*filter(str.strip, it)]}) for name, it in found.items()}
        )


class PerplexityTrainer(Trainer):
    """A Trainer whose evaluation says the perplexity, too."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the metrics, with `perplexity` beside each loss."""
        metrics = super().evaluate(*args, **kwargs)
        losses = {name: value for name, value in metrics.items() if name.endswith("_loss")}
        return metrics | {f"{name.removesuffix('loss')}perplexity": math.exp(loss) for name, loss in losses.items()}


def trainer_and_splits(arguments: list[str]) -> tuple[Trainer, dict[str, Dataset]]:
    """Returns the Trainer that the arguments ask for, and what it reads."""
    parser = HfArgumentParser((ModelArguments, DataArguments, common.PruningArguments, TrainingArguments))
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)

    splits = data_args.texts()
    tokenizer, model = model_args.load(splits["train"]["text"])
    splits = common.encoded(
        splits,
        lambda batch: {
            "input_ids": tokenizer(batch["text"], truncation=True, max_length=model_args.max_seq_length)["input_ids"]
        },
    )
    splits = {name: split.filter(lambda row: len(row["input_ids"]) > 1) for name, split in splits.items()}
    trainer = PerplexityTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=pruning_args.callbacks(),
    )
    return trainer, splits


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    return common.journey(*trainer_and_splits(arguments), AutoModelForCausalLM.from_pretrained)


def smoke_arguments(folder: Path) -> list[str]:
    """Writes toy texts, and returns the arguments of a run of a few seconds."""
    rng = np.random.default_rng(0)
    names, verbs, things = ["Anna", "Ben", "Cleo"], ["found", "sold", "drew"], ["a kite", "a lamp", "a boat"]
    files = []
    for split, size in (("train", 128), ("validation", 24), ("test", 24)):
        lines = [" ".join([*map(str, map(rng.choice, (names, verbs, things)))]) for _ in range(size)]
        path = folder / f"{split}.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        files += [f"--{split}_file", str(path)]
    model = "--layers 2 --hidden_size 32 --heads 4 --key_value_heads 2 --vocab_size 60 --max_seq_length 16"
    training = "--num_train_epochs 6 --learning_rate 5e-3 --per_device_train_batch_size 16 --report_to none --use_cpu"
    how = "--save_strategy no --logging_steps 50 --max_drop 0.1 --output_dir"
    return [*files, *model.split(), *training.split(), *how.split(), str(folder / "out")]


if __name__ == "__main__":
    common.run(main, smoke_arguments)
