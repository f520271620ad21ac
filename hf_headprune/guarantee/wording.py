"""The words of a certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_headprune.guarantee.claim import Claim
    from hf_headprune.guarantee.evidence import Evidence


ASSUMPTIONS = (
    "The certification examples are drawn independently, from where the model will be used.",
    "Their labels are right.",
)
OF_STEERING = (
    "Training was steered by evaluations on them too, which does not favour the pruned model over the one that it is "
    "compared with."
)
OF_GROUPS = "Groups of examples are independent of each other, and none is larger than the largest of these."


def assumptions_of(claim: Claim, *, has_groups: bool, steered_training: bool) -> tuple[str, ...]:
    """Returns the sentences under which a certificate holds.

    Args:
        claim: Of the certificate.
        has_groups: Whether examples depend on each other in groups.
        steered_training: Whether evaluations on the examples steered training.
    """
    nothing = "Nothing else" if steered_training else "Nothing"
    if claim.chosen_among == 1:
        chosen = f"{nothing} about the model, the claim or the order of candidates was chosen by looking at them."
    else:
        chosen = (
            f"{nothing} but the choice among the candidates was made by looking at them: neither they nor the claim."
        )
    given = ((OF_STEERING, steered_training), (chosen, True), (OF_GROUPS, has_groups))
    return (*ASSUMPTIONS, *(sentence for sentence, holds in given if holds))


def statement_of(claim: Claim, evidence: Evidence, *, checked: tuple[str, ...], steered_training: bool = False) -> str:
    """Says in plain words what a certificate promises and what it does not.

    Args:
        claim: Of the certificate.
        evidence: Of the certificate.
        checked: Names of the splits that the certification split was compared with.
        steered_training: Whether evaluations on the examples steered training.
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
    if steered_training:
        sentences.append("Training chose its checkpoint, its end or its learning rates by these examples too.")
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
