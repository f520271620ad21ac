"""The metric that is named: a module of `evaluate` where it can be loaded, else the library's own of that name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from hf_headprune.errors import InvalidSettingError
from hf_headprune.tasks.registry import metrics_of


def metric_named(name: str | None, model: Any) -> tuple[Any, str]:
    """Returns what `search_plan` takes as metric, and a sentence that says where it is from.

    Args:
        name: Of a metric, or path of an `evaluate` module on disk; None for the first of the task.
        model: Whose task it is of.

    Raises:
        InvalidSettingError: A module on disk can't be loaded, or nothing has a metric of that name.
    """
    own = metrics_of(model)
    if name is None or (name in own and "ForQuestionAnswering" in type(model).__name__):  # of spans, not of classes
        return name, ""
    try:
        module = import_module("evaluate").load(name)
    except (ImportError, OSError, ValueError) as error:
        reason = (str(error).strip().partition("\n")[0] or type(error).__name__)[:200].rstrip(".")
        if Path(name).exists():
            raise InvalidSettingError(f"--metric {name}: evaluate can't load this module: {reason}.") from error
        if name not in own:
            raise InvalidSettingError(
                f"--metric {name}: evaluate can't load it ({reason}), and the library has {', '.join(own)} for this "
                "task. Pass one of these, or the path of an evaluate module on disk."
            ) from error
        return name, f"Metric: the library's own {name}; evaluate can't load it ({reason})."
    return module, f"Metric: {name}, from evaluate."
