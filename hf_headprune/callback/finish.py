"""After training: find what to prune, prune, certify, report."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hf_headprune._certificate_file import CERTIFICATE_NAME, attach_certificate_
from hf_headprune._distributed import number_of_processes
from hf_headprune._seen_splits import remember_seen_
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import trainer_compat
from hf_headprune.callback.final_checkpoint import drop_spare_checkpoint, save_spare_checkpoint, spare_folder
from hf_headprune.callback.search_metric import metric_source
from hf_headprune.latency import measure_latency
from hf_headprune.masking import masked, plain_copy
from hf_headprune.pipeline.cost_path import CALIBRATION, by_metric, by_test, walk_down
from hf_headprune.pipeline.holdout import Holdout
from hf_headprune.pipeline.result import PruningResult
from hf_headprune.pipeline.run import Found, Job, certified, find, unseen_change
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.publish.report import PruningReport
from hf_headprune.search.settings import AStarSearch
from hf_headprune.shrink.surgery import prune_model_

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.callback.certification import Splits
    from hf_headprune.callback.parts import Learned, LearnedParts
    from hf_headprune.callback.settings import Settings

logger = logging.getLogger(__name__)

JOURNAL_NAME = "headprune_search.jsonl"
REPORT_NAME = "headprune_report.json"


def finish(
    trainer: Trainer,
    parts: LearnedParts,
    settings: Settings,
    splits: Splits,
    *,
    reference: Any,
    train_seconds: float,
) -> PruningResult:
    """Turns the trained model into the pruned one, in place, and returns what is known about it.

    Args:
        trainer: Its model is trained; what learned is still attached.
        parts: What learned.
        settings: Of the run, resolved.
        splits: Examples of the search and of the certificate.
        reference: Model that the certificate compares with; None for the trained model before the search.
        train_seconds: Wall time that training took.
    """
    model: Any = trainer.model
    parts.warn_of_early_end(trainer.state.max_steps)  # before a spare checkpoint says that all steps were seen
    save_spare_checkpoint(trainer, parts)
    learned = parts.take_off(trainer)
    anatomy = anatomy_of(model)
    found = _find(trainer, settings, splits, learned)
    dense = plain_copy(model)
    prune_model_(model, found.pruned)
    pruned = plain_copy(model)
    latency = None if settings.latency is None else measure_latency(dense, pruned, settings.latency)
    certificate, words = None, ""
    against = "the model passed as reference" if reference is not None else _against(learned.plan)
    if trainer.is_world_process_zero():
        if reference is None and isinstance(splits.holdout, Holdout):
            prune_model_(dense, learned.plan)
        compared = dense if reference is None else reference
        certificate, words = certified(splits.holdout, found.chosen, compared, pruned, against)
        if certificate is not None:
            attach_certificate_(model, certificate.to_json())
    report = PruningReport.of(
        found.pruned.plan,
        anatomy,
        unseen=unseen_change(certificate, against),
        metric=found.metric,
        latency=latency,
        effort=replace(found.effort, training_seconds=train_seconds),
    )
    return PruningResult(
        found.pruned.plan,
        found.pruned.refit,
        reference=learned.plan,
        report=replace(report, certificate=words),
        certificate=certificate,
        path=None if found.chosen is None else found.chosen.path,
        search=found.search,
    )


def write_results(trainer: Trainer, result: PruningResult) -> None:
    """Prints the report and writes it and the certificate into `output_dir`; then the spare checkpoint may go.

    What can't be written is logged as an error: it must not cost the training that is over.
    """
    if trainer.is_world_process_zero():
        tqdm.write(result.report.to_text())
        texts = {REPORT_NAME: result.report.to_json()}
        if result.certificate is not None:
            texts[CERTIFICATE_NAME] = result.certificate.to_json() + "\n"
        folder = Path(trainer.args.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                staged = folder / f"{name}.part"
                staged.write_text(text, encoding="utf-8")
                staged.replace(folder / name)
        except OSError as error:
            logger.error(
                "HeadPruneCallback: the report could not be written into %s (%s). The model is pruned; the report and "
                "the certificate are in the callback's attributes, and trainer.save_model() works as ever. The last "
                "checkpoint is kept.",
                folder,
                error,
            )
            return
    drop_spare_checkpoint(trainer, spare_folder(trainer))


def _find(trainer: Trainer, settings: Settings, splits: Splits, learned: Learned) -> Found:
    """Returns what is pruned: by an A* search, in the order of removal costs, or exactly what training chose."""
    if settings.search is not None:
        return _search(trainer, settings.search, splits, learned)
    if settings.max_drop is None:
        return Found(RefittedPlan(learned.plan))
    model = plain_copy(trainer.model)
    batches = trainer_compat.scoring_batches(trainer, CALIBRATION, trainer.args.seed)
    if isinstance(splits.holdout, Holdout):
        decide = by_test(splits.holdout, model, learned.plan)
    else:
        source = metric_source(trainer, AStarSearch(max_drop=settings.max_drop), splits.searched)
        decide = by_metric(source, settings.max_drop, learned.plan)
    losses = (trainer_compat.summed_loss(trainer, batch) for batch in batches)
    with masked(trainer.model, learned.plan):
        return walk_down(trainer.model, learned.plan, losses, decide, over_processes=number_of_processes() > 1)


def _search(trainer: Trainer, search: AStarSearch, splits: Splits, learned: Learned) -> Found:
    source = metric_source(trainer, search, splits.searched)
    remember_seen_(trainer.model, search=trainer.eval_dataset if splits.searched is None else splits.searched)
    job = Job(
        trainer.model,
        learned.plan,
        source,
        search,
        splits.holdout,
        restorable=learned.restorable,
        head_scores=learned.head_scores,
        journal=Path(trainer.args.output_dir, JOURNAL_NAME),
        restarts=True,
        progress=not trainer.args.disable_tqdm,
    )
    return find(job)


def _against(learned: PruningPlan) -> str:
    closed = learned.num_removed_heads or learned.num_removed_ffn
    return "the model that training left, before the search" if closed else "the trained model before pruning"
