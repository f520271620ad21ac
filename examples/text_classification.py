"""Fine-tune and prune a BERT-like model on text classification: single sentences or pairs, from the Hub or local files.

    python examples/text_classification.py --model_name_or_path bert-base-uncased --dataset_name nyu-mll/glue \
        --dataset_config_name sst2 --max_drop 0.01 --num_train_epochs 3 --output_dir out
    python examples/text_classification.py --model_name_or_path path/to/model --train_file train.tsv \
        --validation_file dev.tsv --test_file test.tsv --density 0.5 --output_dir out
    python examples/text_classification.py --smoke

Plans are tested on the validation split; only the test split says how good the result is on other data. Local
files are .csv, .tsv (without quoting), .json, .jsonl or .parquet. Columns are found by known names ("sentence", "text",
"premise" and "hypothesis", "sentence1" and "sentence2", ...), or named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import PruningArguments, load_metric, reload_difference, save_tiny_model, write_results
from datasets import ClassLabel, Dataset
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_headprune.cli.columns import CLASSES, NamedColumns, one_column, text_columns

logger = logging.getLogger("text_classification")
BINARY = 2
STAND_INS = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, zero_division=0),
    "matthews_correlation": matthews_corrcoef,
}


@dataclass
class DataArguments(common.DataArguments):
    """Which data, and which columns of it."""

    text_column: str | None = field(default=None, metadata={"help": "Column of the text; found by its name if known."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the class."})


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    parser = HfArgumentParser((common.CheckpointArguments, DataArguments, PruningArguments, TrainingArguments))
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)

    splits = load_splits(data_args)
    labels, ids = classes_of(splits["train"])
    for name, split in splits.items():
        if unknown := sorted(set(split["label"]) - ids.keys()):
            raise ValueError(f"{name}: the labels {unknown} are none of those in train, {sorted(ids)}.")
    logger.info("%s; classes %s", {name: split.num_rows for name, split in splits.items()}, labels)

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [batch[name] for name in ("text", "text_pair") if name in batch]
        encoded = tokenizer(*texts, truncation=True, max_length=model_args.max_seq_length)
        return {**encoded, "labels": [ids[label] for label in batch["label"]]}

    encoded = common.encoded(splits, encode)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=Metrics(),
        callbacks=pruning_args.callbacks(),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()

    results: dict[str, Any] = {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    for name in ("validation", "test"):
        if name in encoded:
            results |= trainer.evaluate(encoded[name], metric_key_prefix=name)
    few = encoded["validation"].take(4).remove_columns("labels")
    results["reload_difference"] = reload_difference(trainer, few, AutoModelForSequenceClassification.from_pretrained)
    write_results(training_args.output_dir, results)
    return results


def load_splits(arguments: DataArguments) -> dict[str, Dataset]:
    """Returns the splits "train", "validation" and, if there is one with labels, "test".

    Their columns are "text", "text_pair" if the model reads pairs, and "label".
    """
    named = NamedColumns(arguments.text_column, arguments.text_pair_column, arguments.label_column)
    splits = {}
    for name, split in arguments.read().items():
        label = one_column(split, named.label, CLASSES, option="--label_column", where=name)
        if name == "test" and set(split[label]) == {-1}:
            continue  # GLUE keeps the labels of its tests to itself
        texts = text_columns(split, named, label, where=name)
        columns = {**dict(zip(texts, ("text", "text_pair"), strict=False)), label: "label"}
        renamed = split.select_columns(list(columns)).rename_columns(columns)
        splits[name] = with_gold_labels(renamed, name)
    return arguments.complete(splits)


def with_gold_labels(split: Dataset, name: str) -> Dataset:
    """Leaves out the examples that a Hub data set marks, by -1, as having no label; says how many."""
    labels = split["label"][:]
    if any(isinstance(label, float) for label in labels):
        raise ValueError(f"{name}: the labels are fractions, and this script tells classes apart.")
    labelled = [index for index, label in enumerate(labels) if label != -1]
    if len(labelled) == len(labels):
        return split
    logger.warning(
        "%s: %d of %d examples have no label (-1) and are left out", name, len(labels) - len(labelled), len(labels)
    )
    return split.select(labelled)


def classes_of(train: Dataset) -> tuple[list[str], dict[Any, int]]:
    """Returns the names of the classes in a fixed order, and the index of each value of the labels."""
    feature = train.features["label"]
    if isinstance(feature, ClassLabel):
        return list(feature.names), {index: index for index in range(feature.num_classes)}
    values = sorted(set(train["label"]))
    return [str(value) for value in values], {value: index for index, value in enumerate(values)}


class Metrics:
    """Accuracy, F1 (of class 1, or the mean over more than two classes) and Matthews correlation."""

    def __init__(self) -> None:
        """Takes them from `evaluate`, or from scikit-learn if they can't be loaded."""
        self.functions = {name: load_metric(name, _as_module(name, it)) for name, it in STAND_INS.items()}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns their values; what a Trainer takes as `compute_metrics`."""
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        options = {"f1": {"average": "binary" if logits.shape[-1] == BINARY else "macro"}}
        both = {"references": prediction.label_ids, "predictions": logits.argmax(axis=-1)}
        return {name: float(it(**both, **options.get(name, {}))[name]) for name, it in self.functions.items()}


def _as_module(name: str, function: Callable[..., float]) -> Callable[..., dict[str, float]]:
    """Returns a function of scikit-learn as `evaluate` calls its own."""
    return lambda references, predictions, **options: {name: function(references, predictions, **options)}


def smoke_arguments(folder: Path) -> list[str]:
    """Writes a tiny model with random weights and a toy task, and returns the arguments of a run of a few seconds."""
    subjects, verdicts = ["film", "play", "book", "song"], {"good": "1", "fine": "1", "bad": "0", "dull": "0"}
    rng = np.random.default_rng(0)
    for name, size in (("train", 96), ("validation", 32), ("test", 32)):
        words = [(rng.choice(subjects), rng.choice(list(verdicts))) for _ in range(size)]
        rows = [f'the "{subject} was {verdict}\t{verdicts[verdict]}' for subject, verdict in words]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]), encoding="utf-8")
    save_tiny_model(folder / "model", ["the", "was", '"', *subjects, *verdicts], BertForSequenceClassification)
    files = [
        word for name in ("train", "validation", "test") for word in (f"--{name}_file", str(folder / f"{name}.tsv"))
    ]
    training = "--num_train_epochs 20 --learning_rate 3e-3 --per_device_train_batch_size 16 --report_to none --use_cpu"
    pruning = "--save_strategy no --logging_steps 10"
    folders = ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    return [*folders, *files, *training.split(), *pruning.split()]


if __name__ == "__main__":
    common.run(main, smoke_arguments)
