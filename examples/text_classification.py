"""Fine-tune and prune a BERT-like model on text classification: single sentences or pairs, from the Hub or local files.

    python examples/text_classification.py --model_name_or_path bert-base-uncased --dataset_name nyu-mll/glue \
        --dataset_config_name sst2 --max_drop 0.01 --num_train_epochs 3 --output_dir out
    python examples/text_classification.py --model_name_or_path path/to/model --train_file train.tsv \
        --validation_file dev.tsv --test_file test.tsv --kept_heads 36 --output_dir out
    python examples/text_classification.py --smoke

The search chooses heads on the validation split; only the test split says how good the result is on other data. Local
files have a header: `.tsv` is read without quoting, `.csv` with, `.json`/`.jsonl` holds one object per line.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_headprune import AStarSearch, HeadPruneCallback, SubsetGates

logger = logging.getLogger("text_classification")
BINARY = 2


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint of a supported family: a Hub name or a folder."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})


@dataclass
class DataArguments:
    """Which data."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration, such as sst2."})
    train_file: str | None = field(default=None, metadata={"help": "Local .tsv, .csv or .json(l) file."})
    validation_file: str | None = field(default=None, metadata={"help": "The search chooses heads on this file."})
    test_file: str | None = field(default=None, metadata={"help": "Looked at once, after pruning."})
    text_columns: list[str] = field(default_factory=list, metadata={"help": "One or two; found when left out."})
    label_column: str = field(default="label", metadata={"help": "Column of the class."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first ones."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation and test."})


@dataclass
class PruningArguments:
    """How to prune."""

    kept_heads: str = field(default="0.5", metadata={"help": "Heads the gates keep: a number, or a fraction like 0.5."})
    estimator: str | None = field(default=None, metadata={"help": "ste, sigmoid, dsp or hard_concrete."})
    mode: str = field(default="joint", metadata={"help": "joint, or pipelined for a model that is fine-tuned already."})
    max_drop: float = field(default=0.01, metadata={"help": "Largest loss of the metric on the validation split."})
    confidence: str = field(
        default="report",
        metadata={
            "help": "report: say what half of the validation split, unseen by the search, shows; a level like 0.95: "
            "cut only what it certifies; none: search on all of it."
        },
    )
    density: float | None = field(default=None, metadata={"help": "Share of the weights that stays, heads and FFN."})
    metric: str = field(default="accuracy", metadata={"help": "accuracy, f1 or matthews_correlation."})
    max_evaluations: int = field(default=150, metadata={"help": "Plans that the search may evaluate."})
    no_search: bool = field(default=False, metadata={"help": "Cut exactly what the gates choose."})
    no_pruning: bool = field(default=False, metadata={"help": "Train the dense model, for comparison."})

    def __post_init__(self) -> None:
        """Refuses options that another one would silence."""
        own = {
            "kept_heads": self.kept_heads != "0.5",
            "estimator": self.estimator is not None,
            "mode": self.mode != "joint",
        }
        if self.density is not None and any(own.values()):
            raise ValueError(
                f"--density chooses heads and FFN units by their costs, without gates: leave out "
                f"{', '.join(f'--{name}' for name, given in own.items() if given)}, or --density."
            )

    def callbacks(self) -> list[HeadPruneCallback]:
        """Returns what to hand to the Trainer."""
        if self.no_pruning:
            return []
        kept_heads = float(self.kept_heads) if "." in self.kept_heads else int(self.kept_heads)
        gates = SubsetGates(kept_heads=kept_heads, estimator=self.estimator, mode=self.mode)
        known = {"report": "report", "none": None}
        search: AStarSearch | None = AStarSearch(
            max_drop=self.max_drop,
            metric=self.metric,
            max_evaluations=self.max_evaluations,
            confidence=known[self.confidence] if self.confidence in known else float(self.confidence),
        )
        search = None if self.no_search else search
        if self.density is not None:
            return [HeadPruneCallback(search=search, density=self.density)]
        return [HeadPruneCallback(gates=gates, search=search)]


def main(arguments: list[str]) -> dict[str, Any]:
    """Trains, prunes, saves, reloads and tests; returns the results that it also writes to `results.json`."""
    parser = HfArgumentParser((ModelArguments, DataArguments, PruningArguments, TrainingArguments))
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    set_seed(training_args.seed)

    splits = load_splits(data_args)
    labels, ids = classes_of(splits["train"], data_args.label_column)
    for name, split in splits.items():
        if unknown := sorted(set(split[data_args.label_column]) - ids.keys()):
            raise ValueError(f"{name}: the labels {unknown} are none of those in train, {sorted(ids)}.")
    text_columns = data_args.text_columns or find_text_columns(splits["train"], data_args.label_column)
    logger.info("%s; texts in %s; classes %s", {k: len(v) for k, v in splits.items()}, text_columns, labels)

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [batch[column] for column in text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=model_args.max_seq_length)
        return {**encoded, "labels": [ids[label] for label in batch[data_args.label_column]]}

    encoded = {
        name: split.map(encode, batched=True, remove_columns=split.column_names, keep_in_memory=True)
        for name, split in splits.items()
    }
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=pruning_args.callbacks(),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()

    results: dict[str, Any] = {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    for name in ("validation", "test"):
        if name in encoded:
            results |= trainer.evaluate(encoded[name], metric_key_prefix=name)
    results["reload_difference"] = reload_difference(
        trainer, encoded["validation"].select(range(min(4, len(encoded["validation"]))))
    )
    path = Path(training_args.output_dir) / "results.json"
    path.write_text(json.dumps(results, indent=2), encoding="utf-8")
    logger.info("%s", json.dumps(results, indent=2))
    return results


def load_splits(arguments: DataArguments) -> dict[str, Dataset]:
    """Returns the splits "train", "validation" and, where there is one with labels, "test"."""
    if arguments.dataset_name:
        loaded = load_dataset(arguments.dataset_name, arguments.dataset_config_name)
        splits = {name: loaded[name] for name in ("train", "validation", "test") if name in loaded}
        if "validation" not in splits and "validation_matched" in loaded:  # MNLI has two; its tests have no labels
            splits["validation"] = loaded["validation_matched"]
    else:
        files = {
            "train": arguments.train_file,
            "validation": arguments.validation_file,
            "test": arguments.test_file,
        }
        splits = {name: read_file(Path(file)) for name, file in files.items() if file}
    missing = {"train", "validation"} - splits.keys()
    if missing:
        raise ValueError(f"No data for {sorted(missing)}: give --dataset_name, or --train_file and --validation_file.")
    for name, split in splits.items():
        if arguments.label_column not in split.column_names:
            raise ValueError(
                f"{name}: there is no column {arguments.label_column!r} among {split.column_names}. Set --label_column."
            )
    if "test" in splits and set(splits["test"][arguments.label_column]) == {-1}:
        del splits["test"]  # GLUE keeps the labels of its tests to itself
    splits = {name: with_gold_labels(split, name, arguments.label_column) for name, split in splits.items()}
    limits = {"train": arguments.max_train_samples}
    for name, split in splits.items():
        limit = limits.get(name, arguments.max_eval_samples)
        splits[name] = split if limit is None else split.select(range(min(limit, len(split))))
    return splits


def with_gold_labels(split: Dataset, name: str, column: str) -> Dataset:
    """Leaves out the examples that a Hub data set marks, by -1, as having no label; says how many."""
    labels = split[column][:]
    if any(isinstance(label, float) for label in labels):
        raise ValueError(f"{name}: the column {column!r} holds fractions, and this script tells classes apart.")
    labelled = [index for index, label in enumerate(labels) if label != -1]
    if len(labelled) == len(labels):
        return split
    logger.warning(
        "%s: %d of %d examples have no label (-1) and are left out", name, len(labels) - len(labelled), len(labels)
    )
    return split.select(labelled)


def read_file(path: Path) -> Dataset:
    """Reads a local file with a header; every value of a .tsv or .csv is text."""
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        return Dataset.from_list([json.loads(line) for line in lines if line.strip()])
    if path.suffix not in (".tsv", ".csv"):
        raise ValueError(f"{path}: the name must end with .tsv, .csv, .json or .jsonl.")
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(encoding="utf-8", newline="") as file:
        return Dataset.from_list(list(csv.DictReader(file, **dialect)))


def classes_of(train: Dataset, column: str) -> tuple[list[str], dict[Any, int]]:
    """Returns the names of the classes in a fixed order, and the index of each value that the column holds."""
    feature = train.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names), {index: index for index in range(feature.num_classes)}
    values = sorted(set(train[column]))
    return [str(value) for value in values], {value: index for index, value in enumerate(values)}


def find_text_columns(train: Dataset, label_column: str) -> list[str]:
    """Returns the columns of text beside the label: one for single texts, two for pairs."""
    first = train[0]
    columns = [name for name, value in first.items() if isinstance(value, str) and name not in (label_column, "id")]
    if len(columns) not in (1, 2):
        raise ValueError(f"Expected one or two columns of text, found {columns}. Set --text_columns.")
    return columns


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Returns accuracy, F1 (of class 1, or the mean over more than two classes) and Matthews correlation."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    predicted, wanted = logits.argmax(axis=-1), prediction.label_ids
    average = "binary" if logits.shape[-1] == BINARY else "macro"
    return {
        "accuracy": float(accuracy_score(wanted, predicted)),
        "f1": float(f1_score(wanted, predicted, average=average, zero_division=0)),
        "matthews_correlation": float(matthews_corrcoef(wanted, predicted)),
    }


def reload_difference(trainer: Trainer, examples: Dataset) -> float:
    """Returns the largest difference between the logits of the model in memory and of the one that was saved."""
    # Mixed precision wraps the forward pass of the model that was trained, not of one that is loaded.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    batch = trainer.data_collator([{k: v for k, v in row.items() if k != "labels"} for row in examples]).to(
        model.device
    )
    reloaded = AutoModelForSequenceClassification.from_pretrained(trainer.args.output_dir).to(model.device).eval()
    with torch.no_grad():
        return float((model(**batch).logits - reloaded(**batch).logits).abs().max())


def smoke_arguments(folder: Path) -> list[str]:
    """Writes a tiny model with random weights and a toy task, and returns the arguments of a run of a few seconds."""
    subjects, verdicts = ["film", "play", "book", "song"], {"good": "1", "fine": "1", "bad": "0", "dull": "0"}
    rng = np.random.default_rng(0)
    for name, size in (("train", 96), ("validation", 32), ("test", 32)):
        words = [(rng.choice(subjects), rng.choice(list(verdicts))) for _ in range(size)]
        rows = [f'the "{subject} was {verdict}\t{verdicts[verdict]}' for subject, verdict in words]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]), encoding="utf-8")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "was", '"', *subjects, *verdicts]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.1, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    files = [
        word for name in ("train", "validation", "test") for word in (f"--{name}_file", str(folder / f"{name}.tsv"))
    ]
    training = "--num_train_epochs 20 --learning_rate 3e-3 --per_device_train_batch_size 16 --report_to none --use_cpu"
    pruning = "--kept_heads 4 --max_evaluations 12 --save_strategy no --logging_steps 10"
    folders = ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    return [*folders, *files, *training.split(), *pruning.split()]


if __name__ == "__main__":
    if "--smoke" in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as temporary:
            main(smoke_arguments(Path(temporary)))
    else:
        main(sys.argv[1:])
