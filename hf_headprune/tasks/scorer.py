"""What search, certificate and refit need to know of a task: how the outputs of a model become scores of examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.tasks.answers import same_answers, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.tasks.answers import Answers

LABELS = "labels"
Kind = Literal["binary", "bounded", "corpus"]


class Scorer(ABC):
    """How one task is scored. Each example of a batch is scored separately."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the metric; higher is better."""

    @property
    @abstractmethod
    def scored(self) -> str:
        """What the score of one example is, in words."""

    @property
    def in_words(self) -> str:
        """Name of the metric, and of what."""
        return self.metric

    @property
    def kind(self) -> Kind:
        """Returns what a score is.

        "binary": 0 or 1 for each example; "bounded": a number in [0, 1]; the metric is their weighted mean. "corpus": a
        row of numbers for each example, of which `aggregate` makes the metric.
        """
        return "bounded"

    @property
    def is_continuous(self) -> bool:
        """Whether round-off changes a score; examples then stay in the batches given."""
        return False

    @property
    def generates(self) -> bool:
        """Whether the model generates its answers, token by token; they can't be read from one forward pass."""
        return False

    def with_tokenizer(self, tokenizer: Any) -> Scorer:
        """Returns the scorer with the tokenizer of the model, where it reads texts."""
        return self

    @property
    def num_rows(self) -> int:
        """Columns of `Answers.rows`."""
        return 0

    @property
    def is_mean(self) -> bool:
        """Whether the metric is the weighted mean of the scores, so that the scores seen so far bound it."""
        return self.kind != "corpus"

    @property
    def compares_models(self) -> bool:
        """Whether the model before pruning makes the labels, so that without it nothing can be scored."""
        return False

    def with_references(
        self, model: nn.Module, batches: Sequence[Mapping[str, torch.Tensor]]
    ) -> list[dict[str, torch.Tensor]]:
        """Returns the batches with the labels that only the model before pruning can give, where a task has such.

        Args:
            model: Before pruning.
            batches: Without or with labels.
        """
        return [dict(batch) for batch in batches]

    def check(self, batches: Sequence[Mapping[str, torch.Tensor]], *, where: str = "ExampleEvaluator") -> Scorer:
        """Refuses batches without proper labels; returns the scorer that knows these labels.

        Raises:
            InvalidSettingError: Labels are missing, malformed or out of range.
        """
        for number, batch in enumerate(batches):
            problem = self._problem(batch)
            if problem is not None:
                raise InvalidSettingError(f"{where}: batch {number}: {problem}")
        return self

    def describes(self, scored: str) -> bool:
        """Tells whether these words, perhaps of a scorer that knows the labels, say what this one scores."""
        return scored == self.scored

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns what the model takes: all but the labels."""
        return {name: tensor for name, tensor in batch.items() if name != LABELS}

    def weights(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Returns the weight of each example in the mean, `(batch,)`."""
        return np.ones(len(batch[LABELS]))

    def value(self, answers: Answers, weights: np.ndarray) -> float:
        """Returns the metric of all examples."""
        return weighted_mean(answers.scores, weights) if self.is_mean else self.aggregate(answers.rows)

    def aggregate(self, rows: np.ndarray) -> float:
        """Returns the metric of rows, `(n, num_rows)`, where it is of kind "corpus"."""
        raise NotImplementedError(self.metric)

    @property
    def any_label(self) -> Any:
        """A label that every model takes, for examples without one; None where answers can't be compared without."""
        return None

    def answered(self, rows: np.ndarray) -> np.ndarray | None:
        """Returns what the model answers, `(n, k)`, from rows; None where they hold no such answers."""
        return None

    def likeness(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns what answers, `(n, k)`, score where others are the labels, `(n,)`.

        One minus it is at least what the scores of both differ by, whatever the label.
        """
        return same_answers(answers, others)

    def predictions_of(self, rows: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Returns predictions and references, as functions of metrics take them, from rows, `(n, num_rows)`."""
        raise NotImplementedError(self.metric)

    def predicted(self, margins: np.ndarray) -> np.ndarray:
        """Returns the scores that predicted margins stand for, `(num_examples,)`."""
        return np.clip(margins.astype(np.float64), 0.0, 1.0)

    @abstractmethod
    def _problem(self, batch: Mapping[str, torch.Tensor]) -> str | None:
        """Says what is wrong with the labels of a batch."""

    def answers_of(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Runs a model on a batch, which is on its device, and reads the answers."""
        return self.answers(model(**self.inputs(batch)), batch)

    @abstractmethod
    def answers(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> Answers:
        """Reads the answers from what the model returned.

        Raises:
            UnsupportedModelError: The model returned something else.
        """

    @abstractmethod
    def margins(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the evidence that each answer is right, `(batch,)`, with gradient; more is better."""

    @abstractmethod
    def losses(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the loss of each example, `(batch,)`, with gradient."""


def logits_of(outputs: Any, shape: tuple[int, ...], wanted: str) -> torch.Tensor:
    """Returns the logits of a model's output, float32.

    Raises:
        UnsupportedModelError: They are missing, have another shape, or are not finite.
    """
    logits = getattr(outputs, "logits", None)
    if logits is None or tuple(logits.shape) != shape:
        received = "none" if logits is None else tuple(logits.shape)
        if isinstance(outputs, tuple):
            raise UnsupportedModelError("The model returns a tuple. Set model.config.return_dict = True.")
        raise UnsupportedModelError(
            f"The model must return logits of shape {shape}, received {type(outputs).__name__} with {received}. Use a "
            f"{wanted} model, or a function that measures this one."
        )
    return finite(logits)


def finite(logits: torch.Tensor) -> torch.Tensor:
    """Returns logits in float32.

    Raises:
        UnsupportedModelError: One is NaN or infinite: no comparison with it says which answer is the model's.
    """
    is_finite = logits.isfinite()
    if not is_finite.all():
        raise UnsupportedModelError(
            f"The model must return finite logits, received {int((~is_finite).sum())} logits that are NaN or infinite. "
            "Look for weights that are, or load the model in a precision that holds its values."
        )
    return logits.float()


def label_problem(batch: Mapping[str, torch.Tensor], rule: str, advice: str) -> str:
    """Says which labels were received instead of those of a rule."""
    labels = batch.get(LABELS)
    received = sorted(batch) if labels is None else (tuple(labels.shape), labels.dtype)
    return f"labels must be {rule}, received {received}. {advice}"


def range_problem(wrong: torch.Tensor, rule: str, advice: str) -> str | None:
    """Says which labels are out of range, where any is."""
    return f"labels must be {rule}, received {sorted(set(wrong.tolist()))[:5]}. {advice}" if wrong.numel() else None
