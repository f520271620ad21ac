"""Which metric decides after training, and whose: ours of single examples, or a number of the Trainer's evaluation.

The user's number comes first. What an evaluation returns under the name of the metric is compared with ours, once after
training on the same examples; where they differ, they are two metrics of one name, and the Trainer's decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from hf_headprune.callback.evaluation import evaluate, first_batch
from hf_headprune.callback.trainer_compat import evaluation_sets, has_own_numbers, is_stream, tensors
from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.examples import embeds_texts
from hf_headprune.tasks.generation import CHRF
from hf_headprune.tasks.registry import metrics_of

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.search.settings import AStarSearch

ERRORS = frozenset(
    ("error", "errors", "mse", "rmse", "mae", "mape", "perplexity", "ppl", "wer", "cer", "ter", "nll", "bpc", "eer")
)
TURNED_BY_ROUNDING = 1.5  # examples whose answer may turn where batches are padded otherwise
CHANGED_BY_ROUNDING, CHANGED_BY_HALF_PRECISION = 0.002, 0.005  # of a metric, at most


# What an evaluation has returned, where only that tells what decides.
_NUMBERS: WeakKeyDictionary[Trainer, frozenset[str]] = WeakKeyDictionary()


class DecidingMetric(NamedTuple):
    """What plans are compared by after training.

    Attributes:
        name: Without the prefix of an evaluation.
        is_scored: Whether it is one of the model's task, by which the examples of `eval_dataset` can be scored.
    """

    name: str
    is_scored: bool


def metric_of(trainer: Trainer, metric: str | None) -> DecidingMetric:
    """Returns the metric that is named, that of `metric_for_best_model` or of an evaluator, the task's, or the loss.

    Args:
        trainer: Of the run.
        metric: Of the search; None where it names none.
    """
    name = (metric or trainer.args.metric_for_best_model or _of_evaluator(trainer) or "loss").removeprefix("eval_")
    known = metrics_of(trainer.model)  # none of a model in a wrapper, whose batches are its own
    problem = problem_with_examples(trainer) if known else None
    if known and metric is None and name == "loss" and not (problem and _loss_decides(trainer, known[0])):
        name = known[0]
    is_theirs = name == CHRF and has_own_numbers(trainer)  # of that name, there are several
    return DecidingMetric(name, name in known and not is_theirs and problem is None)


def _loss_decides(trainer: Trainer, name: str) -> bool:
    """Tells whether the loss stands for a metric by which the examples can't be scored: no evaluation returns it."""
    if embeds_texts(trainer.model):
        return True
    has_examples = any(is_stream(dataset) or len(dataset) for dataset in evaluation_sets(trainer))
    if not has_examples or isinstance(trainer.eval_dataset, dict) or not has_own_numbers(trainer):
        return False  # it is asked for such examples
    if trainer not in _NUMBERS and trainer.callback_handler.train_dataloader is not None:  # else it can't evaluate yet
        _NUMBERS[trainer] = frozenset(evaluate(trainer))
    returned = _NUMBERS.get(trainer, {name})
    return name not in returned and "loss" in returned


def _of_evaluator(trainer: Trainer) -> str | None:
    """Returns the metric that an evaluator of sentence-transformers names, or None; some name it once they have run."""
    evaluator: Any = getattr(trainer, "evaluator", None)
    if evaluator is None:
        return None
    if getattr(evaluator, "primary_metric", None) is None:
        evaluate(trainer)
    elif getattr(evaluator, "name", None) and hasattr(evaluator, "prefix_name_to_metrics"):
        evaluator.prefix_name_to_metrics({}, evaluator.name)  # which its first evaluation would do
    return getattr(evaluator, "primary_metric", None) or "evaluator"


def problem_with_examples(trainer: Trainer) -> str | None:
    """Says what keeps the examples of `eval_dataset` from being scored one by one; None where nothing does."""
    dataset: Any = trainer.eval_dataset
    if dataset is None:
        return "there is none"
    if isinstance(dataset, dict):
        return f"it is a dict of {len(dataset)} data sets"
    if is_stream(dataset):
        return f"it is a {type(dataset).__name__} without a length or an index"
    if len(dataset) == 0:
        return "it is empty"
    problem = _problem_with_example(trainer, dataset[0])
    has_examples = bool(evaluation_sets(trainer))  # else an evaluator of sentence-transformers measures
    if problem is None and has_examples and _joins_examples(trainer, min(len(dataset), 2)):
        problem = "the data collator joins its examples in one row, as where texts are packed"
    return problem


def _joins_examples(trainer: Trainer, count: int) -> bool:
    """Tells whether the first examples become fewer rows than they are."""
    first = next(tensors(first_batch(trainer, count)), None)
    return first is not None and bool(first[1].ndim) and len(first[1]) < count


def _problem_with_example(trainer: Trainer, example: Any) -> str | None:
    if embeds_texts(trainer.model):
        return _problem_with_texts(first_batch(trainer))
    labels = {*trainer.label_names, "label", "label_ids"}
    if isinstance(example, Mapping) and not labels & (example.keys() | first_batch(trainer).keys()):
        return f"its examples hold {sorted(example)}, but none of {sorted(labels)}"
    return None


def _problem_with_texts(batch: Mapping[str, Any]) -> str | None:
    """Says what keeps a batch from being texts that are compared by their embeddings."""
    found = batch.get("labels", batch.get("label"))
    if "input_ids" not in batch:
        return f"its batches hold {sorted(batch)}, no 'input_ids'"
    is_known = found is None or found.is_floating_point() or batch["input_ids"].ndim > 2  # noqa: PLR2004
    return None if is_known else "its labels are those of a loss"


def require_search_data(trainer: Trainer, search: AStarSearch | None) -> None:
    """Refuses a choice after training that could measure nothing.

    Labels and one data set are asked for only where examples are scored one by one; whatever the Trainer's own
    evaluation can read will do where it returns the metric.

    Raises:
        InvalidSettingError: `eval_dataset` is missing or empty; or nothing but single examples could be measured, and
            it is a stream, a mapping of several, or unlabelled.
    """
    problem = problem_with_examples(trainer)
    if problem is None or (embeds_texts(trainer.model) and trainer.eval_dataset):
        return
    name, dataset = metric_of(trainer, None if search is None else search.metric).name, trainer.eval_dataset
    is_ours = name in metrics_of(trainer.model)
    if isinstance(dataset, dict):
        is_measurable = any(name.startswith(f"{key}_") for key in dataset)
    elif dataset is None or (not is_stream(dataset) and len(dataset) == 0):
        is_measurable = False
    else:
        is_measurable = has_own_numbers(trainer) or not is_ours  # an evaluation before step 1 tells
    if is_measurable:
        return
    advice = ""
    if isinstance(dataset, dict) and dataset:
        advice = f", name the metric of one of them (metric_for_best_model={f'{next(iter(dataset))}_{name}'!r})"
    raise InvalidSettingError(
        f"HeadPruneCallback: after training, smaller models are compared by {name} on eval_dataset, which must be one "
        f"non-empty data set with labels: {problem}. Pass Trainer(eval_dataset=...){advice}, or let a size decide, "
        "which needs no examples: HeadPruneCallback(density=0.5)."
    )


def higher_is_better(trainer: Trainer, name: str, search: AStarSearch) -> bool:
    """Tells whether a metric of the Trainer's is better when it is higher.

    Raises:
        InvalidSettingError: It is called like an error, and nothing says so: that it got worse would pass for a gain.
    """
    if name == _of_evaluator(trainer):
        return bool(getattr(trainer.evaluator, "greater_is_better", True))
    is_best_metric = name == (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    said = trainer.args.greater_is_better if is_best_metric else None
    if search.tuning.greater_is_better is not None:
        return search.tuning.greater_is_better
    higher = not name.endswith("loss") if said is None else said
    if higher and ERRORS & set(re.split(r"[^a-z0-9]+", name.lower())):
        raise InvalidSettingError(
            f"The metric {name!r}: by its name it is better when it is lower, but nothing says so"
            f"{', TrainingArguments.greater_is_better is True' if said else ''}. Pass TrainingArguments("
            f"metric_for_best_model={name!r}, greater_is_better=False); beside a search SearchTuning(greater_is_better="
            "False), or True."
        )
    return higher


def agree(trainer: Trainer, theirs: float, ours: float) -> bool:
    """Tells whether two numbers are the same metric of the same examples, up to rounding."""
    allowed = min(TURNED_BY_ROUNDING / max(len(trainer.eval_dataset), 1), CHANGED_BY_ROUNDING)
    is_half = next(trainer.model.parameters()).dtype in (torch.float16, torch.bfloat16)
    if is_half or trainer.args.bf16 or trainer.args.fp16:
        allowed = CHANGED_BY_HALF_PRECISION
    return abs(theirs - ours) <= allowed
