"""Which scorer fits a model: by its task and a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError, UnsupportedModelError, shown
from hf_headprune.tasks.classification import ClassScorer
from hf_headprune.tasks.embeddings import SIMILARITY, PairScorer, SimilarityScorer
from hf_headprune.tasks.examples import embeds_texts, is_a, is_sequence_classifier, predicts_next_token
from hf_headprune.tasks.functions import scorer_by_function
from hf_headprune.tasks.generation import CHRF, ChrfScorer
from hf_headprune.tasks.likelihood import CausalScorer, LikelihoodScorer
from hf_headprune.tasks.metrics import CLASSIFICATION_METRICS, REGRESSION_METRICS, is_prediction_metric
from hf_headprune.tasks.multi_label import MultiLabelScorer
from hf_headprune.tasks.question_answering import SpanScorer
from hf_headprune.tasks.regression import CLOSENESS, SQUARED, RegressionScorer
from hf_headprune.tasks.scorer import Scorer
from hf_headprune.tasks.token_classification import TokenScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

Task = tuple[tuple[str, ...], "Callable[[Any, str], Scorer]"]  # metrics, the default first; what scores them
TWO_CLASSES: Task = (tuple(CLASSIFICATION_METRICS), lambda model, metric: ClassScorer(2, metric))
CLASSES: Task = (
    tuple(name for name in CLASSIFICATION_METRICS if name != "f1"),  # that of class 1 of two
    lambda model, metric: ClassScorer(model.config.num_labels, metric),
)
REGRESSION: Task = ((CLOSENESS, SQUARED, *REGRESSION_METRICS), lambda model, metric: RegressionScorer(metric))
SEVERAL_LABELS: Task = (("jaccard",), lambda model, metric: MultiLabelScorer(model.config.num_labels))
TOKENS: Task = (("accuracy",), lambda model, metric: TokenScorer(model.config.num_labels))
SPANS: Task = (("f1", "exact_match"), lambda model, metric: SpanScorer(metric))  # type: ignore[arg-type]
REFERENCES: Task = (
    ("likelihood", CHRF),
    lambda model, metric: (ChrfScorer if metric == CHRF else LikelihoodScorer)(_target_vocabulary(model.config)),
)
EMBEDDINGS: Task = (
    (SIMILARITY, *REGRESSION_METRICS),
    lambda model, metric: SimilarityScorer() if metric == SIMILARITY else PairScorer(metric),
)
TEXTS: Task = (("likelihood",), lambda model, metric: CausalScorer(model.config.vocab_size))


def scorer_for(
    model: nn.Module, metric: Any = None, *, where: str = "ExampleEvaluator", tokenizer: Any = None
) -> Scorer:
    """Returns what scores the examples of a model.

    Args:
        model: A classifier of sequences or images (one class, several labels, or a number) or of tokens, a question
            answering, a sequence-to-sequence or a causal language model, or a model of texts without a head, which
            embeds them.
        metric: A name: "accuracy", "macro_f1", "f1" (of two classes) or "matthews_correlation" of classes; "closeness",
            "mse", "pearson" or "spearman" of numbers; "jaccard" of several labels; "accuracy" of tokens; "f1" or
            "exact_match" of spans; "likelihood" of references or texts; "chrf" of generated texts, by their references;
            "similarity" of embeddings to those of the dense model, or "spearman" and "pearson" of pairs of texts with a
            number. None takes the first of the task. Or a function `(predictions, references) -> number`, or a module
            of the package `evaluate`; or a `Scorer`, returned as it is but for the tokenizer.
        where: Name of the caller, for errors.
        tokenizer: Of the model, for what it generates.

    Raises:
        InvalidSettingError: The task has no such metric.
        UnsupportedModelError: The model has none of these tasks.
    """
    if isinstance(metric, Scorer):
        return metric.with_tokenizer(tokenizer)
    task = _task_of(model)
    if task is None:
        raise UnsupportedModelError(
            f"{where}: {type(model).__name__} is no classifier of sequences, tokens or images, no question answering, "
            "no embedding and no language model whose examples can be scored. Pass the Transformers model itself "
            "rather than a wrapper, or a function that measures it."
        )
    metrics, score = task
    if is_prediction_metric(metric):
        return scorer_by_function(score(model, metrics[0]), metric, where=where)
    if metric is not None and not (isinstance(metric, str) and metric in metrics):
        raise InvalidSettingError(
            f"{where}: metric must be one of {', '.join(metrics)} for a {type(model).__name__}, received "
            f"{shown(metric)}. {_advice(metric, metrics)}"
        )
    return score(model, metric or metrics[0]).with_tokenizer(tokenizer)


def metrics_of(model: Any) -> tuple[str, ...]:
    """Returns what examples of a pretrained model can be scored by, the default first; nothing for any other task."""
    task = _task_of(model)
    return () if task is None else task[0]


def _task_of(model: Any) -> Task | None:
    for name, task in (("ForQuestionAnswering", SPANS), ("ForTokenClassification", TOKENS)):
        if is_a(model, name):
            return task
    if is_sequence_classifier(model) or is_a(model, "ForImageClassification"):
        return _task_of_sequences(model.config)
    if predicts_next_token(model):
        return TEXTS
    if embeds_texts(model):
        return EMBEDDINGS
    return REFERENCES if getattr(model, "can_generate", bool)() and model.config.is_encoder_decoder else None


def _task_of_sequences(config: Any) -> Task | None:
    if config.problem_type == "multi_label_classification":
        return SEVERAL_LABELS
    if config.num_labels == 1:
        return REGRESSION
    if config.problem_type not in (None, "single_label_classification"):
        return None
    return TWO_CLASSES if config.num_labels == 2 else CLASSES  # noqa: PLR2004


def _advice(metric: Any, metrics: tuple[str, ...]) -> str:
    if isinstance(metric, str) and metric == "perplexity" and "likelihood" in metrics:
        return "The likelihood of an example is 1 / perplexity: pass 'likelihood'."
    return "Any other can be a function of predictions and references, or a module of the package evaluate."


def _target_vocabulary(config: Any) -> int:
    return getattr(config, "decoder_vocab_size", None) or config.vocab_size
