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
    if claim.num_candidates == 1:
        chosen = f"{nothing} about the model, the claim or the order of candidates was chosen by looking at them."
    else:
        chosen = (
            f"{nothing} but the choice among the candidates was made by looking at them: neither they nor the claim."
        )
    given = ((OF_STEERING, steered_training), (chosen, True), (OF_GROUPS, has_groups))
    return (*ASSUMPTIONS, *(sentence for sentence, holds in given if holds))


def statement_of(
    claim: Claim,
    evidence: Evidence,
    *,
    reference: str,
    checked: tuple[str, ...],
    steered_training: bool = False,
) -> str:
    """Says in plain words what a certificate states and what it does not.

    Args:
        claim: Of the certificate.
        evidence: Of the certificate.
        reference: The model that the pruned one is compared with, in words.
        checked: Names of the splits that the certification split was compared with.
        steered_training: Whether evaluations on the examples steered training.
    """
    sentences = [_verdict_in_words(claim, evidence, reference), f"Scored of each example: {claim.scored}."]
    sentences.append(_seen(claim, evidence))
    if claim.kind == "corpus":
        sentences.append("This is a bootstrap: the confidence is approximate, not finite-sample.")
    if evidence.verdict == "PASS" and evidence.regressions_to_spare is not None:
        sentences.append(f"The verdict would survive {evidence.regressions_to_spare} further regressions.")
    if evidence.examples_needed is not None:
        sentences.append(
            f"About {evidence.examples_needed:,} examples would certify it four times in five, if the true rates are "
            "those seen."
        )
    if claim.num_candidates > 1:
        sentences.append(
            f"These examples chose it among {claim.num_candidates} models, each of which may spend an alpha of "
            f"{claim.alpha_spent:.2g}."
        )
    if claim.use > 1:
        sentences.append(
            f"This is use number {claim.use} of the split, which may spend an alpha of {claim.alpha_spent:.2g}."
        )
    if steered_training:
        sentences.append("Training chose its checkpoint, its end or its learning rates by these examples too.")
    unchecked = [name for name in ("train", "search") if name not in checked]
    if unchecked:
        splits = " and ".join(f"the {name} split" for name in unchecked)
        sentences.append(f"It was not checked that no example is in {splits}.")
    return " ".join(sentences)


def _verdict_in_words(claim: Claim, evidence: Evidence, reference: str) -> str:
    drops = f"the {claim.metric} of the pruned model drops by"
    drop, confidence = points(claim.max_drop), f"with {percent(1 - claim.alpha)} confidence"
    unseen = "on unseen examples like those of the certification split"
    if evidence.verdict == "INCONCLUSIVE":
        return (
            f"INCONCLUSIVE. Compared with {reference}, it can't be decided {confidence} from these "
            f"{evidence.examples:,} examples whether {drops} less than {drop}."
        )
    comparison = "less" if evidence.verdict == "PASS" else "more"
    return f"{evidence.verdict}. Compared with {reference}, {drops} {comparison} than {drop} {unseen}, {confidence}."


def _seen(claim: Claim, evidence: Evidence) -> str:
    before, after = percent(evidence.dense_metric), percent(evidence.pruned_metric)
    excluded = f"drops above {points(evidence.upper_bound)} are" if evidence.upper_bound < 1 else "no drop is"
    bound = f"{excluded} excluded (p = {evidence.p_value:.4f})"
    if claim.kind == "corpus":
        changed = f"{evidence.regressions + evidence.improvements:,} changed"
    else:
        changed = f"{evidence.regressions:,} got worse and {evidence.improvements:,} better"
    return f"Of {evidence.examples:,} examples {changed}; {claim.metric} went from {before} to {after}; {bound}."


def percent(share: float, digits: int = 2) -> str:
    """Returns a share as a percentage with up to `digits` digits."""
    return f"{_hundredfold(share, digits)} %"


def points(share: float) -> str:
    """Returns a difference of shares in percentage points, with up to two digits."""
    text = _hundredfold(share, 2)
    return f"{text} percentage point{'' if text == '1' else 's'}"


def _hundredfold(share: float, digits: int) -> str:
    text = f"{100 * share:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
