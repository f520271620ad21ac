"""Tiny fine-tuned models with tokenizers, and files of labelled examples, for tests of the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from hf_headprune.cli import main
from tests.support.models import tiny_bert
from tests.support.texts import tokenizer_of

SUBJECTS, GOOD, BAD = ["film", "play", "book", "song", "tale"], ["good", "fine", "great"], ["bad", "dull", "poor"]
FILLERS = [f"w{number}" for number in range(40)]
WORDS = ["the", "was", "what", "?", *SUBJECTS, *GOOD, *BAD, *FILLERS]


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The one line that a problem is."""
        lines = [line for line in self.err.splitlines() if line.startswith("headprune: ")]
        assert len(lines) == 1
        assert "Traceback" not in self.err
        return lines[0].removeprefix("headprune: ")


def called(capsys: Any, *words: Any) -> Said:
    """Runs a command in this process."""
    capsys.readouterr()
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return Said(code, printed.out, printed.err)


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    return tokenizer_of(WORDS)


def sentences(size: int, *, seed: int) -> list[dict[str, str]]:
    """Different sentences about good and bad things; a few hundred exist for every pair of fillers."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(size):
        is_good = bool(rng.integers(2))
        words = [rng.choice(FILLERS), "the", rng.choice(SUBJECTS), "was", rng.choice(GOOD if is_good else BAD)]
        words += list(rng.choice(FILLERS, size=3))
        rows.append({"sentence": " ".join(words), "label": "positive" if is_good else "negative"})
    return rows


def tagged(size: int, *, seed: int) -> list[dict[str, Any]]:
    """Words, each with a tag: O, THING, or VIEW."""
    tags = {**dict.fromkeys(SUBJECTS, "THING"), **dict.fromkeys(GOOD + BAD, "VIEW")}
    found = []
    for row in sentences(size, seed=seed):
        tokens = row["sentence"].split()
        found.append({"tokens": tokens, "ner_tags": [tags.get(word, "O") for word in tokens]})
    return found


def questions(size: int, *, seed: int) -> list[dict[str, Any]]:
    """What is said of a thing, in SQuAD's format."""
    found = []
    for number, row in enumerate(sentences(size, seed=seed)):
        view = next(word for word in row["sentence"].split() if word in GOOD + BAD)
        answers = {"text": [view], "answer_start": [row["sentence"].index(f" {view}") + 1]}
        question = f"what was the {next(word for word in row['sentence'].split() if word in SUBJECTS)} ?"
        found.append({"id": f"{seed}-{number}", "question": question, "context": row["sentence"], "answers": answers})
    return found


def scored(size: int, *, seed: int) -> list[dict[str, Any]]:
    """Sentences with a score: 1.5 for a good thing, -0.5 for a bad one."""
    rows = sentences(size, seed=seed)
    return [{"text": row["sentence"], "score": 1.5 if row["label"] == "positive" else -0.5} for row in rows]


def labelled(size: int, *, seed: int) -> list[dict[str, Any]]:
    """Sentences with the labels that hold: whether a thing is good, and whether it is a film."""
    names = {"film": "about a film", "positive": "good"}
    found = []
    for row in sentences(size, seed=seed):
        labels = [name for part, name in names.items() if part in f"{row['sentence']} {row['label']}"]
        found.append({"text": row["sentence"], "labels": labels})
    return found


def in_columns(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of `labelled` with a column of 0 and 1 for each label."""
    return [{"text": row["text"], **{name: int(name in row["labels"]) for name in names}} for row in rows]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows by the ending of the name: .csv, .tsv or .jsonl."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **dialect)
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_model(
    folder: Path, task: str = "SequenceClassification", *, labels: tuple[str, ...] = (), **settings: Any
) -> Any:
    """Saves a tiny BERT with random weights, and a tokenizer of words."""
    if labels:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    model = tiny_bert(task, **settings)
    model.save_pretrained(folder)
    tokenizer_of_words().save_pretrained(folder)
    return model


def save_classifier(folder: Path, *, steps: int = 60) -> Any:
    """Saves a tiny BERT that tells good from bad, after a second of training."""
    tokenizer = tokenizer_of_words()
    model = save_model(folder, labels=("negative", "positive"))
    rows = sentences(16 * steps, seed=100)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for first in range(0, len(rows), 16):
        batch = rows[first : first + 16]
        inputs = tokenizer([row["sentence"] for row in batch], return_tensors="pt", padding=True)
        labels = torch.tensor([int(row["label"] == "positive") for row in batch])
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return model
