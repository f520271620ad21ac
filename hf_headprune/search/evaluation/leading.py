"""Lets the first process of a run search, and all of them measure what it asks about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hf_headprune._distributed import from_first, number_of_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.problem import Measurement, Question
    from hf_headprune.search.units import Unit

Result = TypeVar("Result")
_FOUND, _FAILED = "found", "failed"


def lead_or_follow(evaluator: Any, search: Callable[[Any], Result]) -> Result:
    """Runs a search in the first process alone; whatever it asks of its evaluator, it asks of that of every process.

    So the processes measure the same plans in the same order, whatever rounding or a file does to one of them.

    Args:
        evaluator: An `ExampleEvaluator` or a `MetricEvaluator`, alike in every process.
        search: Function of the evaluator.

    Returns:
        What the first process found, in every process.

    Raises:
        RuntimeError: The first process failed.
    """
    if number_of_processes() == 1:
        return search(evaluator)
    if torch.distributed.get_rank() == 0:
        try:
            result = search((_LeadingExamples if hasattr(evaluator, "probe") else _Leading)(evaluator))
        except Exception as error:
            _tell(_FAILED, repr(error))
            raise
        _tell(_FOUND, result)
        return result
    while True:
        name, args, settings = from_first(None)
        if name == _FOUND:
            return args[0]
        if name == _FAILED:
            raise RuntimeError(f"The first process failed while it searched: {args[0]}")
        try:
            getattr(evaluator, name)(*args, **settings)
        except Exception:
            from_first(None)  # what one process raises while it shares work, the first one raises, too, and says so
            raise


def _tell(name: str, *args: Any, **settings: Any) -> None:
    from_first((name, args, settings))


class _Leading:
    """What the first process searches with: every call is one of all processes."""

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator

    def __call__(self, plan: PruningPlan) -> Measurement:
        return self._all("__call__", plan)

    def use_refit(self, start: PruningPlan, *, ffn: bool = False) -> Refit:
        return self._all("use_refit", start, ffn=ffn)

    def _all(self, name: str, *args: Any, **settings: Any) -> Any:
        _tell(name, *args, **settings)
        return getattr(self._evaluator, name)(*args, **settings)


class _LeadingExamples(_Leading):
    def probe(self, plan: PruningPlan, question: Question[PruningPlan]) -> Measurement:
        return self._all("probe", plan, question)

    def unit_effects(self, plan: PruningPlan, units: Sequence[Unit]) -> np.ndarray:
        return self._evaluator.unit_effects(plan, units)  # shares nothing

    def ffn_importance(self, plan: PruningPlan) -> dict[str, np.ndarray]:
        return self._evaluator.ffn_importance(plan)
