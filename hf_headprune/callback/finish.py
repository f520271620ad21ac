"""After training: find what to prune, prune, certify, report."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hf_headprune._beside_weights import write_text
from hf_headprune._certificate_file import CERTIFICATE_NAME, attach_certificate_
from hf_headprune._distributed import by_first, from_first, number_of_processes
from hf_headprune._model_card import attach_card_
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import trainer_compat
from hf_headprune.callback.certification import Certification, Splits
from hf_headprune.callback.final_checkpoint import (
    drop_spare_checkpoint,
    save_spare_checkpoint,
    save_trained,
    spare_folder,
)
from hf_headprune.callback.gathering import make_whole_
from hf_headprune.callback.search_metric import metric_source, own_number
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.latency import measure_latency
from hf_headprune.masking import plain_copy
from hf_headprune.pipeline.cost_path import CALIBRATION, by_metric, walk_down
from hf_headprune.pipeline.holdout import Holdout, NotCertifiable
from hf_headprune.pipeline.recovery import by_test_of_recovered, recovered, recovery_in_words
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.pipeline.run import Found, Job, certified, earlier_in_words, find, unseen_change
from hf_headprune.pipeline.seen import remember_examples_
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.publish.measurements import Recipe, name_on_hub
from hf_headprune.publish.report import REPORT_NAME, PruningReport
from hf_headprune.publish.training import curves_of
from hf_headprune.refit.choice import choose
from hf_headprune.refit.in_order import Runs
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.shrink.surgery import prune_model_

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.callback.parts import Learned, LearnedParts
    from hf_headprune.callback.settings import Settings
    from hf_headprune.latency import LatencyChange
    from hf_headprune.pipeline.holdout import Chosen
    from hf_headprune.pipeline.recovery import Recover

logger = logging.getLogger(__name__)

JOURNAL_NAME = "_headprune_search.jsonl"  # the Trainer uploads no name with an underscore


def finish(  # noqa: PLR0913 - a run, and what follows it
    trainer: Trainer,
    parts: LearnedParts,
    settings: Settings,
    splits: Splits,
    *,
    asked: Certification,
    train_seconds: float,
    recover: Recover | None = None,
) -> PruningResult:
    """Turns the trained model into the pruned one, in place, and returns what is known about it.

    Besides the model there are at most two copies of it at any time.

    Args:
        trainer: Its model is trained; what learned is still attached.
        parts: What learned.
        settings: Of the run, resolved.
        splits: Examples of the search and of the certificate.
        asked: What the user passed for the certificate.
        train_seconds: Wall time that training took.
        recover: Trains a pruned copy on before it is certified; None prunes for good.
    """
    logged = list(trainer.state.log_history)  # a second run begins a history of its own
    parts.check_finite()
    parts.warn_of_early_end(trainer.state.max_steps)  # before a spare checkpoint says that all steps were seen
    if make_whole_(trainer):
        parts.move(trainer)
        save_trained(trainer)
    else:
        save_spare_checkpoint(trainer, parts)
    model: Any = model_of(trainer)
    learned = parts.take_off(trainer)
    anatomy = anatomy_of(model)
    found, holdout = _find(trainer, settings, splits, asked, learned, recover)
    is_certifiable = isinstance(holdout, Holdout)
    compares = is_certifiable and asked.reference is None and trainer.is_world_process_zero()
    dense: Any = plain_copy(model) if compares or settings.latency is not None else None
    recipe = _recipe(trainer, settings, asked, found)
    prune_model_(model, found.pruned)
    latency = _latency(dense, model, settings)
    report = PruningReport.of(
        found.pruned.plan,
        anatomy,
        metric=found.metric,
        latency=latency,
        effort=replace(found.effort, training_seconds=train_seconds),
        frontier=found.frontier,
        training=curves_of(logged, found.pruned.plan),
        recipe=recipe,
    )
    result = PruningResult(
        found.pruned.plan,
        found.pruned.refit,
        reference=learned.plan,
        report=report,
        path=None if found.chosen is None else found.chosen.path,
        search=found.search,
        history=found.history,
    )
    if not trainer.is_world_process_zero() or (is_certifiable and settings.trains_twice):
        return result  # certified when the second run has ended
    if compares:
        prune_model_(dense, learned.plan)
    return with_certificate(trainer, result, holdout, asked, dense=dense, chosen=found.chosen)


def with_certificate(
    trainer: Trainer,
    result: PruningResult,
    holdout: Holdout | NotCertifiable | None,
    asked: Certification,
    *,
    dense: Any = None,
    chosen: Chosen | None = None,
) -> PruningResult:
    """Returns a result with the certificate of the Trainer's pruned model, or with the reason why there is none.

    Args:
        trainer: Its model is pruned.
        result: Of the run.
        holdout: Examples of the certificate.
        asked: What the user passed for it.
        dense: What the pruned model is compared with, where no reference was passed.
        chosen: What the holdout allowed.
    """
    model: Any = model_of(trainer)
    is_other = asked.reference is not None
    name = asked.reference_name if is_other else _name_of(result.reference)
    pruned = plain_copy(model) if isinstance(holdout, Holdout) else None
    try:
        certificate, words = certified(
            holdout, chosen, asked.reference if is_other else dense, pruned, reference_name=name, is_other=is_other
        )
    except Exception as error:  # whatever a metric of the user raises, the pruned model must not be lost
        logger.exception("HeadPruneCallback: the model is pruned, but no certificate could be made.")
        certificate, words = None, f"Certificate: none. {error}"
    if certificate is not None:
        attach_certificate_(model, certificate.to_json())
    report = replace(result.report, unseen=unseen_change(certificate, name), certificate=words)
    return replace(result, certificate=certificate, report=report)


def _recipe(trainer: Trainer, settings: Settings, asked: Certification, found: Found) -> Recipe:
    recovery = recovery_in_words(found.pruned.refit, settings.recover_epochs)
    if settings.trains_twice:
        recovery = "trained once more, with its zeros refilled"
    source = name_on_hub(asked.dataset, trainer.eval_dataset, trainer.train_dataset)
    return Recipe(settings.method, settings.asked, recovery, source, earlier_in_words(model_of(trainer)))


def _latency(dense: Any, model: Any, settings: Settings) -> LatencyChange | None:
    return None if settings.latency is None else measure_latency(dense, plain_copy(model), settings.latency)


def attach_card(trainer: Trainer, result: PruningResult) -> None:
    """Attaches the report to the model as its card, which is about the weights that it has now."""
    attach_card_(model_of(trainer), result.card(model_of(trainer)), result.report.files)


def write_results(trainer: Trainer, result: PruningResult, *, keeps_spare: bool = False, has_card: bool = True) -> bool:
    """Prints the report, attaches it to the model as its card, and writes it and the certificate into `output_dir`.

    Then the spare checkpoint may go.

    What can't be written is logged as an error: it must not cost the training that is over.

    Args:
        trainer: Its model is pruned.
        result: Of the run.
        keeps_spare: Whether the spare checkpoint is needed on.
        has_card: Whether the weights are those that the report will be about; else they are still to be trained.

    Returns:
        Whether all was written.
    """
    if trainer.is_world_process_zero():
        if has_card:
            attach_card(trainer, result)
        tqdm.write(result.report.to_text())
        texts: dict[str, str | None] = {REPORT_NAME: result.report.to_json(), CERTIFICATE_NAME: None}
        if result.certificate is not None:
            texts[CERTIFICATE_NAME] = result.certificate.to_json()
        folder = Path(trainer.args.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                if text is None:  # that of an earlier run is about another model
                    (folder / name).unlink(missing_ok=True)
                    continue
                write_text(folder / name, text)
        except OSError as error:
            logger.error(
                "HeadPruneCallback: the report could not be written into %s (%s). The model is pruned; the report and "
                "the certificate are in the callback's attributes, and trainer.save_model() works as ever. The last "
                "checkpoint is kept.",
                folder,
                error,
            )
            return False
    if not keeps_spare:
        drop_spare_checkpoint(trainer, spare_folder(trainer))
    return True


def _find(
    trainer: Trainer,
    settings: Settings,
    splits: Splits,
    asked: Certification,
    learned: Learned,
    recover: Recover | None,
) -> tuple[Found, Holdout | NotCertifiable | None]:
    """Returns what is pruned: by an A* search, in the order of removal costs, to a size, or what training chose.

    Returns:
        It, and the examples of the certificate, or why there are none.
    """
    if settings.cuts_to_size and recover is not None:
        return _cut_to_size(trainer, settings, learned.plan, recover), splits.holdout
    if not settings.follows:
        return Found(RefittedPlan(learned.plan)), splits.holdout
    if settings.search is None:
        return _walk_down(trainer, settings, splits.holdout, asked, learned, recover)
    search = settings.search
    own = own_number(trainer, search, learned.plan, is_one_point=settings.is_one_point)
    if own is not None and asked.metric is None and splits.holdout is not None:
        if asked.is_condition:
            return _nothing(learned.plan, own.reason)
        splits = Splits(holdout=NotCertifiable(own.reason))
    return _search(trainer, settings, splits, learned, is_own=own is not None), splits.holdout


def _walk_down(
    trainer: Trainer,
    settings: Settings,
    holdout: Holdout | NotCertifiable | None,
    asked: Certification,
    learned: Learned,
    recover: Recover | None,
) -> tuple[Found, Holdout | NotCertifiable | None]:
    """Returns what is pruned in the order of removal costs; see `_find`."""
    search, before, own, ours = settings.measured, learned.plan, None, None
    decide: Any = None
    twin: Any = None
    if isinstance(holdout, Holdout):
        twin = plain_copy(model_of(trainer))
        split = holdout.read(twin, before)
        train = trainer_compat.drawn_examples(trainer.train_dataset, CALIBRATION, trainer.args.seed)
        decide = by_test_of_recovered(holdout, twin, before, recover, train, split)
        if not holdout.is_separate and holdout.data_size == len(trainer.eval_dataset) and asked.metric is None:
            ours = by_first(partial(split.value_of_plan, twin, before))
    if decide is None or asked.metric is None:
        own = own_number(trainer, search, before, is_one_point=settings.is_one_point, ours=ours)
    if own is not None and asked.metric is None and holdout is not None:
        if asked.is_condition:
            return _nothing(before, own.reason)
        decide, holdout = None, NotCertifiable(own.reason)
    if decide is None:
        if recover is not None:
            logger.warning("HeadPruneCallback: the pruned model does not train on, since nothing could test it then.")
        allowed = search.max_drop if own is None else own.max_drop
        source = metric_source(trainer, search, is_own=own is not None)
        twin = source.model or plain_copy(model_of(trainer))
        decide = by_metric(source, allowed, before)
        _remember(trainer)
    batches = list(trainer_compat.scoring_batches(trainer, CALIBRATION, trainer.args.seed))
    losses = (trainer_compat.summed_loss(trainer, batch) for batch in batches)
    several = number_of_processes() > 1
    how: Any = {"uniform": settings.uniform, "over_processes": several, "runs": _runs(trainer, twin, batches)}
    return walk_down(model_of(trainer), before, losses, decide, **how), holdout


def _nothing(before: PruningPlan, reason: str) -> tuple[Found, NotCertifiable]:
    """Returns what is pruned where a confidence was asked for and nothing can be certified: nothing."""
    words = f"{reason}. Nothing was pruned, since confidence=... prunes only what is certified"
    logger.warning("HeadPruneCallback: %s.", words)
    return Found(RefittedPlan(before)), NotCertifiable(words)


def _cut_to_size(trainer: Trainer, settings: Settings, before: PruningPlan, recover: Recover) -> Found:
    """Returns what a budget of size keeps of the trained model, trained on."""
    twin = plain_copy(model_of(trainer))
    asked = settings.cut_of(anatomy_of(twin), twin)
    batches = list(trainer_compat.scoring_batches(trainer, CALIBRATION, trainer.args.seed))
    losses = (trainer_compat.summed_loss(trainer, batch) for batch in batches)
    over_processes = number_of_processes() > 1
    found = choose(model_of(trainer), asked, before, losses, over_processes=over_processes)
    plan, refit = from_first(found)
    runs = _runs(trainer, twin, batches)
    refit = refit if runs is None else RefitInOrder(refit, plan, before, runs)
    return Found(recovered(twin, RefittedPlan(plan, refit), recover))


def _runs(trainer: Trainer, twin: Any, batches: list[Any]) -> Runs | None:
    """Returns what refits in order; None in several processes, which would each do all of it."""
    if number_of_processes() > 1:
        return None
    return Runs(twin, [partial(trainer_compat.run_on, trainer, batch) for batch in batches])


def _search(trainer: Trainer, settings: Settings, splits: Splits, learned: Learned, *, is_own: bool) -> Found:
    search = settings.measured
    source = metric_source(trainer, search, splits.searched, is_own=is_own, refits=True)
    _remember(trainer, splits.searched)
    job = Job(
        model_of(trainer),
        learned.plan,
        source,
        search,
        splits.holdout,
        restorable=learned.restorable,
        head_scores=learned.head_scores,
        journal=Path(trainer.args.output_dir, JOURNAL_NAME),
        uniform=settings.uniform,
        restarts=True,
        progress=not trainer.args.disable_tqdm,
    )
    return find(job)


def _remember(trainer: Trainer, searched: Any = None) -> None:
    """Lets the model remember the examples that it is chosen by: they can certify nothing from now on."""
    for dataset in trainer_compat.evaluation_sets(trainer) if searched is None else [searched]:
        if not trainer_compat.is_stream(dataset):
            remember_examples_(model_of(trainer), search=dataset)


def _name_of(reference: PruningPlan) -> str:
    """Says what the trained model is that a pruned one is compared with."""
    closed = reference.num_removed_heads or reference.num_removed_ffn
    return "the model that training left, before the search" if closed else "the trained model before pruning"
