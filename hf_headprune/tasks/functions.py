"""Scores a model by a function of its predictions and the references, such as a module of the package `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.classification import ClassScorer
from hf_headprune.tasks.metrics import PredictionMetric, known_metric
from hf_headprune.tasks.scorer import Kind, Scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch

    from hf_headprune.tasks.answers import Answers


@dataclass(frozen=True)
class FunctionScorer(Scorer):
    """Scores predictions of a task by a function of all of them.

    Attributes:
        task: Scores the same examples by a metric of ours; it reads labels and predictions, and knows what a single
            example is worth.
        function: Of predictions and references.
        metric: Name of the metric.
    """

    task: Scorer
    function: PredictionMetric
    metric: str = "function"

    @property
    def kind(self) -> Kind:
        """Nothing says that the function is a mean over examples."""
        return "corpus"

    @property
    def scored(self) -> str:
        """What the function gets."""
        return "its label and the model's prediction, by a function that was passed"

    @property
    def is_continuous(self) -> bool:
        """As of the task."""
        return self.task.is_continuous

    @property
    def num_rows(self) -> int:
        """As of the task."""
        return self.task.num_rows

    def check(self, batches: Sequence[Mapping[str, torch.Tensor]], *, where: str = "ExampleEvaluator") -> Scorer:
        """Refuses batches without proper labels; returns the scorer that knows these labels."""
        return replace(self, task=self.task.check(batches, where=where))

    def answered(self, rows: np.ndarray) -> np.ndarray | None:
        """As of the task."""
        return self.task.answered(rows)

    def aggregate(self, rows: np.ndarray) -> float:
        """Returns what the function makes of the predictions and references in rows, `(n, num_rows)`."""
        return self.function(*self.task.predictions_of(rows))

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns what the model takes."""
        return self.task.inputs(batch)

    def weights(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Returns the weight of each example, `(batch,)`."""
        return self.task.weights(batch)

    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads predictions and references."""
        return self.task.answers(outputs, batch)

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns the scores that predicted margins stand for, `(num_examples,)`."""
        return self.task.predicted(margins)

    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the evidence that each answer is right, `(batch,)`."""
        return self.task.margins(outputs, batch)

    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the loss of each example, `(batch,)`."""
        return self.task.losses(outputs, batch)

    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        return self.task._problem(batch)


def scorer_by_function(task: Scorer, given: Any, *, where: str) -> Scorer:
    """Returns what scores a task by a function; one that equals a metric of ours gets the scorer of that metric.

    Args:
        task: Scorer of the task.
        given: The function, or a module of the package `evaluate`.
        where: Name of the caller, for errors.

    Raises:
        InvalidSettingError: The task has no predictions that such a function could take.
    """
    function = PredictionMetric(given)
    if not task.num_rows:
        raise InvalidSettingError(
            f"{where}: a function of predictions and references can score classes, several labels and numbers; "
            f"received {function.name} for the {task.in_words}. Name a metric of the task, or pass "
            "Metric(name, kind, score=...) with a function of the model and the data set."
        )
    if isinstance(task, ClassScorer):
        known = known_metric(function, task.num_labels)
        if known is not None:
            return replace(task, metric=known)
    return FunctionScorer(task, function, function.name)
