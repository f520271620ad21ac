"""Lets the first process of a run search, and all of them measure what it asks about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hf_headprune._distributed import from_first, number_of_processes
from hf_headprune.search.evaluation.base import Evaluator

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.problem import Measurement, Question

Result = TypeVar("Result")
FOUND, FAILED = "found", "failed"
# What the first process may ask of all: the messages that it broadcasts, and what each process does on them.
REQUESTS: dict[str, Callable[..., Any]] = {
    "measure": lambda evaluator, plan: evaluator(plan),
    "probe": lambda evaluator, plan, question: evaluator.probe(plan, question),
    "use_refit": lambda evaluator, start, ffn, apply: evaluator.use_refit(start, ffn=ffn, apply=apply),
}


def lead_or_follow(evaluator: Evaluator, search: Callable[[Evaluator], Result]) -> Result:
    """Runs a search in the first process alone; whatever it asks of its evaluator, it asks of that of every process.

    So the processes measure the same plans in the same order, whatever rounding or a file does to one of them.

    Args:
        evaluator: Alike in every process.
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
            result = search(_Leading(evaluator))
        except Exception as error:
            from_first((FAILED, (repr(error),)))
            raise
        from_first((FOUND, (result,)))
        return result
    while True:
        name, args = from_first(None)
        if name == FOUND:
            return args[0]
        if name == FAILED:
            raise RuntimeError(f"The first process failed while it searched: {args[0]}")
        try:
            REQUESTS[name](evaluator, *args)
        except Exception:
            from_first(None)  # what one process raises while it shares work, the first one raises, too, and says so
            raise


class _Leading(Evaluator):
    """What the first process searches with: every measurement is one of all processes."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.facts = evaluator.facts

    def __call__(self, plan: PruningPlan) -> Measurement:
        return self._all("measure", plan)

    def probe(self, plan: PruningPlan, question: Question) -> Measurement:
        return self._all("probe", plan, question)

    def use_refit(self, start: PruningPlan, *, ffn: bool = False, apply: bool = True) -> Refit | None:
        return self._all("use_refit", start, ffn, apply)

    def _all(self, name: str, *args: Any) -> Any:
        from_first((name, args))
        return REQUESTS[name](self._evaluator, *args)
