"""The default: nested plans in the order of removal costs, tested on labelled examples, the largest first.

The order comes from training examples, before any of the examples that test it is looked at. So they test the plans one
after the other at the full level, until the first that fails (fixed-sequence testing): no example is held back, and the
statement about the last plan that passes holds on unseen data.

Source: Angelopoulos et al. 2021, arXiv 2110.01052 (Learn then Test, section 4); for the costs see
`hf_headprune.refit.removal_costs`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune._distributed import from_first
from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import masked
from hf_headprune.pipeline.holdout import Chosen, Holdout
from hf_headprune.pipeline.result import MeasuredPlan
from hf_headprune.pipeline.run import Found, reference_in_words
from hf_headprune.plan import RefittedPlan
from hf_headprune.publish.measurements import Effort, MetricChange
from hf_headprune.refit.choice import plans_at
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from torch import nn

    from hf_headprune.guarantee.scored import ScoredSplit
    from hf_headprune.pipeline.run import MetricSource
    from hf_headprune.plan import PruningPlan

# Shares of the attention and FFN weights that are kept; fixed before any example is looked at.
DENSITIES = (0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
CALIBRATION = 2048  # training examples that costs and refit are computed from
ROUND_OFF = 1e-9


@dataclass(frozen=True)
class Decision:
    """Which of the plans is pruned, and what was measured.

    Attributes:
        chosen: The last plan that passed.
        measured: Plans with their metrics, higher is better, and whether they passed; the reference first.
        metric: Before and after, where no holdout measured it.
    """

    chosen: Chosen
    measured: list[tuple[PruningPlan, float, bool]]
    metric: MetricChange | None = None


def walk_down(
    model: nn.Module,
    before: PruningPlan,
    losses: Iterable[torch.Tensor],
    decide: Callable[[list[RefittedPlan]], Decision],
    *,
    uniform: bool = False,
    over_processes: bool = False,
) -> Found:
    """Finds the smallest plan of the order of removal costs that is allowed.

    Args:
        model: Trained; left unchanged.
        before: Units that are open in it.
        losses: Of training examples, summed over each batch; each is computed when it is asked for.
        decide: Tests plans, the largest first; see `by_test` and `by_metric`.
        uniform: Whether all layers keep equally many units.
        over_processes: Whether all processes of a distributed run do so, each with losses of its own.
    """
    started = time.perf_counter()
    order = SecondOrder(density=min(DENSITIES), tuning=SecondOrderTuning(uniform=uniform))
    with masked(model, before):
        plans, refit = from_first_unless(
            plans_at(model, DENSITIES, order, before, losses, over_processes=over_processes), over_processes
        )
    decision = decide([RefittedPlan(plan, refit) for plan in plans])
    effort = Effort(
        search_seconds=time.perf_counter() - started,
        evaluations=len(decision.measured),
        optimality="the smallest plan that passed, in the order of removal costs",
    )
    anatomy, chosen = anatomy_of(model), decision.chosen
    history = tuple(MeasuredPlan(it[0], linear_density(it[0], anatomy), *it[1:]) for it in decision.measured)
    return Found(RefittedPlan(chosen.plan, refit), None, decision.metric, chosen, effort, history)


def from_first_unless(found: Any, over_processes: bool) -> Any:  # noqa: FBT001 - the question itself
    """Returns what the first process found, in every process of a distributed run; rounding may differ between them."""
    return from_first(found) if over_processes else found


def by_test(holdout: Holdout, model: nn.Module, before: PruningPlan, split: ScoredSplit | None = None) -> Any:
    """Returns the decision by an exact test of each plan, or by the drop that is seen where examples are too few."""

    def decide(plans: list[RefittedPlan]) -> Decision:
        allowed = holdout.last_allowed(model, plans, before, split)
        plan = before if allowed.index is None else plans[allowed.index].plan
        chosen = Chosen(plan, allowed.path, len(plans), has_certificate=allowed.index is not None)
        tried = [before, *(found.plan for found in plans)]
        measured = zip(tried, allowed.metrics, strict=False)
        return Decision(chosen, [(it, value, n <= allowed.passed) for n, (it, value) in enumerate(measured)])

    return decide


def by_metric(source: MetricSource, max_drop: float, before: PruningPlan) -> Any:
    """Returns the decision by a metric that can't be tested example by example: the drop that is seen decides."""

    def decide(plans: list[RefittedPlan]) -> Decision:
        whole = from_first(source.evaluator(before).metric)
        after, plan, measured = whole, before, [(before, whole, True)]
        for found in plans:
            source.evaluator.refit = found.refit  # type: ignore[assignment] # of `plans_at`
            metric = from_first(source.evaluator(found.plan).metric)
            passed = whole - metric <= max_drop + ROUND_OFF
            measured.append((found.plan, metric, passed))
            if not passed:
                break
            after, plan = metric, found.plan
        change = MetricChange(
            name=source.metric,
            split=source.split,
            num_examples=source.num_examples,
            before=source.sign * whole,
            after=source.sign * after,
            reference=reference_in_words(before),
        )
        return Decision(Chosen(plan), measured, change)

    return decide


def can_decide(num_examples: int, max_drop: float, confidence: float, *, required_by: str | None = None) -> bool:
    """Tells whether examples can certify a drop at all: without a single change of an answer.

    Args:
        num_examples: Unseen ones.
        max_drop: Drop that is to be excluded.
        confidence: With which.
        required_by: Name of the public function whose argument `confidence` asks for it; None where it may be missing.

    Raises:
        InvalidSettingError: It is required, and they can't.
    """
    if not 0 < max_drop < 1:
        return False
    needed = math.ceil(math.log(1 - confidence) / math.log1p(-max_drop))
    if required_by is not None and num_examples < needed:
        raise InvalidSettingError(
            f"{required_by}(confidence={confidence:g}): a drop below {100 * max_drop:g} percentage points can't be "
            f"shown on {num_examples:,} examples, even if no answer changes; it takes {needed:,}. Pass more, allow a "
            "larger drop, or leave confidence out, so that the drop that is seen decides."
        )
    return num_examples >= needed
