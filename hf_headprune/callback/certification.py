"""Finds, before training, the examples that a certificate will be made on, and what it compares with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_headprune._seen_splits import seen_by
from hf_headprune.callback import search_metric, trainer_compat
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.examples import ChangingExamplesError, ExampleFingerprints, rows_of
from hf_headprune.guarantee.scored import CertificationData, with_windows
from hf_headprune.guarantee.splits import SplitSettings, split_known
from hf_headprune.pipeline.cost_path import DENSITIES, can_decide
from hf_headprune.pipeline.holdout import CANDIDATES, LEAST_EXAMPLES, Holdout, NotCertifiable
from hf_headprune.pipeline.recovery import halved
from hf_headprune.tasks.batches import Batching

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.callback.settings import Settings


@dataclass(frozen=True)
class Certification:
    """What the user passed for the certificate.

    Attributes:
        dataset: Examples of its own, as they are or as `CertificationData`; None holds some of `eval_dataset` back.
        metric: What the certificate is about; None for the metric that decides.
        reference: Model that the pruned one is compared with; None for the trained model before the search.
        reference_name: What it is, in words.
        required_by: Name of the argument that asks for a certificate, so that training without one would not be what
            was asked for; None where the defaults ask.
        is_condition: Whether only what is certified may be pruned.
    """

    dataset: Any = None
    metric: Metric | None = None
    reference: Any = None
    reference_name: str = "the model passed as reference"
    required_by: str | None = None
    is_condition: bool = False


@dataclass(frozen=True)
class Splits:
    """How the labelled examples are used.

    Attributes:
        searched: Examples of the search; None for the whole `eval_dataset`.
        holdout: Examples of the certificate, or why there are none; None where no certificate was asked for.
    """

    searched: Any = None
    holdout: Holdout | NotCertifiable | None = None


def splits_of(trainer: Trainer, settings: Settings, asked: Certification) -> Splits:
    """Decides which examples the search sees and which certify, before training.

    Without examples of its own, the certificate is made on half of `eval_dataset`, or on all of it where nothing is
    searched; examples that are in the training set too are left out.

    Raises:
        InvalidSettingError: A certificate was asked for, and nothing says how to score examples or what to compare
            with, or there are too few; or examples are given for one that was not asked for.
        DataLeakError: Examples given for the certificate are in the training or the evaluation set.
    """
    if settings.confidence is None:
        if asked.dataset is not None:
            raise InvalidSettingError(
                "HeadPruneCallback(certification_dataset=..., confidence=None) certifies nothing. Leave one of the two "
                "out."
            )
        return Splits()
    if (why_not := _why_not(trainer, settings, asked)) is not None:
        reason, advice = why_not
        if asked.dataset is not None:
            raise InvalidSettingError(f"HeadPruneCallback(certification_dataset=...): {reason}. {advice}.")
        return Splits(holdout=_refused_if_required(NotCertifiable(reason), asked, advice))
    data, searched = _data_of(trainer, asked.dataset), trainer.eval_dataset
    if asked.dataset is None:
        found = _held_back(trainer, settings, data.train)
        if isinstance(found, NotCertifiable):
            return Splits(holdout=_refused_if_required(found, asked))
        searched, data = found[0], replace(data, dataset=found[1])
    if data.search is None:  # the order of removal costs has looked at training examples alone
        seen = data.train if settings.search is None else ExampleFingerprints.of(searched)
        data = replace(data, search=seen)
    data = with_windows(data)
    drop = settings.certified_drop
    confidence = halved(settings.confidence) if settings.recovers and settings.follows else settings.confidence
    required = "HeadPruneCallback" if asked.is_condition else None
    metric = Metric.of(
        asked.metric or _scored(trainer, settings), trainer_compat.model_of(trainer), where="HeadPruneCallback"
    )
    decides = settings.follows and can_decide(metric, data, drop, confidence, required_by=required)
    holdout = Holdout(
        data,
        metric,
        drop,
        confidence,
        is_condition=decides,
        is_separate=asked.dataset is not None,
        num_candidates=_candidates(settings),
    )
    holdout.rehearse(trainer_compat.model_of(trainer), asked.reference)
    return Splits(searched, holdout)


def _refused_if_required(
    unable: NotCertifiable, asked: Certification, advice: str = "Pass labelled examples that training does not see"
) -> NotCertifiable:
    """Returns why there is no certificate, unless one was asked for.

    Raises:
        InvalidSettingError: One was.
    """
    if asked.required_by is None:
        return unable
    raise InvalidSettingError(
        f"HeadPruneCallback({asked.required_by}=...) asks for a certificate, which can't be made: {unable.reason}. "
        f"{advice}, or leave {asked.required_by} out."
    )


def _candidates(settings: Settings) -> int:
    """Returns how many plans the examples may choose among."""
    if not settings.follows:
        return 1
    return len(DENSITIES) + settings.recovers if settings.search is None else CANDIDATES


def known_when_training_begins(splits: Splits, trainer: Trainer) -> Splits:
    """Returns the splits with what all callbacks and settings tell: whether training will choose by the holdout."""
    holdout = splits.holdout
    if not isinstance(holdout, Holdout) or holdout.is_separate or not trainer_compat.chooses_by_evaluation(trainer):
        return splits
    return replace(splits, holdout=replace(holdout, data=replace(holdout.data, steered_training=True)))


def _why_not(trainer: Trainer, settings: Settings, asked: Certification) -> tuple[str, str] | None:
    """Returns why no certificate can be made, and what to do about it; None where one can."""
    if not (settings.follows or settings.cuts_to_size) and asked.reference is None:
        return (
            "training and pruning are one run, so there is no model before pruning to compare with",
            "Pass HeadPruneCallback(reference=...), a dense model that was fine-tuned alike",
        )
    if trainer.eval_dataset is None and asked.dataset is None:
        return "there are no unseen labelled examples", "Pass Trainer(eval_dataset=...) or certification_dataset="
    if not 0 < settings.certified_drop < 1:
        return f"max_drop={settings.certified_drop:g} is no drop that can be certified", "Pass one between 0 and 1"
    if asked.metric is None and _scored(trainer, settings) is None:
        return (
            f"nothing scores single examples of a {type(trainer.model).__name__} by the metric that is followed",
            "Pass labelled examples, or certification_dataset= with certification_metric=Metric(...)",
        )
    return None


def _scored(trainer: Trainer, settings: Settings) -> str | None:
    """Returns the metric by which single examples are scored, or None."""
    return search_metric.scored_metric(trainer, None if settings.search is None else settings.search.metric)


def _data_of(trainer: Trainer, unseen: Any) -> CertificationData:
    """Returns examples with what the Trainer says of them, as far as the user doesn't: training set and batches."""
    data = unseen if isinstance(unseen, CertificationData) else CertificationData(unseen)
    if data.train is None and not trainer_compat.is_stream(trainer.train_dataset):
        data = replace(data, train=ExampleFingerprints.of_training(trainer.train_dataset))
    if data.batching == Batching() and trainer.eval_dataset is not None:
        collate = trainer_compat.eval_loader(trainer).collate_fn
        batching = Batching(trainer.processing_class, collate, trainer.args.per_device_eval_batch_size)
        data = replace(data, batching=batching)
    return data


def _held_back(
    trainer: Trainer, settings: Settings, train: ExampleFingerprints | None
) -> tuple[Any, Any] | NotCertifiable:
    """Returns the examples of a search and those of the certificate, without any that the training set holds too.

    Without a search all of them certify: what they test was put in order without looking at them.
    """
    dataset = trainer.eval_dataset
    prints = _prints_of(dataset)
    if isinstance(prints, NotCertifiable):
        return prints
    if any(prints.shares_with(ExampleFingerprints.of(seen)) for _, seen in seen_by(trainer_compat.model_of(trainer))):
        return NotCertifiable("an earlier search of this model has seen examples of eval_dataset")
    if train is not None and not prints.compared_with(train):
        return NotCertifiable("the examples of eval_dataset can't be compared with those of train_dataset")
    leaked = set() if train is None else set(prints.shared_with(train))
    left = [index for index in range(len(prints)) if index not in leaked]
    least = LEAST_EXAMPLES if settings.search is not None else 1
    if len(left) < least:
        return _too_few(len(left), least)
    if settings.search is None:
        return dataset if not leaked else rows_of(dataset, left), rows_of(dataset, left)
    halves = split_known(dataset, prints, train, SplitSettings(seed=trainer.args.seed, on_leak="drop"))
    return halves.search, halves.certify


def _prints_of(dataset: Any) -> ExampleFingerprints | NotCertifiable:
    """Returns the fingerprints of the examples of `eval_dataset`, or why they can't be told apart."""
    if trainer_compat.is_stream(dataset) or isinstance(dataset, dict):
        return NotCertifiable("eval_dataset is no single data set with a length")
    try:
        return ExampleFingerprints.of(dataset)
    except ChangingExamplesError:
        return NotCertifiable("examples of eval_dataset differ each time they are read, as after a random transform")


def _too_few(count: int, least: int) -> NotCertifiable:
    if least == 1:
        return NotCertifiable("all examples of eval_dataset are in train_dataset, too")
    return NotCertifiable(
        f"eval_dataset has {count} examples outside of train_dataset, too few to hold some back (at least {least})"
    )
