"""Which scoring fits a model: by its task and the name of a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.tasks.classification import ClassScoring, gives_one_class
from hf_headprune.tasks.metrics import CLASSIFICATION_METRICS
from hf_headprune.tasks.question_answering import SpanScoring
from hf_headprune.tasks.seq2seq import LikelihoodScoring
from hf_headprune.tasks.token_classification import TokenScoring

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from hf_headprune.tasks.answers import Scoring

Task = tuple[tuple[str, ...], "Callable[[Any, str], Scoring]"]  # metrics, the default first; what scores them
CLASSIFICATION: Task = (tuple(CLASSIFICATION_METRICS), ClassScoring.of)
SPANS: Task = (("f1", "exact_match"), lambda model, metric: SpanScoring(metric))  # type: ignore[arg-type]
TOKENS: Task = (("accuracy",), lambda model, metric: TokenScoring(model.config.num_labels))
SEQUENCES: Task = (("likelihood",), lambda model, metric: LikelihoodScoring(_target_vocabulary(model.config)))


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
    task = _task_of(model)
    if task is None:
        raise UnsupportedModelError(
            f"{where}: {type(model).__name__} is no classifier of sequences or tokens, no question answering and no "
            "sequence-to-sequence model. Pass the Transformers model itself rather than a wrapper, or a function that "
            "measures it: search_plan(model, None, function)."
        )
    metrics, score = task
    if metric is not None and metric not in metrics:
        raise InvalidSettingError(
            f"{where}: metric must be one of {', '.join(metrics)} for a {type(model).__name__}, received {metric!r}. "
            "For any other use MetricEvaluator with a function that measures the model."
        )
    return score(model, metric or metrics[0])


def metrics_of(model: Any) -> tuple[str, ...]:
    """Returns what examples of a pretrained model can be scored by, the default first; nothing for any other task."""
    task = _task_of(model)
    return () if task is None or (task is CLASSIFICATION and not classifies(model)) else task[0]


def classifies(model: Any) -> bool:
    """Tells whether a pretrained model gives each sequence one class."""
    return _task_of(model) is CLASSIFICATION and gives_one_class(model.config)


def _task_of(model: Any) -> Task | None:
    for name, task in (
        ("ForQuestionAnswering", SPANS),
        ("ForTokenClassification", TOKENS),
        ("ForSequenceClassification", CLASSIFICATION),
    ):
        if any(name in kind.__name__ for kind in type(model).__mro__):
            return task
    generates = getattr(model, "can_generate", bool)()
    return SEQUENCES if generates and model.config.is_encoder_decoder else None


def _target_vocabulary(config: Any) -> int:
    return getattr(config, "decoder_vocab_size", None) or config.vocab_size
