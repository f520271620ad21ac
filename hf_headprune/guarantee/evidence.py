"""From the scores of two models on the same examples to a verdict on a claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import bdtr, bdtrc

from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.guarantee.betting import betting_p_value, betting_upper_bound
from hf_headprune.guarantee.claim import AGREEMENT
from hf_headprune.guarantee.monitor import upper_share
from hf_headprune.guarantee.outcomes import Counts, PairedScores
from hf_headprune.guarantee.paired import p_value, regressions_to_spare, upper_bound
from hf_headprune.guarantee.power import PowerAssumptions, examples_needed
from hf_headprune.guarantee.resampling import (
    LEAST_DISAGREEING,
    bootstrap_p_value,
    bootstrap_upper_bound,
    one_answer_worse,
    resampled_drops,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_headprune.guarantee.claim import Claim, Kind

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Evidence:
    """What the data say about a claim.

    Attributes:
        verdict: "PASS": the drop is below max_drop; "FAIL": it is above; "INCONCLUSIVE": the data can't tell.
        examples: Examples n of the certification split.
        regressions: Examples on which the pruned model is worse than the dense one. Of a corpus metric: that differ.
        improvements: Examples on which it is better.
        dense_metric: Metric of the dense model on them; None where not all have a label.
        pruned_metric: Metric of the pruned model on them; None where not all have a label.
        p_value: Of "the drop is at least max_drop".
        upper_bound: Drops above it are excluded.
        regressions_to_spare: How many further regressions leave the verdict at PASS; -1 without a PASS; None
            where scores are not 0/1.
        examples_needed: About how many examples certify the claim four times in five, if the true rates are those seen;
            None with a verdict, or where no number is enough or known.
        changed: Examples that the pruned model answers otherwise, right or wrong; None where only scores are known.
        unlabelled: Of the regressions those without a label: the pruned model was taken to be wrong there.
    """

    verdict: Verdict
    examples: int
    regressions: int
    improvements: int
    dense_metric: float | None
    pruned_metric: float | None
    p_value: float
    upper_bound: float
    regressions_to_spare: int | None
    examples_needed: int | None
    changed: int | None = None
    unlabelled: int = 0


def evidence_of_counts(counts: Counts, claim: Claim, *, changed: int | None = None) -> Evidence:
    """Decides on a claim about 0/1 scores, from the counts alone.

    Args:
        counts: Of both models.
        claim: To decide on.
        changed: Examples that the pruned model answers otherwise, to be noted.
    """
    n, b, c, open_ = counts.examples, counts.regressions, counts.improvements, counts.unlabelled
    p, reverse = p_value(b, c, n, claim.max_drop), p_value(c + open_, b - open_, n, -claim.max_drop)
    verdict = _verdict(p, reverse, claim)
    right = counts.both_right
    return Evidence(
        verdict=verdict,
        examples=n,
        regressions=b,
        improvements=c,
        dense_metric=None if right is None else (right + b) / n,
        pruned_metric=None if right is None else (right + c) / n,
        p_value=p,
        upper_bound=upper_bound(b, c, n, claim.alpha_spent),
        regressions_to_spare=regressions_to_spare(b, c, n, claim.max_drop, claim.alpha_spent)
        if verdict == "PASS"
        else -1,
        examples_needed=_needed(counts, claim) if verdict == "INCONCLUSIVE" else None,
        changed=changed,
        unlabelled=open_,
    )


def evidence_of_changes(changed: int, examples: int, claim: Claim) -> Evidence:
    """Decides on a claim about the share of changed answers, by Clopper and Pearson's exact binomial test.

    Args:
        changed: Examples that the pruned model answers otherwise than the dense one.
        examples: All of them.
        claim: To decide on.
    """
    p, reverse = float(bdtr(changed, examples, claim.max_drop)), float(bdtrc(changed - 1, examples, claim.max_drop))
    bound = upper_share(changed, examples, claim.alpha_spent)
    return Evidence(
        verdict=_verdict(p, reverse, claim),
        examples=examples,
        regressions=changed,
        improvements=0,
        dense_metric=None,
        pruned_metric=None,
        p_value=p,
        upper_bound=bound,
        regressions_to_spare=None,
        examples_needed=None,
        changed=changed,
        unlabelled=changed,
    )


def evidence_of(scores: PairedScores, claim: Claim, aggregate: Callable[[np.ndarray], float] | None = None) -> Evidence:
    """Decides on a claim.

    Args:
        scores: Of both models.
        claim: To decide on.
        aggregate: Metric of the rows of a corpus metric.
    """
    counts = scores.counts
    changed = None if scores.changed is None else int(scores.changed.sum())
    if claim.kind == "binary":
        return evidence_of_counts(counts, claim, changed=changed)
    if claim.kind == AGREEMENT:
        return evidence_of_changes(counts.regressions, counts.examples, claim)
    mean = np.mean if aggregate is None else aggregate
    dense, pruned = (_number(mean(values), claim.metric) for values in (scores.dense, scores.pruned))
    if not (abs(dense) <= 1 and abs(pruned) <= 1):
        raise InvalidSettingError(
            f"certify: {claim.metric} must be in [-1, 1], where a drop of 0.01 is one percentage point, received "
            f"{dense} and {pruned}. Scale what the metric returns."
        )
    p, reverse, bound = _tested(scores, claim, aggregate)
    return Evidence(
        verdict=_verdict(p, reverse, claim),
        examples=counts.examples,
        regressions=counts.regressions,
        improvements=counts.improvements,
        dense_metric=dense if scores.labelled is None else None,
        pruned_metric=pruned if scores.labelled is None else None,
        p_value=p,
        upper_bound=bound,
        regressions_to_spare=None,
        examples_needed=None,
        changed=changed,
        unlabelled=counts.unlabelled,
    )


def _number(value: Any, metric: str) -> float:
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise InvalidSettingError(
            f"certify: {metric} must be one number, received {shown(value)}. Let the function of the metric return one."
        ) from error


def p_value_of(scores: PairedScores, claim: Claim, aggregate: Callable[[np.ndarray], float] | None = None) -> float:
    """Returns the p-value of a claim alone, as a step of a path needs it."""
    if claim.kind == "binary":
        counts = scores.counts
        return p_value(counts.regressions, counts.improvements, counts.examples, claim.max_drop)
    if claim.kind == AGREEMENT:
        return float(bdtr(scores.counts.regressions, scores.counts.examples, claim.max_drop))
    return _tested(scores, claim, aggregate)[0]


def _tested(
    scores: PairedScores, claim: Claim, aggregate: Callable[[np.ndarray], float] | None
) -> tuple[float, float, float]:
    """Returns the p-values of the claim and of its reverse, and the upper bound, for scores that are not 0/1."""
    if aggregate is None:
        differences = scores.differences
        return (
            betting_p_value(differences, claim.max_drop, scores.groups),
            betting_p_value(-scores.least_differences, -claim.max_drop, scores.groups),
            betting_upper_bound(differences, claim.alpha_spent, scores.groups),
        )
    worse = one_answer_worse(scores.dense, scores.pruned, aggregate)
    is_seldom = scores.counts.regressions + scores.counts.improvements < LEAST_DISAGREEING
    if worse is None and is_seldom:
        return 1.0, 1.0, 1.0
    rows, added = scores.pruned, 0.0
    if worse is not None:
        rows, added = worse, float(aggregate(scores.pruned)) - float(aggregate(worse))
    drops = resampled_drops(scores.dense, rows, aggregate, seed=claim.seed, groups=scores.groups)
    return (
        bootstrap_p_value(drops, claim.max_drop),
        1.0 if is_seldom else bootstrap_p_value(added - drops, -claim.max_drop),
        bootstrap_upper_bound(drops, claim.alpha_spent),
    )


def _verdict(p: float, reverse: float, claim: Claim) -> Verdict:
    if p <= claim.threshold:
        return "PASS"
    return "FAIL" if reverse <= claim.threshold_of_fail else "INCONCLUSIVE"


def _needed(counts: Counts, claim: Claim) -> int | None:
    n = counts.examples
    disagreement = min(max(counts.regressions + counts.improvements, 1), n - 1) / n if n > 1 else 0.5
    drop = max(0.0, (counts.regressions - counts.improvements) / n)
    if drop > disagreement or claim.max_drop == 0:  # which no number of examples shows of equal models
        return None
    return examples_needed(claim.max_drop, PowerAssumptions(disagreement, drop, alpha=claim.alpha_spent))


def checked_scores(scores: Any, count: int, kind: Kind) -> np.ndarray:
    """Returns the scores that a function computed as an array, `(n,)` or `(n, numbers)`.

    Raises:
        InvalidSettingError: They are not one row of numbers per example, or out of the range of their kind.
    """
    try:
        values = np.asarray(scores.tolist() if hasattr(scores, "tolist") else scores, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise InvalidSettingError(
            f"certify: scores of kind {kind!r} must be numbers for each of the {count} examples, received "
            f"{shown(scores)}. Change the function of the metric."
        ) from error
    shape_holds = values.ndim >= 1 and len(values) == count and (values.ndim == 1 or kind == "corpus")
    ranges = {
        "binary": np.isin(values, (0, 1)),
        AGREEMENT: np.isin(values, (0, 1)),
        "bounded": (values >= 0) & (values <= 1),
    }
    if not shape_holds or not np.isfinite(values).all() or not ranges.get(kind, np.True_).all():
        rules = {"bounded": "a number in [0, 1]", "corpus": "a row of finite numbers"}
        rule = rules.get(kind, "0 or 1")
        raise InvalidSettingError(
            f"certify: scores of kind {kind!r} must be {rule} for each of the {count} examples, received shape "
            f"{values.shape}, from {values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g}. Change the "
            "function of the metric, or its kind."
        )
    return values
