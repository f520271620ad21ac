"""The words of a certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_headprune.guarantee.claim import Claim
    from hf_headprune.guarantee.evidence import Evidence


def statement_of(claim: Claim, evidence: Evidence, *, checked: tuple[str, ...]) -> str:
    """Says in plain words what a certificate promises and what it does not.

    Args:
        claim: Of the certificate.
        evidence: Of the certificate.
        checked: Names of the splits that the certification split was compared with.
    """
    sentences = [_verdict_in_words(claim, evidence), _seen(claim, evidence)]
    if claim.kind == "corpus":
        sentences.append("This is a bootstrap, not finite-sample: the confidence is approximate.")
    if evidence.verdict == "PASS" and evidence.further_broken is not None:
        sentences.append(f"The verdict would survive {evidence.further_broken} further broken examples.")
    if evidence.examples_needed is not None:
        sentences.append(
            f"About {evidence.examples_needed:,} examples would certify it four times in five, if the true rates are "
            "those seen."
        )
    if claim.chosen_among > 1:
        sentences.append(
            f"These examples chose it among {claim.chosen_among} models, each of which may spend an alpha of "
            f"{claim.spent:.2g}."
        )
    if claim.use > 1:
        sentences.append(f"This is use number {claim.use} of the split, which may spend an alpha of {claim.spent:.2g}.")
    unchecked = [name for name in ("train", "search") if name not in checked]
    if unchecked:
        splits = " and ".join(f"the {name} split" for name in unchecked)
        sentences.append(f"It was not checked that no example is in {splits}.")
    return " ".join(sentences)


def _verdict_in_words(claim: Claim, evidence: Evidence) -> str:
    confidence, drop = f"With {percent(1 - claim.alpha)} confidence", percent(claim.max_drop)
    unseen = "on unseen examples like those of the certification split"
    if evidence.verdict == "PASS":
        return f"PASS. {confidence}, the {claim.metric} of the pruned model drops by less than {drop} {unseen}."
    if evidence.verdict == "FAIL":
        return f"FAIL. {confidence}, the {claim.metric} of the pruned model drops by more than {drop} {unseen}."
    return f"INCONCLUSIVE. Whether the {claim.metric} drops by less than {drop} {unseen} can't be told from these."


def _seen(claim: Claim, evidence: Evidence) -> str:
    before, after = percent(evidence.dense_metric), percent(evidence.pruned_metric)
    excluded = f"drops above {percent(evidence.upper_bound)} are" if evidence.upper_bound < 1 else "no drop is"
    bound = f"{excluded} excluded (p = {evidence.p_value:.4f})"
    if claim.kind == "corpus":
        changed = f"{evidence.broken + evidence.fixed:,} changed"
    else:
        changed = f"{evidence.broken:,} got worse and {evidence.fixed:,} better"
    return f"Of {evidence.examples:,} examples {changed}; {claim.metric} went from {before} to {after}; {bound}."


def percent(share: float) -> str:
    """Returns a share as a percentage with up to two digits."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"
