"""One run after training: search, choose on the holdout, certify, report. The Trainer and the plain call share it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.cost import cost_of
from hf_headprune.errors import SearchStateError, shown
from hf_headprune.guarantee.certificate import DENSE
from hf_headprune.masking import plain_copy
from hf_headprune.pipeline.holdout import Chosen, Holdout, NotCertifiable, pruned_copy
from hf_headprune.pipeline.progress import SearchBar
from hf_headprune.pipeline.result import MeasuredPlan, PruningResult, searched_plans, sized, unbeaten
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.publish.measurements import Effort, Frontier, MetricChange
from hf_headprune.publish.report import PruningReport
from hf_headprune.search.evaluation.rank_zero import lead_or_follow
from hf_headprune.search.journal import set_aside
from hf_headprune.search.plans import search_over_plans
from hf_headprune.shrink.saved_plan import plan_from_dense
from hf_headprune.uniform import tied_sites

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.latency import LatencyChange
    from hf_headprune.publish.measurements import Recipe
    from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
    from hf_headprune.search.results import PlanSearchResult
    from hf_headprune.search.settings import AStarSearch

logger = logging.getLogger(__name__)

WHOLE = "the whole model"
BY_COSTS = "second-order removal costs; the cheapest heads and FFN units were removed, the others refitted"
IN_ORDER = f"{BY_COSTS}; plans in this order were tested, the largest first"
OPTIMALITY_WORDS = {
    "proved": "no larger removal in the steps of the search meets the constraint: every one was evaluated",
    "under heredity": (
        "no larger removal in the steps of the search meets the constraint, assuming that every subset of an "
        "acceptable removal is acceptable"
    ),
    "budget": "the search ended with its budget; a larger removal may exist",
}


@dataclass(frozen=True)
class MetricSource:
    """What a search measures plans with.

    Attributes:
        evaluator: Function of a plan, with a `fingerprint()` of what it measures.
        metric: Name of the metric.
        num_examples: Examples that it is computed on; None where nothing says so.
        split: What these examples are, in words.
        sign: -1 where the evaluator returns the metric negated, because lower is better.
        model: Copy of the model, on which the evaluator measures; None where it measures the model itself.
    """

    evaluator: ExampleEvaluator | MetricEvaluator
    metric: str
    num_examples: int | None
    split: str
    sign: float = 1.0
    model: Any = None


@dataclass(frozen=True)
class Job:
    """What is to be pruned, and what must hold.

    Attributes:
        model: Trained; left unchanged.
        reference: What is open in it, and what plans are compared with.
        source: Measures plans.
        search: Settings of the search.
        holdout: Examples that the search does not see; None, or a reason, where there are none.
        restorable: Units that the search may put back besides; None for all.
        head_scores: Importance of the heads that training learned, `(num_heads,)`, or None.
        journal: File that holds the state of the search, or None.
        uniform: Whether all layers keep equally many units.
        restarts: Whether a journal that does not belong to this search is set aside, in place of an error.
        progress: Whether to show a bar.
    """

    model: Any
    reference: PruningPlan
    source: MetricSource
    search: AStarSearch
    holdout: Holdout | NotCertifiable | None = None
    restorable: PruningPlan | None = None
    head_scores: np.ndarray | None = None
    journal: Path | None = None
    uniform: bool = False
    restarts: bool = False
    progress: bool = True


@dataclass(frozen=True)
class Found:
    """What is to be pruned, and how it was found.

    Attributes:
        pruned: The plan with its refit.
        search: Course of the search, or None where there was none.
        metric: On the searched examples, before and after.
        chosen: What the holdout allowed; None without one.
        effort: What it took.
        history: Plans that were measured on all examples, the reference first.
        frontier: What of them is reported; None where there were none.
    """

    pruned: RefittedPlan
    search: PlanSearchResult | None = None
    metric: MetricChange | None = None
    chosen: Chosen | None = None
    effort: Effort = field(default_factory=Effort)
    history: tuple[MeasuredPlan, ...] = ()
    frontier: Frontier | None = None


def find(job: Job) -> Found:
    """Searches, and goes back on the way there to what the holdout allows."""
    started = time.perf_counter()
    holdout = job.holdout if isinstance(job.holdout, Holdout) else None
    search = job.search if holdout is None else holdout.searched(job.search)
    result = _search(job, search)
    known = {job.reference: result.reference_metric, result.plan: result.metric}
    measured = len(known)

    def measure(plan: PruningPlan) -> float:
        if plan not in known:
            known[plan] = job.source.evaluator(plan).metric
        return known[plan]

    chosen = None
    if holdout is not None:
        model = plain_copy(job.model) if job.source.model is None else job.source.model
        ties = tied_sites(anatomy_of(job.model).sites) if job.uniform else ()
        chosen = holdout.choose(model, job.reference, result, job.head_scores, measure, ties=ties)
    plan = result.plan if chosen is None else chosen.plan
    metric = MetricChange(
        name=job.source.metric,
        split=job.source.split,
        num_examples=job.source.num_examples,
        before=job.source.sign * result.reference_metric,
        after=job.source.sign * measure(plan),
        reference=reference_in_words(job.reference),
    )
    effort = Effort(
        search_seconds=time.perf_counter() - started,
        evaluations=result.evaluations + len(known) - measured,
        optimality=" ".join([OPTIMALITY_WORDS[result.optimality] + ("." if result.warnings else ""), *result.warnings]),
    )
    anatomy = anatomy_of(job.model)
    history = searched_plans(result, anatomy)
    tried = [MeasuredPlan(it, linear_density(it, anatomy), known[it], result.is_feasible(known[it])) for it in known]
    reported = sorted({it.plan: it for it in (*unbeaten(history), *tried)}.values(), key=lambda it: -it.density)
    frontier = Frontier(
        job.source.metric,
        job.source.split,
        search.max_drop,
        sized(reported, anatomy, sign=job.source.sign, latency_ms=search.tuning.latency_ms),
        higher_is_better=job.source.sign > 0,
    )
    return Found(RefittedPlan(plan, result.refit), result, metric, chosen, effort, history, frontier)


def certified(
    holdout: Holdout | NotCertifiable | None,
    chosen: Chosen | None,
    dense: Any,
    pruned: Any,
    *,
    reference_name: str = DENSE,
    is_other: bool = False,
) -> tuple[Certificate | None, str]:
    """Certifies what was pruned, where that is possible.

    Args:
        holdout: Of the run.
        chosen: What it allowed; None where it had no say, since a budget decided.
        dense: What the pruned model is compared with, unless the holdout has a reference of its own.
        pruned: The pruned model; it takes the certificate along.
        reference_name: What `dense` is, in words.
        is_other: Whether `dense` is another model than the one that candidates were compared with.

    Returns:
        The certificate or None, and what to say.
    """
    if holdout is None:
        return None, ""
    if isinstance(holdout, NotCertifiable):
        return None, holdout.in_words()
    if holdout.reference is not None:
        dense = holdout.reference
    if chosen is None:
        chosen = Chosen(PruningPlan.of(pruned))
    elif is_other:  # the examples chose one of the candidates, or none of them
        chosen = replace(chosen, path=None, num_candidates=chosen.num_candidates + 1)
    elif not chosen.has_certificate:
        return None, holdout.nothing_certified(chosen)
    certificate = holdout.certify(dense, pruned, chosen, reference_name=reference_name)
    return certificate, certificate.statement


def result_of(
    model: Any, found: Found, holdout: Holdout | None, recipe: Recipe, *, latency: LatencyChange | None = None
) -> PruningResult:
    """Certifies what was found, where that is possible, and returns it with all that is known of it.

    Args:
        model: From which it prunes; unchanged.
        found: What is to be pruned.
        holdout: Examples of the certificate; None without one.
        recipe: How it was decided what to prune.
        latency: Before and after, where it was measured.
    """
    certificate, words, reference = None, "", None
    if holdout is not None:
        reference, pruned = holdout.reference, pruned_copy(model, found.pruned)
        certificate, words = certified(holdout, found.chosen, plain_copy(model), pruned, reference_name=WHOLE)
    anatomy = anatomy_of(model)
    report = PruningReport.of(
        found.pruned.plan,
        anatomy,
        metric=found.metric,
        unseen=unseen_change(certificate, WHOLE),
        latency=latency,
        effort=found.effort,
        frontier=found.frontier,
        recipe=recipe,
    )
    return PruningResult(
        found.pruned.plan,
        found.pruned.refit,
        reference=PruningPlan.full(anatomy),
        report=replace(against(report, reference), certificate=words),
        certificate=certificate,
        path=None if found.chosen is None else found.chosen.path,
        search=found.search,
        history=found.history,
    )


def unseen_change(certificate: Certificate | None, reference: str) -> MetricChange | None:
    """Returns the metric on the holdout before and after, as the certificate counted it."""
    if certificate is None:
        return None
    seen = certificate.evidence
    if seen.dense_metric is None or seen.pruned_metric is None:  # of a few labels: only the drop is known
        return None
    return MetricChange(
        name=certificate.claim.metric,
        split="unseen examples",
        num_examples=seen.examples,
        before=seen.dense_metric,
        after=seen.pruned_metric,
        reference=reference,
    )


def searched_in_words(search: AStarSearch) -> str:
    """Says by which search a plan was found."""
    return f"A* search over {' and '.join(search.units)}".replace("ffn", "FFN units")


def asked_in_words(given: Mapping[str, Any], *, uniform: bool) -> str:
    """Returns the budget that is not None as it was passed, such as "density=0.5"; an empty text without one."""
    said = [f"{name}={shown(value)}" for name, value in given.items() if value is not None]
    return ", ".join([*said, "uniform=True"] if uniform else said)


def earlier_in_words(model: Any) -> str:
    """Says what a model has lost before, since all that is counted and compared begins with what it is now."""
    plan = plan_from_dense(model)
    if plan is not None and not (plan.num_removed_heads or plan.num_removed_ffn):
        return ""
    kept = "what it has kept of the dense one is not known"
    if plan is not None:
        heads, ffn = sum(plan.num_heads.values()), sum(plan.num_ffn.values())
        kept = f"of the dense one it has {plan.num_kept_heads} of {heads} heads, {plan.num_kept_ffn} of {ffn} FFN units"
    return f"the model was pruned earlier: {kept}. Numbers and comparisons here begin with the model as it was given"


def against(report: PruningReport, reference: Any) -> PruningReport:
    """Returns a report whose sizes before pruning are those of another model; as it is where there is none."""
    if reference is None:
        return report
    model = reference[0] if isinstance(reference, tuple) else reference
    before, frontier = cost_of(PruningPlan.of(model), anatomy_of(model), seq_len=report.seq_len), report.frontier
    if frontier is not None and frontier.plans:
        whole = replace(frontier.plans[0], size_mb=before.size_mb)
        frontier = replace(frontier, plans=(whole, *frontier.plans[1:]))
    return replace(report, before=before, frontier=frontier)


def reference_in_words(plan: PruningPlan) -> str:
    """Says what smaller plans are compared with."""
    is_whole = not (plan.num_removed_heads or plan.num_removed_ffn)
    return "the whole model" if is_whole else "the trained model before the search"


def _search(job: Job, search: AStarSearch) -> PlanSearchResult:
    fingerprint = ""
    if job.journal is not None:
        job.journal.parent.mkdir(parents=True, exist_ok=True)
        fingerprint = job.source.evaluator.fingerprint()
    restorable = job.restorable
    if restorable is not None and not _has_any(restorable, search):
        restorable = None
    with SearchBar(disable=not job.progress, unit_name="/".join(search.units)) as bar:

        def run(evaluator: Any) -> PlanSearchResult:
            return search_over_plans(
                anatomy_of(job.model),
                evaluator,
                search,
                start=job.reference,
                alive=restorable,
                head_scores=job.head_scores,
                journal=job.journal,
                uniform=job.uniform,
                fingerprint=fingerprint,
                on_progress=bar.show,
            )

        def run_anyway(evaluator: Any) -> PlanSearchResult:
            try:
                return run(evaluator)
            except SearchStateError as error:
                if job.journal is None or not job.restarts:
                    raise
                # An earlier run in the same folder left it; hours of training must not end with that.
                logger.warning("%s It is kept as %s, and the search begins anew.", error, set_aside(job.journal).name)
                return run(evaluator)

        return lead_or_follow(job.source.evaluator, run_anyway)


def _has_any(plan: PruningPlan, search: AStarSearch) -> bool:
    """Tells whether a plan keeps anything of what a search is about."""
    heads, ffn = search.units != ("ffn",), search.units != ("heads",)
    return (heads and plan.num_kept_heads > 0) or (ffn and plan.num_kept_ffn > 0)
