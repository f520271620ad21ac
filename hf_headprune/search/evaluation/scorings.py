"""Which scoring fits a model: by its task and the name of a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError
from hf_headprune.search.evaluation.classes import ClassScoring
from hf_headprune.search.evaluation.likelihoods import LikelihoodScoring
from hf_headprune.search.evaluation.metrics import CLASSIFICATION_METRICS
from hf_headprune.search.evaluation.spans import SpanScoring
from hf_headprune.search.evaluation.tokens import TokenScoring

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from hf_headprune.search.evaluation.answers import Scoring

Task = tuple[tuple[str, ...], "Callable[[Any, str], Scoring]"]  # metrics, the default first; what scores them
CLASSIFICATION: Task = (tuple(CLASSIFICATION_METRICS), ClassScoring.of)
SPANS: Task = (("f1", "exact_match"), lambda model, metric: SpanScoring(metric))  # type: ignore[arg-type]
TOKENS: Task = (("accuracy",), lambda model, metric: TokenScoring(model.config.num_labels))
SEQUENCES: Task = (("likelihood",), lambda model, metric: LikelihoodScoring(model.config.vocab_size))


def scoring_for(model: nn.Module, metric: str | None = None, *, where: str = "ExampleEvaluator") -> Scoring:
    """Returns what scores the examples of a model.

    Args:
        model: A classifier of sequences or tokens, a question answering or a sequence-to-sequence model.
        metric: "accuracy", "macro_f1" or "matthews_correlation" of classes; "accuracy" of tokens; "f1" or
            "exact_match" of spans; "likelihood" of references. None takes the first of its task.
        where: Name of the caller, for errors.

    Raises:
        InvalidSettingError: The task has no such metric.
        UnsupportedModelError: The model has none of these tasks.
    """
    metrics, score = _task_of(model)
    if metric is not None and metric not in metrics:
        raise InvalidSettingError(
            f"{where}: metric must be one of {', '.join(metrics)} for a {type(model).__name__}, received {metric!r}. "
            "For any other use MetricEvaluator with a function that measures the model."
        )
    return score(model, metric or metrics[0])


def metrics_of(model: Any) -> tuple[str, ...]:
    """Returns what examples of a pretrained model can be scored by, the default first; nothing for any other task."""
    metrics, score = task = _task_of(model)
    if task is SEQUENCES:
        return metrics if model.can_generate() else ()
    return metrics if score is not ClassScoring.of or classifies(model) else ()


def classifies(model: Any) -> bool:
    """Tells whether a pretrained model gives each sequence one class."""
    is_classifier, config = "ForSequenceClassification" in type(model).__name__, model.config
    return is_classifier and config.num_labels > 1 and config.problem_type in (None, "single_label_classification")


def _task_of(model: nn.Module) -> Task:
    kind = type(model).__name__
    if "QuestionAnswering" in kind:
        return SPANS
    if "TokenClassification" in kind:
        return TOKENS
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and "Classification" not in kind:
        return SEQUENCES
    return CLASSIFICATION
