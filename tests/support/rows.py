"""Examples of tasks other than classifying sequences, all made of the same random tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_headprune.tasks.examples import IGNORED_LABEL
from tests.support.trainers import labelled_rows


def tagged(count: int, seed: int) -> list[dict]:
    """Examples whose first token has no label."""
    rows = labelled_rows(count, seed)
    return [{**row, "labels": [IGNORED_LABEL, *(int(i > 50) for i in row["input_ids"][1:])]} for row in rows]


def questions(count: int, seed: int) -> list[dict]:
    """Examples whose answer is the largest token."""
    found = []
    for row in labelled_rows(count, seed):
        where = int(np.argmax(row["input_ids"][1:])) + 1
        inputs = {name: row[name] for name in ("input_ids", "attention_mask")}
        found.append({**inputs, "start_positions": where, "end_positions": where})
    return found


def reversals(count: int, seed: int) -> list[dict]:
    """Texts that are to be written backwards."""
    return [{**row, "labels": row["input_ids"][::-1]} for row in labelled_rows(count, seed)]


def numbers(count: int, seed: int) -> list[dict]:
    """Texts whose first token is to be told, from 0 to 1."""
    return [{**row, "labels": row["input_ids"][0] / 100} for row in labelled_rows(count, seed)]


def several_labels(count: int, seed: int) -> list[dict]:
    """Texts with three labels, each told by one token."""
    return [{**row, "labels": [float(i > 50) for i in row["input_ids"][:3]]} for row in labelled_rows(count, seed)]


def copies(count: int, seed: int) -> list[dict]:
    """Texts whose every token is to be told."""
    return [{**row, "labels": row["input_ids"]} for row in labelled_rows(count, seed)]


def choices(count: int, seed: int) -> list[dict]:
    """Pairs of texts of which one is right."""
    first, second = labelled_rows(count, seed), labelled_rows(count, seed + 10)
    return [
        {**{name: [a[name], b[name]] for name in ("input_ids", "attention_mask")}, "labels": i % 2}
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]


def batch_of(rows: list[dict], *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Equally long examples as one batch of tensors."""
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name not in but}


def right_tags(model: Any, rows: list[dict]) -> tuple[list[float], list[int]]:
    """Shares of right tokens of each example, and how many of its tokens have a label."""
    batch = batch_of(rows, but=("article",))
    labels, labelled = batch["labels"], batch["labels"] != IGNORED_LABEL
    with torch.no_grad():
        right = (model.eval()(**batch).logits.argmax(-1) == labels) & labelled
    return (right.sum(1) / labelled.sum(1)).tolist(), labelled.sum(1).tolist()
