"""What models answer to the examples of a split, and how two of them compare where labels are known and where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.tasks.answers import same_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, eq=False)
class Outcome:
    """One model on the certification split, in the order of its fingerprints.

    Attributes:
        scores: Shape `(n,)`, or `(n, numbers)` for a corpus metric. Without a label they mean nothing.
        answers: What the model answers, `(n, k)`; None where only scores are known.
    """

    scores: np.ndarray
    answers: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class PairedScores:
    """Scores of both models on the certification split, in the order of its fingerprints.

    Attributes:
        dense: Shape `(n,)`, or `(n, numbers)` for a corpus metric.
        pruned: The same of the pruned model.
        groups: Group of each example, `(n,)`, or None where all are independent.
        labelled: Whether an example has a label, `(n,)`; None where all have one. Without a label the dense model's
            answer is taken for the right one: it scores 1, and the pruned model what it then scores.
        changed: Whether the pruned model answers otherwise, `(n,)`; None where only scores are known.
    """

    dense: np.ndarray
    pruned: np.ndarray
    groups: np.ndarray | None = None
    labelled: np.ndarray | None = None
    changed: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        dense: Outcome,
        pruned: Outcome,
        groups: np.ndarray | None = None,
        labelled: np.ndarray | None = None,
        likeness: Callable[[np.ndarray, np.ndarray], np.ndarray] = same_answers,
    ) -> PairedScores:
        """Compares two models.

        Where both answer alike, the label does not matter. Where they differ and the example is unlabelled, the
        pruned model gets the blame for all of the difference: no label could make it lose more.

        Args:
            dense: Of the dense model.
            pruned: Of the pruned model, on the same examples.
            groups: Group of each example.
            labelled: Whether an example has a label; needs answers of both.
            likeness: Of the answers of two models; see `Scorer.likeness`.
        """
        if dense.answers is None or pruned.answers is None:
            return cls(dense.scores, pruned.scores, groups)
        changed = same_answers(dense.answers, pruned.answers) == 0
        if labelled is None:
            return cls(dense.scores, pruned.scores, groups, None, changed)
        before = np.where(labelled, dense.scores, 1.0)
        after = np.where(labelled, pruned.scores, likeness(pruned.answers, dense.answers))
        return cls(before, after, groups, labelled, changed)

    @classmethod
    def joined(cls, parts: Sequence[PairedScores]) -> PairedScores:
        """Returns the scores of several batches without groups, all labelled, one after the other."""
        dense, pruned = (np.concatenate([getattr(part, name) for part in parts]) for name in ("dense", "pruned"))
        marks = [part.changed for part in parts if part.changed is not None]
        return cls(dense, pruned, changed=np.concatenate(marks) if marks else None)

    def taken(self, places: np.ndarray) -> PairedScores:
        """Returns the scores of some examples; groups are numbered anew."""
        groups = None if self.groups is None else np.unique(self.groups[places], return_inverse=True)[1]
        marks = (None if marks is None else marks[places] for marks in (self.labelled, self.changed))
        return PairedScores(self.dense[places], self.pruned[places], groups, *marks)

    def contradiction(self) -> str | None:
        """Says which marks contradict the scores, or None."""
        differ = (self.dense != self.pruned).reshape(len(self.dense), -1).any(axis=1)
        if self.changed is not None and (differ & ~self.changed).any():
            return "an answer that did not change scores otherwise"
        if self.labelled is None:
            return None
        alone = ~self.labelled
        if self.changed is None or (self.dense[alone] != 1).any() or (self.changed[alone] != differ[alone]).any():
            return (
                "without a label the dense model's answer must be taken for the right one, and a change of it for a "
                "regression"
            )
        return None

    @property
    def counts(self) -> Counts:
        """How many examples got worse and better."""
        dense, pruned = (scores.reshape(len(scores), -1) for scores in (self.dense, self.pruned))
        if dense.shape[1] > 1:  # rows have no order: all that differ count as regressions
            differ = int((dense != pruned).any(axis=1).sum())
            return Counts(len(dense), differ, 0, 0)
        worse, better = int((dense > pruned).sum()), int((dense < pruned).sum())
        if self.labelled is not None:
            return Counts(len(dense), worse, better, None, int(self._unlabelled_changes.sum()))
        return Counts(len(dense), worse, better, int(((dense == pruned) & (dense == 1)).sum()))

    @property
    def differences(self) -> np.ndarray:
        """Dense score less pruned score, `(n,)`; never less than with labels for all."""
        return self.dense - self.pruned

    @property
    def least_differences(self) -> np.ndarray:
        """The same, `(n,)`, never more than with labels for all: what is unlabelled counts as mended."""
        if self.labelled is None:
            return self.differences
        return np.where(self.labelled, self.differences, -self.differences)

    @property
    def _unlabelled_changes(self) -> np.ndarray:
        return (self.dense != self.pruned) & ~np.asarray(self.labelled, dtype=bool)


@dataclass(frozen=True)
class Counts:
    """What the test of 0/1 scores needs to know.

    Attributes:
        examples: Examples n.
        regressions: Examples on which the pruned model is worse.
        improvements: Examples on which it is better.
        both_right: Examples on which both score 1; None where only some examples have a label.
        unlabelled: Of the regressions those that have no label, and might be none.
    """

    examples: int
    regressions: int
    improvements: int
    both_right: int | None
    unlabelled: int = 0
