"""The promise about unseen data: its split is held back before training, and used once, after the search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_headprune._distributed import from_first
from hf_headprune._seen_splits import seen_by
from hf_headprune.callback import search_metric, trainer_compat
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certify import certify, certify_path, furthest_within
from hf_headprune.guarantee.claim import METHODS, Metric
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.planner import Expectation, promise_in_words
from hf_headprune.guarantee.scored import CertificationData, ScoredSplit
from hf_headprune.guarantee.scoring import Batching
from hf_headprune.guarantee.sequence import milestones
from hf_headprune.guarantee.splits import SplitSettings, ThreeWaySplit, split_known
from hf_headprune.refit.plans_between import plans_between
from hf_headprune.search.settings import REPORT
from hf_headprune.shrink.surgery import prune_model_

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from transformers import Trainer

    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.path import CertifiedPath
    from hf_headprune.plan import PruningPlan
    from hf_headprune.search.results import PlanSearchResult
    from hf_headprune.search.settings import AStarSearch

MILESTONES = 5
MEASURED = 20  # of the plans on the way, so that as many as MILESTONES of them keep what the search was asked to keep
# The searched split flatters, so the search aims higher than what is to be certified.
SEARCHED_SHARE = 0.5
REPORTED_CONFIDENCE = 0.95
LEAST_EXAMPLES = 200  # with fewer, a half of them shows next to nothing, and the other half is missed by the search


@dataclass(frozen=True)
class ChosenPlan:
    """The plan that is cut: the last one on the way to what the search found that the unseen examples allow.

    Attributes:
        plan: What training kept, where they allow no smaller one.
        path: What was tested, where only what is certified is cut.
        candidates: Plans on the way among which the unseen examples chose.
        has_certificate: Whether there is anything to say: the plan removes something that training kept.
    """

    plan: PruningPlan
    path: CertifiedPath | None
    candidates: int
    has_certificate: bool


@dataclass(frozen=True)
class NoPromise:
    """Why nothing is said about unseen data.

    Attributes:
        reason: In words.
    """

    reason: str

    def in_words(self) -> str:
        """Says so, before training and after it."""
        return f"Certificate: none, since {self.reason}."


@dataclass(frozen=True)
class Promise:
    """What shall hold on unseen data, and the examples to show it on.

    Attributes:
        search_split: Examples for the search.
        data: Examples that are looked at once, after the search.
        metric: What models are compared by.
        max_drop: Drop of it that is to be excluded.
        confidence: Of the statement.
        is_condition: Whether only what is certified may be cut.
        has_own_split: Whether the examples were given, rather than held back from `eval_dataset`.
    """

    search_split: Any
    data: CertificationData
    metric: Metric
    max_drop: float
    confidence: float
    is_condition: bool
    has_own_split: bool

    def rehearse(self, model: Any) -> None:
        """Lets fail before training what would fail after it.

        Raises:
            DataLeakError: Examples were seen.
            InvalidSettingError: A number is out of range, or an example can't be scored.
        """
        split = ScoredSplit(self.data, self.metric, model)
        split.claim(self.max_drop, self.confidence, ledger=None, seed=0)
        if self.is_condition or self.has_own_split:  # others are read with the examples of the search
            split.rehearse(model)

    def searched(self, search: AStarSearch) -> AStarSearch:
        """Returns the settings that the search is run with."""
        if not self.is_condition:
            return search
        return replace(search, max_drop=SEARCHED_SHARE * search.max_drop)

    def in_words(self) -> str:
        """Says before training what the examples can promise."""
        among = 1 if self.is_condition else MILESTONES
        expected = Expectation(alpha=round(1.0 - self.confidence, 12), chosen_among=among)
        count = len(self.data.dataset)
        if self.metric.kind == "binary":
            words = f"To be certified: {promise_in_words(count, self.max_drop, expected)}"
        else:
            words = (
                f"To be certified: the drop of {self.metric.name} on {count:,} examples, {100 * self.confidence:g} % "
                f"confidence ({METHODS[self.metric.kind]})."
            )
        if self.data.steered_training:
            words += (
                " Training will choose by evaluations on all of eval_dataset, these examples among them, and the "
                "certificate will say so; HeadPruneCallback(certification_dataset=...) keeps examples out of it."
            )
        return words

    def choose(
        self,
        trainer: Trainer,
        model: Any,
        learned: PruningPlan,
        result: PlanSearchResult,
        scores: np.ndarray | None,
        measure: Callable[[PruningPlan], float],
    ) -> ChosenPlan:
        """Returns the furthest plan on the way to what the search found that both splits allow.

        Plans on the way there from what training kept are tried, the least pruned first, but for those that miss on the
        search split what the search had to keep. One is allowed if it is certified, or, where certificates are only
        reported, if it is seen to lose no more than is allowed on the unseen examples.

        Args:
            trainer: Its first process tries them; the others wait for the outcome.
            model: A copy of the trained model, not cut.
            learned: What training kept: what the others are compared with.
            result: Of the search on the search split.
            scores: Importance of the heads, `(num_heads,)`, or None.
            measure: Returns the metric of a plan on the search split, higher is better; every process calls it.
        """
        if result.plan == learned:
            return ChosenPlan(learned, None, 0, has_certificate=False)
        # Rounding may differ between devices: what the first process ranked and measured goes for all.
        between = from_first(milestones(plans_between(learned, result.plan, result.refit, scores), MEASURED))
        holding = [plan for plan in between if plan == result.plan or result.is_feasible(measure(plan))]
        plans = milestones(from_first(holding), MILESTONES)
        path, last = None, None
        if trainer.is_world_process_zero():
            where: dict[str, Any] = {"reference": learned, "refit": result.refit}
            if self.is_condition:
                path = certify_path(model, plans, self.data, self.metric, self.max_drop, self.confidence, **where)
                last = path.certified_index
            else:
                last = furthest_within(model, plans, self.data, self.metric, self.max_drop, **where)
        path, last = from_first((path, last))
        chosen = learned if last is None else plans[last]
        return ChosenPlan(chosen, path, len(plans), has_certificate=last is not None)

    def nothing_certified(self, chosen: ChosenPlan) -> str:
        """Says that there is no certificate, and why."""
        if not chosen.candidates:
            return NoPromise("the search removed nothing that training kept").in_words()
        if not self.is_condition:
            return (
                "Certificate: none. The least pruned of the plans tried on the way to what the search found was seen "
                f"to lose more than {100 * self.max_drop:g} % on {len(self.data.dataset):,} examples that the search "
                "has not seen, so exactly what training kept was cut. A larger eval_dataset shows more."
            )
        return (
            "Certificate: none. No plan smaller than what training kept could be certified to lose less than "
            f"{100 * self.max_drop:g} % on {len(self.data.dataset):,} unseen examples, so exactly what training kept "
            "was cut. A larger eval_dataset or a larger max_drop can certify more."
        )

    def certify(self, model: Any, learned: PruningPlan, pruned: Any, chosen: ChosenPlan) -> Certificate:
        """Writes the certificate of the cut model.

        Args:
            model: A copy of the trained model, not cut; it is cut to what training kept.
            learned: What training kept.
            pruned: A copy of the cut model.
            chosen: From `choose`.
        """
        prune_model_(model, learned)
        among = 1 if chosen.path is not None else chosen.candidates
        claim = self.metric, self.max_drop, self.confidence
        return certify(model, pruned, self.data, *claim, path=chosen.path, chosen_among=among)


def promise_of(
    trainer: Trainer, search: AStarSearch, unseen: Any = None, metric: Metric | None = None
) -> Promise | NoPromise | None:
    """Finds the examples that a certificate will be made on, before training.

    Without a split of their own, half of `eval_dataset` is held back from the search; examples that are in the training
    set too are left out of both halves.

    Args:
        trainer: With a training and an evaluation data set.
        search: Its `confidence` says what is asked for.
        unseen: A split of its own for the certificate, as it is or as `CertificationData`, or None.
        metric: What the certificate is about; None for the accuracy of a single-label classifier.

    Returns:
        The promise; or why there can't be one, where it is only to be reported; or None where none was asked for.

    Raises:
        InvalidSettingError: Nothing says how to score examples, there are too few, or they are given for a certificate
            that nobody asks for.
        DataLeakError: Examples given for the certificate are in the training or the evaluation set.
    """
    if search.confidence is None:
        if unseen is not None:
            raise InvalidSettingError(
                "HeadPruneCallback(certification_dataset=...): AStarSearch(confidence=None) certifies nothing. Leave "
                "one of the two out."
            )
        return None
    is_condition = search.confidence != REPORT
    if metric is None and not search_metric.searches_accuracy(trainer, search.metric):
        if not is_condition and unseen is None:
            return NoPromise(
                "without a certification_metric the callback certifies the accuracy of single-label classifiers only"
            )
        raise InvalidSettingError(
            f"AStarSearch(confidence={search.confidence!r}): without a metric of its own a certificate is about the "
            f"accuracy of a single-label classifier, received a {type(trainer.model).__name__} and metric "
            f"{search.metric!r}. Pass HeadPruneCallback(certification_dataset=..., certification_metric=Metric(...)), "
            "or confidence=None."
        )
    data, searched = _data_of(trainer, unseen), trainer.eval_dataset
    if unseen is None:
        halves = _halves(trainer, data.train, least=0 if is_condition else LEAST_EXAMPLES)
        if isinstance(halves, NoPromise):
            return halves
        searched, data = halves.search, replace(data, dataset=halves.certify)
    if data.search is None:
        data = replace(data, search=ExampleFingerprints.of(searched))
    confidence = REPORTED_CONFIDENCE if search.confidence == REPORT else search.confidence
    owned, metric = unseen is not None, metric or Metric()
    promise = Promise(searched, data, metric, search.max_drop, confidence, is_condition, has_own_split=owned)
    promise.rehearse(trainer.model)
    return promise


def _data_of(trainer: Trainer, unseen: Any) -> CertificationData:
    """Returns examples with what the Trainer says of them, as far as the user doesn't: training set and batches."""
    data = unseen if isinstance(unseen, CertificationData) else CertificationData(unseen)
    if data.train is None and not trainer_compat.is_stream(trainer.train_dataset):
        data = replace(data, train=ExampleFingerprints.of(trainer.train_dataset))
    if data.batching == Batching():
        collate = trainer.get_eval_dataloader().collate_fn
        batching = Batching(data_collator=collate, batch_size=trainer.args.per_device_eval_batch_size)
        data = replace(data, batching=batching)
    return data


def known_when_training_begins(promise: Promise | NoPromise, trainer: Trainer) -> Promise | NoPromise:
    """Returns the promise with what all callbacks and settings tell: whether training will choose by its examples."""
    if not isinstance(promise, Promise) or promise.has_own_split or not trainer_compat.chooses_by_evaluation(trainer):
        return promise
    return replace(promise, data=replace(promise.data, steered_training=True))


def _halves(trainer: Trainer, train: ExampleFingerprints | None, *, least: int) -> ThreeWaySplit | NoPromise:
    """Splits `eval_dataset` without what the training set holds too, if at least so many examples are there."""
    dataset = trainer.eval_dataset
    if len(dataset) < least:
        return _too_few(len(dataset))
    prints = ExampleFingerprints.of(dataset)
    if least and any(prints.shares_with(ExampleFingerprints.of(seen)) for _, seen in seen_by(trainer.model)):
        return NoPromise("an earlier search of this model has seen examples of eval_dataset")
    if least and train is not None and not prints.compared_with(train):
        return NoPromise("the examples of eval_dataset can't be compared with those of train_dataset")
    count = len(prints) - (0 if train is None else len(prints.shared_with(train)))
    if count < least:
        return _too_few(count)
    return split_known(dataset, prints, train, SplitSettings(seed=trainer.args.seed, on_leak="drop"))


def _too_few(count: int) -> NoPromise:
    return NoPromise(
        f"{count} examples in eval_dataset are too few to hold half of them back from the search (at least "
        f"{LEAST_EXAMPLES}, those left out that train_dataset holds too)"
    )
