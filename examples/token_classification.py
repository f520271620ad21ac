"""Fine-tune and prune a BERT-like model that labels words, such as names of persons and places.

    python examples/token_classification.py --model_name_or_path bert-base-cased --dataset_name eriktks/conll2003 \
        --num_train_epochs 3 --max_drop 0.005 --output_dir out
    python examples/token_classification.py --model_name_or_path path/to/model --train_file train.jsonl \
        --validation_file dev.jsonl --tokens_column words --tags_column tags --density 0.5 --output_dir out
    python examples/token_classification.py --smoke

A row holds a list of words and a list of their tags, names or numbers. The first token of a word carries its tag. Plans
are compared by the share of right tags; F1 of whole names is that of seqeval where `evaluate` can load it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from datasets import Dataset
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

IGNORED = -100
OUTSIDE = "O"


@dataclass
class DataArguments(common.DataArguments):
    """Which data, and which columns of it."""

    tokens_column: str = field(default="tokens", metadata={"help": "Column of the words."})
    tags_column: str = field(default="ner_tags", metadata={"help": "Column of their tags."})


class Metrics:
    """Share of right tags, and F1."""

    def __init__(self, names: list[str]) -> None:
        """Keeps the names of the tags; F1 is seqeval's, of whole names, or the mean over tags other than O."""
        self._names = names
        self._seqeval = common.load_metric("seqeval", self._over_tags)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns accuracy and F1; what a Trainer takes as `compute_metrics`."""
        found, gold = prediction.predictions.argmax(axis=-1), prediction.label_ids
        pairs = [(row[kept := labels != IGNORED], labels[kept]) for row, labels in zip(found, gold, strict=True)]
        named = [[[self._names[tag] for tag in tags] for tags in side] for side in zip(*pairs, strict=True)]
        result = self._seqeval(predictions=named[0], references=named[1])
        right = np.concatenate([one == other for one, other in pairs])
        return {"accuracy": float(right.mean()), "f1": float(result["overall_f1"])}

    def _over_tags(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        flat = [[tag for row in rows for tag in row] for rows in (references, predictions)]
        others = [name for name in self._names if name != OUTSIDE]
        return {"overall_f1": f1_score(*flat, labels=others, average="macro", zero_division=0)}


def names_of(train: Dataset, column: str) -> list[str]:
    """Returns the names of the tags: those of the data set, or those that occur in training."""
    known = getattr(getattr(train.features[column], "feature", None), "names", None)
    return list(known) if known else sorted({str(tag) for tags in train[column] for tag in tags})


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    parser = HfArgumentParser((common.CheckpointArguments, DataArguments, common.PruningArguments, TrainingArguments))
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)

    splits = data_args.complete(data_args.read())
    names = names_of(splits["train"], data_args.tags_column)
    ids = {name: i for i, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForTokenClassification.from_pretrained(
        model_args.model_name_or_path, id2label=dict(enumerate(names)), label2id=ids
    )

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        words, tags = batch[data_args.tokens_column], batch[data_args.tags_column]
        found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=model_args.max_seq_length)
        labels = [labels_of(found.word_ids(row), tags[row], ids) for row in range(len(words))]
        return {**found, "labels": labels}

    encoded = common.encoded(splits, encode)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=Metrics(names),
        callbacks=pruning_args.callbacks(),
    )
    return common.journey(trainer, encoded, AutoModelForTokenClassification.from_pretrained)


def labels_of(words: list[int | None], tags: list[Any], ids: dict[str, int]) -> list[int]:
    """Returns a label for each token: the tag of its word for the first token of a word, none for the others.

    Args:
        words: Word of each token; None for tokens of the model's own.
        tags: Of each word, names or numbers.
        ids: Number of each name.
    """
    firsts = [word is not None and word != before for before, word in zip([None, *words[:-1]], words, strict=True)]
    found = [tags[word] if is_first else IGNORED for is_first, word in zip(firsts, words, strict=True)]
    return [tag if isinstance(tag, int) else ids[tag] for tag in found]


def smoke_arguments(folder: Path) -> list[str]:
    """Writes a tiny model with random weights and a toy task, and returns the arguments of a run of a few seconds."""
    rng = np.random.default_rng(0)
    people, places, rest = ["Anna", "Ben", "Cleo"], ["Oslo", "Lima", "Kyoto"], ["walks", "in", "to", "the", "market"]
    tags = dict.fromkeys(people, "B-PER") | dict.fromkeys(places, "B-LOC") | dict.fromkeys(rest, OUTSIDE)
    files = []
    for split, size in (("train", 128), ("validation", 32), ("test", 32)):
        rows = [rng.choice(list(tags), 6).tolist() for _ in range(size)]
        lines = [json.dumps({"words": words, "tags": [tags[word] for word in words]}) for words in rows]
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        files += [f"--{split}_file", str(path)]
    common.save_tiny_model(folder / "model", list(tags), BertForTokenClassification, num_labels=3)
    folders = ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    training = "--num_train_epochs 8 --learning_rate 3e-3 --per_device_train_batch_size 16 --report_to none --use_cpu"
    how = "--tokens_column words --tags_column tags --save_strategy no --logging_steps 50"
    return [*folders, *files, *training.split(), *how.split()]


if __name__ == "__main__":
    common.run(main, smoke_arguments)
