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
from typing import TYPE_CHECKING, Any

from hf_headprune._distributed import from_first
from hf_headprune.pipeline.holdout import Chosen, Holdout
from hf_headprune.pipeline.run import Found, reference_in_words
from hf_headprune.plan import RefittedPlan
from hf_headprune.publish.measurements import Effort, MetricChange
from hf_headprune.refit.choice import plans_at
from hf_headprune.refit.settings import SecondOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from torch import nn

    from hf_headprune.pipeline.run import MetricSource
    from hf_headprune.plan import PruningPlan

# Shares of the attention and FFN weights that are kept; fixed before any example is looked at.
DENSITIES = (0.75, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
CALIBRATION = 1024  # training examples that costs and refit are computed from
ROUND_OFF = 1e-9


def walk_down(
    model: nn.Module,
    before: PruningPlan,
    losses: Iterable[torch.Tensor],
    decide: Callable[[list[RefittedPlan]], tuple[Chosen, MetricChange | None, int]],
    *,
    over_processes: bool = False,
) -> Found:
    """Finds the smallest plan of the order of removal costs that is allowed.

    Args:
        model: Trained; left unchanged.
        before: Units that are open in it.
        losses: Of training examples, summed over each batch; each is computed when it is asked for.
        decide: Tests plans, the largest first; see `by_test` and `by_metric`.
        over_processes: Whether all processes of a distributed run do so, each with losses of its own.
    """
    started = time.perf_counter()
    order = SecondOrder(density=min(DENSITIES))
    plans, refit = from_first_unless(
        plans_at(model, DENSITIES, order, before, losses, over_processes=over_processes), over_processes
    )
    chosen, metric, evaluations = decide([RefittedPlan(plan, refit) for plan in plans])
    effort = Effort(
        search_seconds=time.perf_counter() - started,
        evaluations=evaluations,
        optimality="the smallest plan that passed, in the order of removal costs",
    )
    return Found(RefittedPlan(chosen.plan, refit), None, metric, chosen, effort)


def from_first_unless(found: Any, over_processes: bool) -> Any:  # noqa: FBT001 - the question itself
    """Returns what the first process found, in every process of a distributed run; rounding may differ between them."""
    return from_first(found) if over_processes else found


def by_test(holdout: Holdout, model: nn.Module, before: PruningPlan) -> Any:
    """Returns the decision by an exact test of each plan, or by the drop that is seen where examples are too few."""

    def decide(plans: list[RefittedPlan]) -> tuple[Chosen, MetricChange | None, int]:
        path, last = holdout.last_allowed(model, plans, before) if plans else (None, None)
        tried = len(plans) if path is None else len(path.steps)
        plan = before if last is None else plans[last].plan
        return Chosen(plan, path, len(plans), has_certificate=last is not None), None, tried + 1

    return decide


def by_metric(source: MetricSource, max_drop: float, before: PruningPlan) -> Any:
    """Returns the decision by a metric that can't be tested example by example: the drop that is seen decides."""

    def decide(plans: list[RefittedPlan]) -> tuple[Chosen, MetricChange | None, int]:
        whole = from_first(source.evaluator(before).metric)
        after, plan, tried = whole, before, 1
        for found in plans:
            source.evaluator.refit = found.refit  # type: ignore[assignment] # of `plans_at`
            metric = from_first(source.evaluator(found.plan).metric)
            tried += 1
            if not whole - metric <= max_drop + ROUND_OFF:
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
        return Chosen(plan), change, tried

    return decide


def can_decide(num_examples: int, max_drop: float, confidence: float) -> bool:
    """Tells whether examples can certify a drop at all: without a single change of an answer."""
    if not 0 < max_drop < 1:
        return False
    return num_examples * math.log1p(-max_drop) <= math.log(1 - confidence)
