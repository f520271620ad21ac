"""Measures plans on a live model, exactly: closed units, every example, in the precision in which the model runs.

An evaluator is a function `plan -> Measurement` with a `fingerprint()` of what it measures; a faster one that gives
the same verdicts can take its place.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.fingerprints import sha256_of
from hf_headprune.masking import evaluating, masked
from hf_headprune.search.effects import HeadEffects
from hf_headprune.search.metrics import CLASSIFICATION_METRICS
from hf_headprune.search.problem import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from hf_headprune.plan import PruningPlan

LABELS = "labels"


class ClassificationEvaluator:
    """Measures plans of a sequence classification model on labelled batches.

    Attributes:
        num_examples: Examples in all batches.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, torch.Tensor]],
        *,
        metric: str = "accuracy",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Checks model and labels.

        Args:
            model: Single-label classifier whose output has `logits` of shape `(batch, num_labels)`.
            batches: Inputs of the model with "labels" of shape `(batch,)`.
            metric: One of `CLASSIFICATION_METRICS`.
            autocast_dtype: Evaluates under autocast. Predictions near a tie then differ from those in fp32; use it
                only when the model will run in that precision.

        Raises:
            InvalidSettingError: There is no example, labels are missing or out of range, or the metric is unknown.
            UnsupportedModelError: The model is no single-label classifier.
        """
        if metric not in CLASSIFICATION_METRICS:
            raise InvalidSettingError(
                f"ClassificationEvaluator: metric must be one of {', '.join(CLASSIFICATION_METRICS)}, received "
                f"{metric!r}. For any other use MetricEvaluator with a function that measures the model."
            )
        self._model = model
        self._batches = list(batches)
        self._metric = metric
        self._autocast_dtype = autocast_dtype
        self._num_labels = _num_labels(model)
        self._check_labels()
        self._gold = torch.cat([batch[LABELS].detach().cpu() for batch in self._batches]).numpy()
        self.num_examples = len(self._gold)

    def __call__(self, plan: PruningPlan) -> Measurement:
        """Measures a plan on all examples; the model is left as it was.

        Returns:
            The metric, and the margins `(num_examples,)` in the order of the batches.

        Raises:
            InvalidPlanError: The plan does not fit the model.
            UnsupportedModelError: The model returns no logits of the expected shape.
        """
        with masked(self._model, plan), evaluating(self._model), self._precision():
            logits = np.concatenate([self._logits(batch) for batch in self._batches])  # (num_examples, num_labels)
        confusion = np.zeros((self._num_labels, self._num_labels), dtype=np.int64)
        np.add.at(confusion, (self._gold, logits.argmax(axis=1)), 1)
        return Measurement(CLASSIFICATION_METRICS[self._metric](confusion), margins_of(logits, self._gold))

    def head_effects(self, plan: PruningPlan) -> np.ndarray:
        """Estimates what the removal of each head does to each margin, from one backward pass.

        A prediction to order a search by: the first-order change of the margins when a head's gate closes.

        Args:
            plan: What is open; its FFN units are closed as in a measurement.

        Returns:
            Shape `(num_heads, num_examples)`, heads in the order of `anatomy.attention_sites`.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        columns = []
        heads_open = plan.replace(kept_heads={site: range(units) for site, units in plan.num_heads.items()})
        with (
            evaluating(self._model),
            torch.enable_grad(),
            masked(self._model, heads_open),
            self._precision(),
            HeadEffects(self._model, plan) as effects,
        ):
            for batch in self._batches:
                logits = self._output(batch).float()  # (batch, num_labels)
                gold = batch[LABELS].to(logits.device)[:, None]
                others = logits.scatter(1, gold, -torch.inf)
                margins = logits.gather(1, gold)[:, 0] - others.amax(dim=1)
                columns.append(effects.of(margins).cpu().numpy())
        return np.concatenate(columns, axis=1)

    def fingerprint(self) -> str:
        """Returns the sha256 of the weights, the data, the metric and the precision."""
        settings = f"{self._metric} {self._autocast_dtype}"
        batches = {f"{i} {name}": tensor for i, batch in enumerate(self._batches) for name, tensor in batch.items()}
        return sha256_of(settings, self._model.state_dict(), batches)

    def _logits(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        return self._output(batch).float().cpu().numpy()

    def _output(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        device = next(self._model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != LABELS}
        logits = getattr(self._model(**inputs), "logits", None)
        expected = (len(batch[LABELS]), self._num_labels)
        if logits is None or tuple(logits.shape) != expected:
            raise UnsupportedModelError(
                f"ClassificationEvaluator: {type(self._model).__name__} must return logits of shape {expected}, "
                f"received {None if logits is None else tuple(logits.shape)}. Use a ...ForSequenceClassification "
                "model, or MetricEvaluator with a function that measures this one."
            )
        return logits

    def _precision(self) -> Any:
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(next(self._model.parameters()).device.type, dtype=self._autocast_dtype)

    def _check_labels(self) -> None:
        if not sum(len(batch.get(LABELS, ())) for batch in self._batches):
            missing = [sorted(batch) for batch in self._batches if LABELS not in batch][:1]
            raise InvalidSettingError(
                "ClassificationEvaluator: at least one labelled example is needed, received "
                + (f"batches with {missing[0]} and no 'labels'" if missing else "none")
                + ". Pass a non-empty data set whose batches hold 'labels'."
            )
        for number, batch in enumerate(self._batches):
            labels = batch.get(LABELS)
            if labels is None or labels.ndim != 1 or labels.is_floating_point():
                received = None if labels is None else (tuple(labels.shape), labels.dtype)
                raise InvalidSettingError(
                    f"ClassificationEvaluator: batch {number}: labels must be whole numbers of shape (batch,), "
                    f"received {received}. Give each example one class."
                )
            wrong = labels[(labels < 0) | (labels >= self._num_labels)]
            if wrong.numel():
                raise InvalidSettingError(
                    f"ClassificationEvaluator: batch {number}: labels must be 0..{self._num_labels - 1}, received "
                    f"{sorted(set(wrong.tolist()))[:5]}. Remove unlabelled examples, or map the labels to the "
                    "classes of the model."
                )


class MetricEvaluator:
    """Measures plans by any function of the live model."""

    def __init__(
        self,
        measure: Callable[[], float],
        model: nn.Module,
        *,
        higher_is_better: bool = True,
        data_fingerprint: str = "",
    ) -> None:
        """Stores the function.

        Args:
            measure: Measures the model as it is, without arguments; a deterministic function.
            model: The model that it measures.
            higher_is_better: Where false, the metric's sign is flipped in every `Measurement`.
            data_fingerprint: Identifies the data that it measures on.
        """
        self._measure = measure
        self._model = model
        self._sign = 1.0 if higher_is_better else -1.0
        self._data_fingerprint = data_fingerprint

    def __call__(self, plan: PruningPlan) -> Measurement:
        """Measures a plan; the model is left as it was.

        Raises:
            InvalidPlanError: The plan does not fit the model.
            InvalidSettingError: The function returned no number.
        """
        with masked(self._model, plan), evaluating(self._model):
            value = self._measure()
        try:
            return Measurement(self._sign * float(value))
        except (TypeError, ValueError) as error:
            raise InvalidSettingError(
                f"MetricEvaluator: the function must return one number, received {type(value).__name__} {value!r}. "
                "Return the one metric that the search is to keep."
            ) from error

    def fingerprint(self) -> str:
        """Returns the sha256 of the weights and of the data's own fingerprint."""
        return sha256_of(f"{self._sign} {self._data_fingerprint}", self._model.state_dict(), {})


def margins_of(logits: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Returns the gold logit minus the best other one.

    Args:
        logits: Shape `(num_examples, num_labels)`.
        gold: Class of each example, shape `(num_examples,)`.
    """
    rows = np.arange(len(gold))
    others = logits.copy()
    others[rows, gold] = -np.inf
    return logits[rows, gold] - others.max(axis=1)


def length_sorted_batches(
    dataset: Any, collate: Callable[[list[Any]], Mapping[str, Any]], *, batch_size: int
) -> list[dict[str, torch.Tensor]]:
    """Batches a data set in the order of length, so that little is padded.

    Args:
        dataset: Sized and indexable; its examples are mappings with "input_ids".
        collate: Makes a batch of a list of examples.
        batch_size: Examples per batch.

    Returns:
        Batches of tensors, the longest examples first, so that too large a batch fails at once. Labels are called
        "labels".

    Raises:
        InvalidSettingError: The data set is empty or its examples are not tokenized.
    """
    if batch_size < 1:
        raise InvalidSettingError(f"length_sorted_batches: batch_size must be at least 1, received {batch_size}.")
    examples = [dataset[index] for index in range(len(dataset))]
    if not examples:
        raise InvalidSettingError("length_sorted_batches: the data set is empty. Pass one with labelled examples.")
    if "input_ids" not in examples[0]:
        raise InvalidSettingError(
            f"length_sorted_batches: examples must hold 'input_ids', received {sorted(examples[0])}. Tokenize the "
            "data set first."
        )
    lengths = [int(sum(example.get("attention_mask", [1] * len(example["input_ids"])))) for example in examples]
    order = sorted(range(len(examples)), key=lambda index: (-lengths[index], index))
    batches = []
    for first in range(0, len(order), batch_size):
        batch = dict(collate([examples[index] for index in order[first : first + batch_size]]))
        if LABELS not in batch and "label" in batch:
            batch[LABELS] = batch.pop("label")
        batches.append({name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})
    return batches


def _num_labels(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    num_labels = getattr(config, "num_labels", 0)
    problem = getattr(config, "problem_type", None)
    if num_labels <= 1 or problem not in (None, "single_label_classification"):
        raise UnsupportedModelError(
            f"ClassificationEvaluator: {type(model).__name__} must be a single-label classifier, received num_labels "
            f"{num_labels} and problem_type {problem!r}. Use MetricEvaluator with a function that measures this model."
        )
    return num_labels
