"""The holdout: examples that neither training nor search has seen, used once, to decide how much is pruned."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from hf_headprune._distributed import by_first, from_first
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certificate import DENSE
from hf_headprune.guarantee.certify import certify, certify_path, furthest_within
from hf_headprune.guarantee.claim import METHODS, Metric
from hf_headprune.guarantee.examples import ExampleFingerprints
from hf_headprune.guarantee.power import PowerAssumptions, describe_power
from hf_headprune.guarantee.scored import CertificationData, ScoredSplit, independent, with_windows
from hf_headprune.guarantee.sequence import evenly_spaced
from hf_headprune.guarantee.wording import points as in_points
from hf_headprune.masking import plain_copy
from hf_headprune.plan import RefittedPlan, refitted
from hf_headprune.refit.plans_between import plans_along, steps_between
from hf_headprune.refit.projections import RefitInOrder
from hf_headprune.shrink.surgery import copy_to_run, prune_model_

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from hf_headprune.anatomy import Site
    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.path import CertifiedPath
    from hf_headprune.plan import PlanOrResult, PruningPlan
    from hf_headprune.search.results import PlanSearchResult
    from hf_headprune.search.settings import AStarSearch
    from hf_headprune.tasks.batches import Batching

logger = logging.getLogger(__name__)

AUTO = "auto"
DEFAULT_DROP = 0.01
DECIDING = 0.75  # confidence with which a plan must be shown to keep its metric, where the user names none
REPORTING = 0.95  # confidence of a certificate that decides nothing
CANDIDATES = 5
LEAST_EXAMPLES = 200  # of a split of which half is held back: fewer show next to nothing
MEASURED = 20  # of the plans on the way, so that as many as CANDIDATES of them meet the search's constraint
LARGE = 0.1  # share of a metric that a drop takes, above which that is said
SEARCHED_SHARE = 0.5  # of the drop that is to be certified: the metric on the searched examples is optimistic


def allows_anything(name: str, value: float, max_drop: float) -> str | None:
    """Returns, in words, that a drop leaves nothing of a metric from 0 to 1, or None; warns where it takes much of it.

    Args:
        name: Of the metric, higher is better.
        value: Of the model before pruning.
        max_drop: That is allowed, absolute.
    """
    if not 0 <= value < max_drop / LARGE:
        return None
    smaller = f"a hundredth of it is max_drop={value / 100:.2g}" if value else "no drop can be told from none"
    whole = f"max_drop={max_drop:g} is absolute, and the {name} before pruning is {value:.3g}"
    if value > max_drop:
        logger.warning("%s, so %.0f %% of it may be lost; %s.", whole, 100 * max_drop / value, smaller)
        return None
    return f"{whole}, so it allows anything; {smaller}"


def pruned_copy(model: Any, plan: PlanOrResult) -> Any:
    """Returns a copy of a model, pruned to a plan: it runs as fast as the file that will be saved."""
    _make_refit(plan)
    return prune_model_(plain_copy(model), plan)


def as_pruned(model: Any, plan: PlanOrResult) -> AbstractContextManager[Any]:
    """Opens a plan for a test as a pruned copy; see `certify_path`."""
    _make_refit(plan)
    return nullcontext(copy_to_run(model, plan))


def _make_refit(plan: PlanOrResult) -> None:
    refit = refitted(plan).refit
    if isinstance(refit, RefitInOrder):  # which takes a copy of its own, and lets it go
        refit.fit()


@dataclass(frozen=True)
class Chosen:
    """The plan that is pruned: the smallest candidate that the holdout allows.

    Attributes:
        plan: The reference where the holdout allows no smaller one.
        path: What was tested, where only what is certified is pruned.
        num_candidates: Plans on the way to the search's result among which the holdout chose.
        has_certificate: Whether the plan removes something, so that there is something to certify.
        reason: Why nothing was tested, or None.
    """

    plan: PruningPlan
    path: CertifiedPath | None = None
    num_candidates: int = 0
    has_certificate: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Allowed:
    """What the holdout allows of plans that are tested in their order.

    Attributes:
        index: Of the last plan that passes; None where the first one fails.
        metrics: On the holdout, of what they are compared with and of each plan that was measured.
        path: The tests, where only what is certified may be pruned.
    """

    index: int | None
    metrics: tuple[float, ...]
    path: CertifiedPath | None = None

    @property
    def passed(self) -> int:
        """Number of plans that passed."""
        return 0 if self.index is None else self.index + 1


@dataclass(frozen=True)
class NotCertifiable:
    """Why nothing can be said about unseen data.

    Attributes:
        reason: In words.
    """

    reason: str

    def in_words(self) -> str:
        """Says so, before training and after it."""
        return f"Certificate: none, since {self.reason}."


@dataclass(frozen=True)
class Asked:
    """What a call without a search is asked to show on unseen examples; defaults where a setting was left out.

    Attributes:
        where: Name of the public function.
        reference: Model that is compared with, or None.
        metric: Of the comparison, or None.
        max_drop: Drop that is to be excluded, or None.
        confidence: Of the certificate, or "auto".
    """

    where: str
    reference: Any
    metric: Any
    max_drop: float | None
    confidence: float | Literal["auto"]

    def check_left_out(self) -> None:
        """Sees that nothing was asked for.

        Raises:
            InvalidSettingError: Something was, which would have no effect.
        """
        confidence = None if self.confidence == AUTO else self.confidence
        settings = {"reference": self.reference, "metric": self.metric, "max_drop": self.max_drop}
        given = [name for name, value in {**settings, "confidence": confidence}.items() if value is not None]
        if given:
            raise InvalidSettingError(
                f"{self.where}: {' and '.join(given)} {'are' if len(given) > 1 else 'is'} about a certificate, and "
                "without certify= there is none. Pass certify=, examples that nothing has seen, or leave it out."
            )


@dataclass(frozen=True)
class Holdout:
    """Examples that nothing has seen, and what must hold on them.

    Attributes:
        data: The examples, and how they are read; looked at once, after the search.
        metric: What models are compared by.
        max_drop: Drop that is to be excluded, absolute: 0.01 is one percentage point.
        confidence: Of the certificate.
        is_condition: Whether only what is certified may be pruned.
        is_separate: Whether the examples were given, rather than held back from the searched data set.
        num_candidates: Plans among which the examples choose, where they only report.
        reference: Model that plans are compared with, alone or with rows of its own; None for the model before pruning.
    """

    data: CertificationData
    metric: Metric
    max_drop: float
    confidence: float
    is_condition: bool
    is_separate: bool = True
    num_candidates: int = CANDIDATES
    reference: Any = None

    @classmethod
    def asked_for(
        cls, certify: Any, model: Any, asked: Asked, batching: Batching, *, train: Any, is_condition: bool
    ) -> Holdout | None:
        """Returns a holdout that has been rehearsed, or None where nothing is to be certified.

        Args:
            certify: Labelled examples, `CertificationData`, or None.
            model: What is to be pruned.
            asked: What is to be shown.
            batching: How examples become batches, where the data do not say so themselves.
            train: Examples that the choice is made by, where the data name no training set themselves.
            is_condition: See the attributes.

        Raises:
            DataLeakError: Examples were seen by training or search.
            InvalidSettingError: A setting is out of range, or is about a certificate and there is none.
        """
        if certify is None:
            asked.check_left_out()
            return None
        data = certify if isinstance(certify, CertificationData) else CertificationData(certify, batching=batching)
        data = data if data.train is not None else replace(data, train=ExampleFingerprints.of_training(train))
        data = with_windows(data)
        metric = Metric.of(asked.metric, model, where=asked.where)
        drop = DEFAULT_DROP if asked.max_drop is None else asked.max_drop
        level: Any = REPORTING if asked.confidence == AUTO else asked.confidence
        found = cls(data, metric, drop, level, is_condition=is_condition, reference=asked.reference)
        found.rehearse(model)
        return found

    def rehearse(self, model: Any, reference: Any = None) -> None:
        """Lets fail before the work what would fail after it.

        Args:
            model: What is to be pruned.
            reference: Another model that the certificate compares with, or None.

        Raises:
            DataLeakError: Examples were seen by training or search.
            InvalidSettingError: A number is out of range, or an example can't be scored.
        """
        split = ScoredSplit(self.data, self.metric, model)
        split.claim(self.max_drop, self.confidence, ledger=None, seed=0)
        for scored in (model, reference, self.reference):
            if scored is not None:
                split.rehearse(scored)

    def searched(self, search: AStarSearch) -> AStarSearch:
        """Returns the settings that the search is run with: a smaller drop where it must be certified afterwards."""
        return replace(search, max_drop=SEARCHED_SHARE * search.max_drop) if self.is_condition else search

    def in_words(self) -> str:
        """Says before the work what the examples can certify."""
        assumptions = PowerAssumptions(alpha=round(1.0 - self.confidence, 12))
        candidates = 1 if self.is_condition else self.num_candidates
        count = independent(self.data)
        if self.metric.kind == "binary" and self.data.groups is None:
            words = f"To be certified: {describe_power(count, self.max_drop, assumptions, num_candidates=candidates)}"
        else:
            kind = "bounded" if self.metric.kind == "binary" else self.metric.kind
            noun = "examples" if self.data.groups is None else "groups of examples"
            words = (
                f"To be certified: the drop of {self.metric.name} on {count:,} {noun}, {100 * self.confidence:g} % "
                f"confidence ({METHODS[kind]})."
            )
        if self.data.steered_training:
            words += (
                " Training will choose by evaluations on all of eval_dataset, these examples among them, and the "
                "certificate will say so; HeadPruneCallback(certification_dataset=...) keeps examples out of it."
            )
        return words

    def choose(
        self,
        model: Any,
        reference: PruningPlan,
        result: PlanSearchResult,
        head_scores: np.ndarray | None,
        measure: Callable[[PruningPlan], float],
        *,
        ties: Sequence[Sequence[Site]] = (),
    ) -> Chosen:
        """Returns the smallest plan on the way to the search's result that both splits allow.

        Candidates are plans between the reference and the result, the largest first, that meet the search's constraint
        on the searched examples. One is allowed if it is certified, or, where certificates are only reported, if its
        metric on the holdout drops by at most `max_drop`.

        Args:
            model: The model before pruning; left unchanged. The first process runs it, the others wait.
            reference: What the candidates are compared with.
            result: Of the search.
            head_scores: Importance of the heads, `(num_heads,)`, or None.
            measure: Returns the metric of a plan on the searched examples, higher is better; every process calls it.
            ties: Sites that lose equally many units in each candidate.
        """
        if result.plan == reference:
            return Chosen(reference)
        # Rounding may differ between devices: what the first process ranked and measured goes for all.
        steps = steps_between(reference, result.plan, result.refit, head_scores, ties=ties)
        between = from_first(evenly_spaced(plans_along(reference, result.plan, steps), MEASURED))
        feasible = [plan for plan in between if plan == result.plan or result.is_feasible(measure(plan))]
        plans = evenly_spaced(from_first(feasible), CANDIDATES)
        allowed = self.last_allowed(model, [RefittedPlan(plan, result.refit) for plan in plans], reference)
        plan = reference if allowed.index is None else plans[allowed.index]
        return Chosen(plan, allowed.path, len(plans), has_certificate=allowed.index is not None)

    def read(self, model: Any, reference: PruningPlan) -> ScoredSplit:
        """Returns the examples as they are scored: reading them, and what they are compared with, is done once."""
        return ScoredSplit.of_plan(self.data, self.metric, model, reference)

    def last_allowed(
        self, model: Any, plans: list[RefittedPlan], reference: PruningPlan, split: ScoredSplit | None = None
    ) -> Allowed:
        """Tests plans in their order until one fails; the first process does so, the others wait.

        Args:
            model: The model before pruning; left unchanged.
            plans: The largest first.
            reference: What they are compared with.
            split: The examples, where they were read already.
        """

        def test() -> Allowed:
            claim = self.data if split is None else split, self.metric, self.max_drop
            options: Any = {"reference": reference if self.reference is None else self.reference, "opened": as_pruned}
            if not plans:
                return Allowed(None, ())
            if not self.is_condition:
                return Allowed(*furthest_within(model, plans, *claim, **options))
            path = certify_path(model, plans, *claim, self.confidence, **options)
            metrics = [path.dense_metric, *(step.metric for step in path.steps)]
            if path.dense_metric is None:  # of a few labels: only drops are known
                metrics = []
            return Allowed(path.certified_index, tuple(cast("list[float]", metrics)), path)

        return by_first(test)

    def allows_anything(self, model: Any, reference: PruningPlan, split: ScoredSplit | None = None) -> str | None:
        """Says so, as the function of that name, of the metric of what plans are compared with; see `last_allowed`."""
        if self.metric.kind not in ("binary", "bounded") or self.reference is not None:
            return None
        split = split or self.read(model, reference)
        if split.labelled is not None:  # of a few labels: only drops are known
            return None
        value = by_first(partial(split.value_of_plan, model, reference))
        return allows_anything(self.metric.name, value, self.max_drop)

    def nothing_certified(self, chosen: Chosen) -> str:
        """Says that there is no certificate, and why."""
        if chosen.reason is not None:
            return NotCertifiable(f"{chosen.reason}. Nothing was pruned").in_words()
        if not chosen.num_candidates:
            return NotCertifiable("there was no smaller plan to test").in_words()
        points = in_points(self.max_drop)
        is_whole = not (chosen.plan.num_removed_heads or chosen.plan.num_removed_ffn)
        outcome = "nothing was pruned" if is_whole else "nothing more was pruned than training chose"
        if not self.is_condition:
            return (
                f"Certificate: none. Even the largest candidate lost more than {points} on the {self.data_size:,} "
                f"held-out examples, so {outcome}. A larger eval_dataset shows more."
            )
        return (
            f"Certificate: none. No candidate could be certified to lose less than {points} on the {self.data_size:,} "
            f"held-out examples, so {outcome}. A larger eval_dataset or a larger max_drop can certify more."
        )

    @property
    def data_size(self) -> int:
        """Number of held-out examples."""
        return len(self.data.dataset)

    def certify(self, dense: Any, pruned: Any, chosen: Chosen, *, reference_name: str = DENSE) -> Certificate:
        """Writes the certificate of the pruned model.

        Args:
            dense: What it is compared with.
            pruned: The pruned model.
            chosen: From `choose`.
            reference_name: What `dense` is, in words.
        """
        candidates = 1 if chosen.path is not None else max(chosen.num_candidates, 1)
        claim = self.metric, self.max_drop, self.confidence
        return certify(
            dense,
            pruned,
            self.data,
            *claim,
            reference_name=reference_name,
            path=chosen.path,
            num_candidates=candidates,
        )
