"""Runs a sequence classification model on examples and says which answers are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.masking import evaluating
from hf_headprune.tasks.examples import ModelExamples, PadRight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn


@dataclass(frozen=True)
class Batching:
    """How examples become batches.

    Attributes:
        processing_class: Tokenizer that pads; without one, batches are padded on the right.
        data_collator: Makes the batches instead.
        batch_size: Examples per batch.

    Raises:
        InvalidSettingError: The batch size is no positive number.
    """

    processing_class: Any = None
    data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Checks the batch size."""
        if self.batch_size < 1:
            raise InvalidSettingError(f"certify: batch_size must be at least 1, received {self.batch_size}.")

    def collate_for(self, model: Any) -> Callable[[list[Any]], Mapping[str, Any]]:
        """Returns the function that makes a batch for a model."""
        if self.data_collator is not None:
            return self.data_collator
        if self.processing_class is not None:
            return DataCollatorWithPadding(self.processing_class)
        return PadRight(getattr(getattr(model, "config", None), "pad_token_id", None))


def right_answers(model: nn.Module, dataset: Any, batching: Batching = Batching()) -> np.ndarray:
    """Returns 1 for each example whose class a model predicts, else 0, `(n,)` in the order of the data set.

    The model is left as it was.

    Raises:
        InvalidSettingError: The data set is empty, unlabelled or not tokenized, or a label is no class of the model.
        UnsupportedModelError: The model is no single-label classifier, or its logits are not finite.
    """
    rows = labels_and_predictions(model, dataset, batching)
    return (rows[:, 0] == rows[:, 1]).astype(np.int64)


def labels_and_predictions(model: nn.Module, dataset: Any, batching: Batching = Batching()) -> np.ndarray:
    """Returns the label and the predicted class of each example, `(n, 2)`; see `right_answers`."""
    num_labels = _num_labels(model)
    examples, collate = _examples(dataset, model), batching.collate_for(model)
    lengths = np.array([len(examples[index]["input_ids"]) for index in range(len(examples))])
    order = np.argsort(-lengths, kind="stable")  # little padding, and too large a batch fails at once
    rows = np.empty((len(examples), 2), dtype=np.int64)
    with evaluating(model):
        for first in range(0, len(order), batching.batch_size):
            chosen = order[first : first + batching.batch_size]
            batch = dict(collate([examples[int(index)] for index in chosen]))
            gold = _labels(batch, num_labels)
            rows[chosen] = np.column_stack([gold, _predicted(model, batch, (len(chosen), num_labels))])
    return rows


def check_labels(model: nn.Module, dataset: Any, batching: Batching = Batching()) -> None:
    """Refuses examples that `right_answers` would refuse, without running the model.

    Raises:
        InvalidSettingError: See `right_answers`.
        UnsupportedModelError: The model is no single-label classifier.
    """
    num_labels = _num_labels(model)
    examples, collate = _examples(dataset, model), batching.collate_for(model)
    for first in range(0, len(examples), batching.batch_size):
        rows = range(first, min(first + batching.batch_size, len(examples)))
        _labels(dict(collate([examples[index] for index in rows])), num_labels)


def _examples(dataset: Any, model: nn.Module) -> ModelExamples:
    return ModelExamples(dataset, model, where="certify")


def _labels(batch: dict[str, Any], num_labels: int) -> np.ndarray:
    """Takes the labels out of a batch."""
    labels = next((batch.pop(name) for name in ("labels", "label") if name in batch), None)
    gold = np.asarray([] if labels is None else labels)
    if gold.ndim != 1 or gold.dtype.kind not in "iu" or not ((gold >= 0) & (gold < num_labels)).all() or not gold.size:
        raise InvalidSettingError(
            f"certify: labels must be whole numbers 0..{num_labels - 1}, one per example, received {gold.dtype} of "
            f"shape {gold.shape}: {gold.ravel()[:5].tolist()}. Remove unlabelled examples, or map the labels to the "
            "classes of the model."
        )
    return gold


def _predicted(model: nn.Module, batch: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    logits = getattr(model(**inputs), "logits", None)
    if logits is None or tuple(logits.shape) != shape or not logits.isfinite().all():
        received = "none" if logits is None else f"shape {tuple(logits.shape)}, all finite: {logits.isfinite().all()}"
        raise UnsupportedModelError(
            f"certify: {type(model).__name__} must return finite logits of shape {shape}, received {received}. Use a "
            "...ForSequenceClassification model, or a Metric with a function that scores this one."
        )
    return logits.argmax(dim=-1).cpu().numpy()


def _num_labels(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    num_labels, problem = getattr(config, "num_labels", 0), getattr(config, "problem_type", None)
    if num_labels <= 1 or problem not in (None, "single_label_classification"):
        raise UnsupportedModelError(
            f"certify: {type(model).__name__} must be a single-label classifier, received num_labels {num_labels} and "
            f"problem_type {problem!r}. For any other task pass metric=Metric(name, kind, score=...)."
        )
    return num_labels
