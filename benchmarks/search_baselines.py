"""Other ways to search, with the arguments of A*: what it has to beat; and the gate gradients that orders come from.

Each search takes a `SearchProblem` and the settings of A*, of which the constraint, the objective, the budget and the
seed apply, and returns a `SearchResult`. A journal makes each of them resumable, as it does A*.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import evaluating
from hf_headprune.search.astar import opened_ledger
from hf_headprune.search.claims import result_of
from hf_headprune.search.ledger import BudgetSpent
from hf_headprune.search.problem import Question, units_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import nn

    from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
    from hf_headprune.search.ledger import Evaluated, Ledger
    from hf_headprune.search.problem import OnProgress, SearchProblem, SearchResult
    from hf_headprune.search.settings import AStarSearch
    from hf_headprune.search.units import Unit

BEAM_WIDTH = 4


def greedy(
    problem: SearchProblem,
    settings: AStarSearch,
    *,
    journal: Path | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """Removes one unit at a time, the one whose removal leaves the highest metric, until none is feasible.

    Of equal metrics the lowest unit goes. With a problem that can be probed, siblings race: one that can't reach the
    best so far is dropped as soon as that is certain; the course is that of measuring each to the end.
    """
    return _beam(problem, settings, 1, journal, on_progress)


def beam(
    problem: SearchProblem,
    settings: AStarSearch,
    *,
    journal: Path | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """Like `greedy`, with the `BEAM_WIDTH` best sets of each size instead of one."""
    return _beam(problem, settings, BEAM_WIDTH, journal, on_progress)


def in_order(
    problem: SearchProblem,
    settings: AStarSearch,
    *,
    journal: Path | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """Removes units in the order of `problem.order` as far as the constraint holds.

    A bisection finds a first answer; then deeper sets of the same order are measured while the budget lasts, since
    more removed may be feasible where less is not.

    Raises:
        InvalidSettingError: The problem has no order.
    """
    if problem.order is None:
        raise InvalidSettingError("in_order: the problem must have an order, received None. List its units.")
    ledger = opened_ledger(problem, settings, journal, on_progress, algorithm="in_order")
    with suppress(BudgetSpent):
        _follow(ledger, problem.order)
    return result_of(ledger)


def at_random(
    problem: SearchProblem,
    settings: AStarSearch,
    *,
    journal: Path | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """Removes units in a random order as far as the constraint holds, and starts anew while the budget lasts.

    Without a limit on evaluations it follows one order.
    """
    ledger = opened_ledger(problem, settings, journal, on_progress, algorithm="at_random")
    rng = np.random.default_rng(settings.seed)
    with suppress(BudgetSpent):
        for _ in range(settings.max_evaluations or 1):  # an order that meets only known sets costs no evaluation
            _follow(ledger, rng.permutation(problem.num_units).tolist(), bisect_only=ledger.remaining is not None)
    return result_of(ledger)


def loss_effects(model: nn.Module, evaluator: ExampleEvaluator, units: Sequence[Unit]) -> np.ndarray:
    """Estimates by how much the removal of each unit raises the loss of each example, from one backward pass.

    Args:
        model: Whole.
        evaluator: Of the model; its examples are used.
        units: Heads or FFN units that are removed together.

    Returns:
        Minus the gradient with respect to the gates of a unit, `(num_units, num_examples)`.
    """
    gates: dict[str, torch.Tensor] = {}

    def gated(name: str, width: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]  # (batch, length, units * width)
        gates[name] = torch.ones(len(hidden), hidden.shape[-1] // width, device=hidden.device, requires_grad=True)
        return (hidden * gates[name].repeat_interleave(width, dim=1)[:, None], *args[1:])

    base, columns = base_model(model), []
    sites = [site for site in anatomy_of(model).sites if any(part.site == site.name for unit in units for part in unit)]
    with ExitStack() as stack, evaluating(model), torch.enable_grad():
        for site in sites:
            hook = partial(gated, site.name, site.unit_width)
            stack.callback(base.get_submodule(site.output).register_forward_pre_hook(hook).remove)
        for batch in evaluator._batches:
            losses = evaluator.scorer.losses(*evaluator._run(batch)).sum()  # examples do not influence one another
            found = torch.autograd.grad(losses, [gates[site.name] for site in sites])
            slopes = {site.name: slope.T.cpu() for site, slope in zip(sites, found, strict=True)}  # (units, batch)
            rows = [sum(slopes[part.site][list(part.indices)].sum(dim=0) for part in unit) for unit in units]
            columns.append(-torch.stack(rows).numpy())  # type: ignore[arg-type]
    return np.concatenate(columns, axis=1)


def _beam(
    problem: SearchProblem,
    settings: AStarSearch,
    width: int,
    journal: Path | None,
    on_progress: OnProgress | None,
) -> SearchResult:
    ledger = opened_ledger(problem, settings, journal, on_progress, algorithm=f"beam of {width}")
    level = [ledger.reference]
    with suppress(BudgetSpent):
        while level:
            level = _best_children(ledger, level, width)
    return result_of(ledger)


def _best_children(ledger: Ledger, level: list[Evaluated], width: int) -> list[Evaluated]:
    """Returns the feasible sets with one more unit removed that have the highest metrics."""
    best: list[Evaluated] = []
    parents = {mask: node for node in reversed(level) for mask in _larger(ledger, node)}
    for mask in sorted(parents):
        floor = best[-1].measurement.metric if len(best) == width else ledger.threshold
        child = ledger.evaluate(mask, _race(ledger, parents[mask], floor))
        if child.measurement.kind == "exact" and child.feasible:
            best = sorted([*best, child], key=lambda node: (-node.measurement.metric, node.mask))[:width]
    for mask in parents.keys() - {node.mask for node in best}:
        ledger.forget(mask)
    return best


def _larger(ledger: Ledger, node: Evaluated) -> list[int]:
    return [node.mask | 1 << unit for unit in units_of(ledger.gains.everything & ~node.mask)]


def _race(ledger: Ledger, parent: Evaluated, floor: float) -> Question | None:
    """Asks for the exact metric of a child, unless it is below the floor; hard examples of the parent go first."""
    if parent.measurement.margins is None:
        return None
    return Question(parent.evidence, floor, tentative=False)


def _follow(ledger: Ledger, order: Iterable[int], *, bisect_only: bool = False) -> None:
    mask, path = ledger.reference.mask, []
    for unit in order:
        if not mask >> unit & 1:
            mask |= 1 << unit
            path.append(mask)
    low, high = -1, len(path)
    while high - low > 1:
        middle = (low + high) // 2
        if _evaluate_exactly(ledger, path[middle]):
            low = middle
        else:
            high = middle
    for deeper in [] if bisect_only else path[low + 1 :]:
        _evaluate_exactly(ledger, deeper)


def _evaluate_exactly(ledger: Ledger, mask: int) -> bool:
    """Tells whether a set is feasible; one that is not need not be known more exactly than that."""
    feasible = ledger.evaluate(mask, _race(ledger, ledger.reference, ledger.threshold)).feasible
    ledger.forget(mask)
    return feasible
