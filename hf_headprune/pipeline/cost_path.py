"""The default: nested plans in the order of removal costs, tested on labelled examples, the largest first.

The order comes from training examples, before any of the examples that test it is looked at. So they test the plans one
after the other at the full level, until the first that fails (fixed-sequence testing): no example is held back, and the
statement about the last plan that passes holds on unseen data.

Source: Angelopoulos et al. 2021, arXiv 2110.01052 (Learn then Test, section 4); for the costs see
`hf_headprune.refit.removal_costs`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_headprune._distributed import from_first
from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.scored import least_needed
from hf_headprune.masking import masked
from hf_headprune.pipeline.holdout import Chosen, Holdout, allows_anything
from hf_headprune.pipeline.result import MeasuredPlan, sized
from hf_headprune.pipeline.run import Found, reference_in_words
from hf_headprune.plan import RefittedPlan
from hf_headprune.publish.measurements import Effort, Frontier, MetricChange
from hf_headprune.refit.choice import plans_at
from hf_headprune.refit.in_order import Runs
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.refit.reach import check_budget
from hf_headprune.refit.settings import SecondOrder, SecondOrderTuning
from hf_headprune.search.plans import check_searchable

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import nn

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.guarantee.claim import Metric
    from hf_headprune.guarantee.scored import CertificationData, ScoredSplit
    from hf_headprune.pipeline.holdout import Allowed
    from hf_headprune.pipeline.run import MetricSource
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.settings import AStarSearch

logger = logging.getLogger(__name__)

# Shares of the attention and FFN weights that are kept; fixed before any example is looked at.
DENSITIES = (0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
CALIBRATION = 1024  # training examples that costs and refit are computed from, of half of the weights or more
MOST_CALIBRATION = 4096  # of a quarter or less, where a budget says how much is kept
DEEP = tuple(density for density in DENSITIES if density <= 0.25)  # of plans that are refitted in order # noqa: PLR2004
ROUND_OFF = 1e-9
NEAREST_UNIT = 0.02  # by which a plan may keep more than its density


@dataclass(frozen=True)
class Decision:
    """Which of the plans is pruned, and what was measured.

    Attributes:
        chosen: The last plan that passed.
        measured: Plans with their metrics, higher is better, and whether they passed; the reference first.
        asked: What was asked of them; `walk_down` adds the plans.
        metric: Before and after, where no holdout measured it.
        trained: The plan with the weights that further training made of it; None where it was not trained on.
    """

    chosen: Chosen
    measured: list[tuple[PruningPlan, float, bool]]
    asked: Frontier
    metric: MetricChange | None = None
    trained: RefittedPlan | None = None


Decide = Callable[[list[RefittedPlan]], Decision]


def check_removable(
    anatomy: Anatomy, search: AStarSearch | None, *, uniform: bool, start_cuts_ffn: bool = False
) -> None:
    """Sees that a search, or without one `walk_down`, finds something to remove, before any work on the model.

    Args:
        anatomy: Of the model.
        search: Settings of a search.
        uniform: Whether all layers are to keep equally many units.
        start_cuts_ffn: See `check_searchable`.

    Raises:
        InvalidSettingError: It does not.
    """
    if search is None:
        check_budget(SecondOrder(density=1.0, tuning=SecondOrderTuning(uniform=uniform)), anatomy)
    else:
        check_searchable(anatomy, search, uniform=uniform, start_cuts_ffn=start_cuts_ffn)


def examples_for(density: float | None, *, trains_on: bool) -> int:
    """Returns how many training examples a budget looks at: the less is kept, the more of them help.

    Args:
        density: Share that is kept; None where it is heads that are counted.
        trains_on: Whether the pruned model is trained on, which makes up for what few examples do not show.
    """
    times = 1.0 if density is None or trains_on else (0.5 / density) ** 2
    return int(min(max(times, 1.0) * CALIBRATION, MOST_CALIBRATION))


def walk_down(  # noqa: PLR0913 - a model, its examples, and what is asked
    model: nn.Module,
    before: PruningPlan,
    losses: Iterable[torch.Tensor],
    decide: Decide,
    *,
    runs: Runs | None = None,
    uniform: bool = False,
    over_processes: bool = False,
) -> Found:
    """Finds the smallest plan of the order of removal costs that is allowed.

    Args:
        model: Trained; left unchanged.
        before: Units that are open in it.
        losses: Of training examples, summed over each batch; each is computed when it is asked for.
        decide: Tests plans, the largest first; see `by_test` and `by_metric`.
        runs: Forward passes on the same examples. With them, the plans that remove much are refitted in order.
        uniform: Whether all layers keep equally many units.
        over_processes: Whether all processes of a distributed run do so, each with losses of its own.
    """
    started = time.perf_counter()
    order = SecondOrder(density=min(DENSITIES), tuning=SecondOrderTuning(uniform=uniform))
    with masked(model, before):
        made = plans_at(model, DENSITIES, order, before, losses, over_processes=over_processes)
    plans, refit = from_first(made) if over_processes else made  # rounding may differ between processes
    candidates = [RefittedPlan(plan, refit) for plan in plans]
    if runs is not None:
        candidates = refitted_in_order(candidates, refit, before, runs)
    decision = decide(candidates)
    effort = Effort(
        search_seconds=time.perf_counter() - started,
        evaluations=len(decision.measured),
        optimality="the smallest plan that passed, in the order of removal costs",
    )
    anatomy, chosen = anatomy_of(model), decision.chosen
    history = tuple(MeasuredPlan(it[0], linear_density(it[0], anatomy), *it[1:]) for it in decision.measured)
    frontier = replace(
        decision.asked,
        plans=sized(history, anatomy, sign=1.0 if decision.asked.higher_is_better else -1.0),
        leaves_at=leaving_densities(before, plans, anatomy),
    )
    found = (candidate for candidate in candidates if candidate.plan == chosen.plan)
    pruned = decision.trained or next(found, RefittedPlan(chosen.plan, refit))
    return Found(pruned, None, decision.metric, chosen, effort, history, frontier)


def refitted_in_order(plans: list[RefittedPlan], refit: Refit, before: PruningPlan, runs: Runs) -> list[RefittedPlan]:
    """Returns plans of which those that remove much are refitted in order, each when it is first asked for.

    Args:
        plans: All there are.
        refit: Of output projections.
        before: Units that are open in the model.
        runs: On the examples of the refit; every second one is used.
    """
    anatomy = anatomy_of(runs.dense)
    some = Runs(runs.dense, [run if number % 2 == 0 else None for number, run in enumerate(runs.each)])
    deep = {found.plan for found in plans if linear_density(found.plan, anatomy) <= DEEP[0] + NEAREST_UNIT}
    return [
        RefittedPlan(found.plan, RefitInOrder(refit, found.plan, before, some)) if found.plan in deep else found
        for found in plans
    ]


def leaving_densities(before: PruningPlan, plans: list[PruningPlan], anatomy: Anatomy) -> dict[str, tuple[float, ...]]:
    """Returns how much of a model is left when each of its heads leaves, 0 where it never does; see `Frontier`.

    Args:
        before: What is open at first; heads that are not left at 1.
        plans: Nested, the largest first.
        anatomy: Of the model.
    """
    found = {site: [0.0] * heads for site, heads in before.num_heads.items()}
    for plan, density in [*((it, linear_density(it, anatomy)) for it in reversed(plans)), (before, 1.0)]:
        for site, leaves_at in found.items():
            for head in set(range(len(leaves_at))) - set(plan.kept_heads[site]):
                leaves_at[head] = density
    return {site: tuple(leaves_at) for site, leaves_at in found.items()}


def by_test(
    holdout: Holdout, model: nn.Module, before: PruningPlan, split: ScoredSplit | None = None, *, others: int = 0
) -> Decide:
    """Returns the decision by an exact test of each plan, or by the drop that is seen where examples are too few.

    Args:
        holdout: Examples that nothing has seen.
        model: The model before pruning; left unchanged.
        before: Units that are open in it.
        split: The examples, where they were read already.
        others: Models that the examples have refused before.
    """

    def decide(plans: list[RefittedPlan]) -> Decision:
        if holdout.reference is not None:  # the model itself may have lost too much against another one
            plans = [RefittedPlan(before), *plans]
        allowed = holdout.last_allowed(model, plans, before, split)
        plan = before if allowed.index is None else plans[allowed.index].plan
        chosen = Chosen(plan, allowed.path, others + len(plans), has_certificate=allowed.index is not None)
        tried = [before, *(found.plan for found in plans)]
        measured = zip(tried, allowed.metrics, strict=False)
        tried_ones = [(it, value, n <= allowed.passed) for n, (it, value) in enumerate(measured)]
        return Decision(chosen, tried_ones, asked_of(holdout, allowed))

    return decide


def asked_of(holdout: Holdout, allowed: Allowed) -> Frontier:
    """Returns what was asked of plans on unseen examples; see `Decision`."""
    confidence = None if allowed.path is None else holdout.confidence
    return Frontier(holdout.metric.name, "unseen examples", holdout.max_drop, (), confidence)


def by_metric(source: MetricSource, max_drop: float, before: PruningPlan) -> Decide:
    """Returns the decision by a metric that can't be tested example by example: the drop that is seen decides."""

    def decide(plans: list[RefittedPlan]) -> Decision:
        whole = from_first(source.evaluator(before).metric)
        after, plan, measured = whole, before, [(before, whole, True)]
        reason = allows_anything(source.metric, whole, max_drop) if source.evaluator.facts.is_bounded else None
        if not math.isfinite(whole):
            reason = f"the {source.metric} of the model before pruning is {whole}, with which no plan can be compared"
        if reason is not None:
            logger.warning("Nothing is pruned: %s.", reason)
        for found in plans if reason is None else ():
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
        asked = Frontier(source.metric, source.split, max_drop, (), higher_is_better=source.sign > 0)
        return Decision(Chosen(plan), measured, asked, change)

    return decide


def can_decide(
    metric: Metric, data: CertificationData, max_drop: float, confidence: float, *, required_by: str | None = None
) -> bool:
    """Tells whether examples can certify a drop at all: without a single change of an answer.

    Args:
        metric: By which models are compared.
        data: Unseen examples.
        max_drop: Drop that is to be excluded.
        confidence: With which.
        required_by: Name of the public function whose argument `confidence` asks for it; None where it may be missing.

    Raises:
        InvalidSettingError: It is required, and they can't.
    """
    if not 0 < max_drop < 1:
        if required_by is not None:
            raise InvalidSettingError(
                f"{required_by}(confidence={confidence:g}): no examples can show a drop below {100 * max_drop:g} "
                "percentage points. Pass a max_drop between 0 and 1, or leave confidence out, so that the drop that is "
                "seen decides."
            )
        return False
    count, needed = least_needed(metric, data, max_drop, confidence)
    if required_by is not None and count < needed:
        noun = "examples" if data.groups is None else "groups of examples, counted by the largest"
        raise InvalidSettingError(
            f"{required_by}(confidence={confidence:g}): a drop below {100 * max_drop:g} percentage points can't be "
            f"shown on {count:,} {noun}, even if no answer changes; it takes {needed:,}. Pass more, allow a larger "
            "drop, or leave confidence out, so that the drop that is seen decides."
        )
    return count >= needed
