"""A certification split, compared with what training and search have seen, and the scores of models on it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune._checks import is_number, is_whole
from hf_headprune._seen_splits import seen_by
from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee.certificate import DisjointnessRecord
from hf_headprune.guarantee.claim import Claim, Metric
from hf_headprune.guarantee.evidence import checked_scores
from hf_headprune.guarantee.examples import ExampleFingerprints, check_disjoint, groups_of, rows_of
from hf_headprune.guarantee.scoring import Batching, check_labels, right_answers
from hf_headprune.masking import evaluating, masked
from hf_headprune.plan import RefittedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from hf_headprune.guarantee.sequence import AlphaLedger
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit

REHEARSED = 4  # examples


@dataclass(frozen=True)
class CertificationData:
    """A certification split and how to read it.

    Attributes:
        dataset: Sized and indexable; examples are mappings.
        train: What the model was trained on, or its `ExampleFingerprints`; None where it can't be looked at, which the
            certificate then says.
        search: What the search has seen, likewise.
        groups: Column whose equal values mark examples that depend on each other, such as questions on one paragraph.
        columns: Text columns to compare splits by; see `ExampleFingerprints.of`.
        batching: How examples become batches.
        steered_training: Whether evaluations on these examples chose the checkpoint, the end or the learning rates of
            training; the certificate then says so.
    """

    dataset: Any
    train: Any = None
    search: Any = None
    groups: str | None = None
    columns: tuple[str, ...] | None = None
    batching: Batching = Batching()
    steered_training: bool = False


class ScoredSplit:
    """A certification split whose examples are known by their fingerprints, and the scores of models on it.

    Attributes:
        data: The split.
        metric: What models are scored by.
        prints: Fingerprints of its examples.
        disjointness: Splits that it was compared with.
    """

    def __init__(self, data: CertificationData, metric: Metric, *models: Any) -> None:
        """Reads the examples and compares them with the splits that training and search have seen.

        Args:
            data: The split, and what it is to be compared with.
            metric: What models are scored by.
            *models: They remember on what `search_plan` has searched them: that is compared too.

        Raises:
            DataLeakError: An example is in one of those splits.
            InvalidSettingError: The data set is malformed, lacks the column of the groups, or groups are asked of 0/1
                scores.
        """
        if data.groups is not None and metric.kind == "binary":
            raise InvalidSettingError(
                f"certify: the exact test of 0/1 scores takes examples for independent, received groups "
                f"{data.groups!r}. Pass a Metric of kind 'bounded', which takes 0/1 scores too."
            )
        self.data, self.metric = data, metric
        self.prints = ExampleFingerprints.of(data.dataset, columns=data.columns)
        self._groups = None  # of each example, in the order of the data set
        if data.groups is not None:
            self._groups = groups_of(data.dataset, data.groups, where="CertificationData(groups=...)")
        records = []
        for name, split in (("train", data.train), ("search", data.search)):
            if split is not None:
                prints = split if isinstance(split, ExampleFingerprints) else None
                prints = ExampleFingerprints.of(split, columns=data.columns) if prints is None else prints
                check_disjoint(self.prints, prints, name=name)
                records.append(
                    DisjointnessRecord(name, prints.sha256(), len(prints), self.prints.compared_with(prints))
                )
        for name, dataset in seen_by(*models):
            prints = ExampleFingerprints.of(dataset, columns=data.columns)
            if compared := self.prints.compared_with(prints):
                check_disjoint(self.prints, prints, name=name)
                if name == "search" and all(record.name != name for record in records):
                    records.append(DisjointnessRecord(name, prints.sha256(), len(prints), compared))
        self.disjointness = tuple(records)

    def scores_of(self, model: Any) -> np.ndarray:
        """Runs a model; returns its scores in the order of the fingerprints."""
        if self.metric.score is None:
            scores: Any = right_answers(model, self.data.dataset, self.data.batching)
        else:
            with evaluating(model):
                scores = self.metric.score(model, self.data.dataset)
        return checked_scores(scores, len(self.prints), self.metric.kind)[self.prints.order]

    def rehearse(self, model: Any) -> None:
        """Lets fail now what would fail in `scores_of`, at little cost: all labels are read, a few examples scored.

        Raises:
            InvalidSettingError: Labels, or the scores of the metric's function, are not what they must be.
            UnsupportedModelError: The model can't be scored.
        """
        dataset = self.data.dataset
        if self.metric.score is None:
            check_labels(model, dataset, self.data.batching)
        few = rows_of(dataset, range(min(REHEARSED, len(dataset))))
        data = CertificationData(few, columns=self.data.columns, batching=self.data.batching)
        ScoredSplit(data, self.metric).scores_of(model)

    def scores_of_plan(self, model: nn.Module, plan: PruningPlan | None, refit: Refit | None) -> np.ndarray:
        """Runs what a plan keeps of a model, or the whole, with its output projections refitted or as they are."""
        with nullcontext() if plan is None else masked(model, RefittedPlan(plan, refit)):
            return self.scores_of(model)

    def groups(self) -> np.ndarray | None:
        """Returns the numbers of the groups in the order of the fingerprints."""
        if self._groups is None:
            return None
        return numbered([self._groups[index] for index in self.prints.order])

    def claim(
        self, max_drop: float, confidence: float, *, ledger: AlphaLedger | None, seed: int, chosen_among: int = 1
    ) -> Claim:
        """Returns the claim; spends its share of alpha where the split may be used more than once."""
        if not is_number(confidence):
            raise InvalidSettingError(f"certify: confidence must be a number, received {confidence!r}. Pass 0.95.")
        alpha = round(1.0 - float(confidence), 12)
        spent = alpha / chosen_among if is_whole(chosen_among, at_least=1) else alpha  # the claim checks the numbers
        claim = Claim(self.metric.name, self.metric.kind, max_drop, alpha, spent, seed=seed, chosen_among=chosen_among)
        if ledger is None:
            return claim
        entry = ledger.spend(self.prints.sha256(), alpha, f"{self.metric.name} drops by less than {max_drop}")
        return replace(claim, spent=entry.spent / claim.chosen_among, use=entry.use)


def numbered(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Numbers equal values alike, `(n,)`, in the order in which they first come."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
