"""After training: search, cut, measure, report."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hf_headprune._certificate_file import attach_certificate_
from hf_headprune._seen_splits import remember_seen_
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback.certification import NoPromise, Promise
from hf_headprune.callback.final_checkpoint import drop_spare_checkpoint, save_spare_checkpoint, spare_folder
from hf_headprune.callback.search_metric import metric_source
from hf_headprune.errors import SearchStateError
from hf_headprune.latency import measure_latency
from hf_headprune.masking import plain_copy
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.publish.measurements import Effort, MetricChange
from hf_headprune.publish.report import PruningReport
from hf_headprune.search.evaluation.leading import lead_or_follow
from hf_headprune.search.plans import PlanSearchResult, SearchBar, search_over_plans
from hf_headprune.shrink.surgery import prune_model_

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.callback.certification import ChosenPlan
    from hf_headprune.callback.parts import Learned, LearnedParts
    from hf_headprune.callback.search_metric import MetricSource
    from hf_headprune.callback.settings import Settings
    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.search.settings import AStarSearch

logger = logging.getLogger(__name__)

JOURNAL_NAME = "headprune_search.jsonl"
REPORT_NAME = "headprune_report.json"
OPTIMALITY_WORDS = {
    "proved": "no larger removal keeps the metric: every one was evaluated",
    "under heredity": "no larger removal keeps the metric, if parts of a removal that keeps it keep it too",
    "budget": "stopped by its budget: a larger removal may exist",
}


@dataclass(frozen=True)
class Outcome:
    """What became of the model: the plan that was cut, the search that chose it, the report, and the certificate."""

    plan: PruningPlan
    search_result: PlanSearchResult | None
    report: PruningReport
    certificate: Certificate | None


def finish(
    trainer: Trainer,
    parts: LearnedParts,
    settings: Settings,
    promise: Promise | NoPromise | None,
    *,
    train_seconds: float,
) -> Outcome:
    """Turns the trained model into the pruned one, in place, and reports on it.

    Args:
        trainer: Its model is trained; what learned is still attached.
        parts: What learned.
        settings: Of the run.
        promise: What to certify, why nothing is, or None where nobody asked.
        train_seconds: Wall time that training took.
    """
    model: Any = trainer.model
    held_back = promise if isinstance(promise, Promise) else None
    parts.warn_of_early_end(trainer.state.max_steps)  # before a spare checkpoint says that all steps were seen
    if settings.search is not None or settings.trains_twice:
        save_spare_checkpoint(trainer, parts)
    spare = spare_folder(trainer)
    learned = parts.take_off(trainer)
    anatomy = anatomy_of(model)
    found = Found(learned.plan)
    if settings.search is not None:
        found = _find(trainer, anatomy, settings.search, held_back, learned)
    dense = plain_copy(model)
    prune_model_(model, RefittedPlan(found.plan, None if found.result is None else found.result.refit))
    pruned = plain_copy(model)
    report = PruningReport.of(
        found.plan,
        anatomy,
        metric=found.metric,
        latency=None if settings.latency is None else measure_latency(dense, pruned, settings.latency),
        effort=replace(found.effort, training_seconds=train_seconds),
    )
    certificate = None
    if trainer.is_world_process_zero():
        Path(trainer.args.output_dir).mkdir(parents=True, exist_ok=True)
        if promise is not None:
            certificate, words = _certified(trainer, promise, found, learned.plan, dense=dense, pruned=pruned)
            report = replace(report, promise=words)
        Path(trainer.args.output_dir, REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
        tqdm.write(report.to_text())
    if settings.search is not None:  # only now is everything on disk that came after training
        drop_spare_checkpoint(trainer, spare)
    return Outcome(found.plan, found.result, report, certificate)


def _certified(
    trainer: Trainer, promise: Promise | NoPromise, found: Found, learned: PruningPlan, *, dense: Any, pruned: Any
) -> tuple[Certificate | None, str]:
    """Certifies what was cut, where that was to be and can be; returns the certificate and what to say."""
    if not isinstance(promise, Promise) or found.chosen is None:
        return None, promise.in_words()
    if not found.chosen.has_certificate:
        return None, promise.nothing_certified(found.chosen)
    certificate = promise.certify(dense, learned, pruned, found.chosen)
    certificate.save(Path(trainer.args.output_dir))
    attach_certificate_(trainer.model, certificate.to_json())
    return certificate, f"Compared with what training kept: {certificate.statement}"


@dataclass(frozen=True)
class Found:
    """What is to be cut, and how it was found: what training kept, unless there was a search."""

    plan: PruningPlan
    result: PlanSearchResult | None = None
    metric: MetricChange | None = None
    chosen: ChosenPlan | None = None
    effort: Effort = field(default_factory=Effort)


def _find(
    trainer: Trainer,
    anatomy: Anatomy,
    search: AStarSearch,
    promise: Promise | None,
    learned: Learned,
) -> Found:
    """Searches, and where there is a promise to keep, goes back to what can be certified."""
    started = time.perf_counter()
    examples = None if promise is None else promise.search_split
    search = replace(search, refit=search.refit is not False)  # it is the callback that cuts
    source = metric_source(trainer, search, examples)
    searched = search if promise is None else promise.searched(search)
    result = _search(trainer, anatomy, source, searched, learned)
    start, plan, chosen = learned.plan, result.plan, None
    known = {start: result.reference_metric, result.plan: result.metric}

    def measure(plan: PruningPlan) -> float:
        if plan not in known:
            known[plan] = source.evaluator(plan).metric
        return known[plan]

    remember_seen_(trainer.model, search=trainer.eval_dataset if examples is None else examples)
    if promise is not None:
        chosen = promise.choose(trainer, plain_copy(trainer.model), start, result, learned.head_scores, measure)
        plan = chosen.plan
    metric = MetricChange(
        name=source.metric,
        split=f"search split: {'' if promise is None or promise.has_own_split else 'half of '}eval_dataset"
        + ("" if source.precision is None else f", in {source.precision}"),
        num_examples=source.num_examples,
        before=source.sign * result.reference_metric,
        after=source.sign * measure(plan),
        reference="the whole model" if start == PruningPlan.full(anatomy) else "what training kept",
    )
    effort = Effort(
        search_seconds=time.perf_counter() - started,
        evaluations=result.evaluations + len(known) - len({start, result.plan}),
        optimality=OPTIMALITY_WORDS[result.optimality],
    )
    return Found(plan, result, metric, chosen, effort)


def _search(
    trainer: Trainer,
    anatomy: Anatomy,
    source: MetricSource,
    search: AStarSearch,
    learned: Learned,
) -> PlanSearchResult:
    journal = Path(trainer.args.output_dir, JOURNAL_NAME)
    journal.parent.mkdir(parents=True, exist_ok=True)
    fingerprint = source.evaluator.fingerprint()
    with SearchBar(disable=trainer.args.disable_tqdm, unit_name="/".join(search.units)) as bar:

        def run(evaluator: Any) -> PlanSearchResult:
            return search_over_plans(
                anatomy,
                evaluator,
                search,
                start=learned.plan,
                alive=learned.alive if _has_any(learned.alive, search) else None,
                head_scores=learned.head_scores,
                journal=journal,
                fingerprint=fingerprint,
                on_progress=bar.show,
            )

        def run_anyway(evaluator: Any) -> PlanSearchResult:
            try:
                return run(evaluator)
            except SearchStateError as error:
                # An earlier run in the same folder left it; hours of training must not end with that.
                logger.warning("%s The callback starts this file anew.", error)
                journal.unlink()
                return run(evaluator)

        return lead_or_follow(source.evaluator, run_anyway)


def _has_any(plan: PruningPlan, search: AStarSearch) -> bool:
    """Tells whether a plan keeps anything of what a search is about."""
    heads, ffn = search.units != ("ffn",), search.units != ("heads",)
    return (heads and plan.num_kept_heads > 0) or (ffn and plan.num_kept_ffn > 0)
