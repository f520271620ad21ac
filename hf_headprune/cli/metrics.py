"""The metric that is named: a module of `evaluate`, else the library's own of that name, else scikit-learn's."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.examples import is_sequence_classifier
from hf_headprune.tasks.metrics import PredictionMetric
from hf_headprune.tasks.registry import metrics_of

OURS = {"pearsonr": "pearson", "spearmanr": "spearman"}  # by the names that `evaluate` has for them


def metric_named(name: str | None, model: Any) -> tuple[Any, str]:
    """Returns what `search_plan` takes as metric, and a sentence that says where it is from.

    Args:
        name: Of a metric, or path of an `evaluate` module on disk; None for the first of the task.
        model: Whose task it is of.

    Raises:
        InvalidSettingError: A module on disk can't be loaded or computed, or nothing has a metric of that name.
    """
    own = metrics_of(model)
    has_classes = is_sequence_classifier(model) and not _has_several(model)
    if name is None or (name in own and not has_classes):  # predictions that no module can read
        return name, ""
    try:
        module = import_module("evaluate").load(name)
    except (ImportError, OSError, ValueError) as error:
        reason = _first_line(error)
        if Path(name).exists():
            raise InvalidSettingError(f"--metric {name}: evaluate can't load this module: {reason}.") from error
        ours = OURS.get(name, name)
        if ours in own:
            return ours, f"Metric: the library's own {ours}; evaluate can't load it ({reason})."
        return _of_scikit_learn(name, own, reason, model)
    return _tried(name, module, model), f"Metric: {name}, from evaluate."


def _of_scikit_learn(name: str, own: tuple[str, ...], reason: str, model: Any) -> tuple[Any, str]:
    try:
        function = getattr(import_module("sklearn.metrics"), f"{name}_score", None)
    except ImportError:
        function = None
    if function is None:
        raise InvalidSettingError(
            f"--metric {name}: evaluate can't load it ({reason}), and neither the library nor scikit-learn has it. "
            f"Pass one of {', '.join(own)}, or the path of an evaluate module on disk."
        )
    return _tried(name, function, model), f"Metric: {name}, from scikit-learn; evaluate can't load it ({reason})."


def _tried(name: str, metric: Any, model: Any) -> Any:
    """Returns a metric that can be computed of what the model predicts.

    Raises:
        InvalidSettingError: It can't.
    """
    size = model.config.num_labels
    predicted: list[Any] = list(range(max(2, size)))
    words = f"the classes 0 to {predicted[-1]}"
    if _has_several(model):
        predicted, words = [[0] * size, [1] * size], "lists of 0 and 1, one for each label"
    try:
        PredictionMetric(metric)(predicted, predicted)
    except Exception as error:
        raise InvalidSettingError(
            f"--metric {name}: it can't be computed of {words}: {_first_line(error)}. Pass one of "
            f"{', '.join(metrics_of(model))}."
        ) from error
    return metric


def _has_several(model: Any) -> bool:
    return bool(model.config.problem_type == "multi_label_classification")


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200].rstrip(".")
