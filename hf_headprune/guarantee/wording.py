"""The words of a certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hf_headprune.guarantee.resampling import LEAST_DISAGREEING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hf_headprune.guarantee.claim import Claim
    from hf_headprune.guarantee.evidence import Evidence


AGREEMENT: Literal["agreement"] = "agreement"  # name and kind of the metric that needs no labels
SAME_ANSWER = "whether the pruned model gives the same answer as the dense one"
SAME_NEIGHBOUR = "whether both models find the same nearest neighbour of it in the collection"
WITHOUT_LABELS = (SAME_ANSWER, SAME_NEIGHBOUR)
DRAWN = "The certification examples are drawn independently, from where the model will be used."
OF_LABELS = "Their labels are right."
OF_STEERING = (
    "Training was steered by evaluations on them too, which does not favour the pruned model over the one that it is "
    "compared with."
)
OF_GROUPS = "Groups of examples are independent of each other, and none is larger than the largest of these."


def assumptions_of(
    claim: Claim, *, has_groups: bool, steered_training: bool, has_labels: bool = True
) -> tuple[str, ...]:
    """Returns the sentences under which a certificate holds.

    Args:
        claim: Of the certificate.
        has_groups: Whether examples depend on each other in groups.
        steered_training: Whether evaluations on the examples steered training.
        has_labels: Whether any example has a label.
    """
    nothing = "Nothing else" if steered_training else "Nothing"
    if claim.num_candidates == 1:
        chosen = f"{nothing} about the model, the claim or the order of candidates was chosen by looking at them."
    else:
        chosen = (
            f"{nothing} but the choice among the candidates was made by looking at them: neither they nor the claim."
        )
    given = (
        (DRAWN, True),
        (OF_LABELS, has_labels),
        (OF_STEERING, steered_training),
        (chosen, True),
        (OF_GROUPS, has_groups),
    )
    return tuple(sentence for sentence, holds in given if holds)


def statement_of(
    claim: Claim,
    evidence: Evidence,
    *,
    reference: str,
    checked: tuple[str, ...],
    steered_training: bool = False,
    labelled: str | None = None,
) -> str:
    """Says in plain words what a certificate states and what it does not.

    Args:
        claim: Of the certificate.
        evidence: Of the certificate.
        reference: The model that the pruned one is compared with, in words.
        checked: Names of the splits that the certification split was compared with.
        steered_training: Whether evaluations on the examples steered training.
        labelled: Digits, 1 where an example has a label; None where all have one.
    """
    sentences = [
        _verdict_in_words(claim, evidence, reference),
        f"Scored of each example: {claim.scored}.",
        _seen(claim, evidence),
        *_of_the_labels(claim, evidence, labelled),
        *_of_the_test(claim, evidence),
    ]
    if steered_training:
        sentences.append("Training chose its checkpoint, its end or its learning rates by these examples too.")
    unchecked = [name for name in ("train", "search") if name not in checked]
    if unchecked:
        splits = " and ".join(f"the {name} split" for name in unchecked)
        sentences.append(f"It was not checked that no example is in {splits}.")
    return " ".join(sentences)


def statement_of_several(worst: str, claims: Sequence[tuple[Claim, Evidence]]) -> str:
    """Says what a certificate with several promises states.

    Args:
        worst: Statement of the worst of them.
        claims: All of them with what the data say, the worst first.
    """
    claim, verdict, count = claims[0][0], claims[0][1].verdict, len(claims)
    confidence = f"with {percent(1 - claim.alpha)} confidence"
    said = {
        "PASS": f"All {count} promises hold together, {confidence}",
        "FAIL": f"Of {count} promises at least one does not hold, {confidence}",
        "INCONCLUSIVE": f"It can't be decided {confidence} whether all {count} promises hold",
    }
    others = " ".join(_in_short(*each) for each in claims[1:])
    return f"{verdict}. {said[verdict]}. The worst of them: {worst} The others: {others}"


def stop_in_words(used: int, unused: int) -> str:
    """Says how much of a split it took until the verdict was certain."""
    stopped = f"Stopped after {used:,} of {used + unused:,} examples" if unused else f"All {used:,} examples were used"
    return (
        f"{stopped}: the test by betting holds whenever one stops. Where all examples are looked at, the exact test "
        "certifies with fewer."
    )


def _in_short(claim: Claim, evidence: Evidence) -> str:
    scope = f" on examples {claim.scope}" if claim.scope else ""
    bound = evidence.upper_bound
    excluded = f"drops above {points(bound)} excluded" if bound < 1 else "nothing excluded"
    found = f"n = {evidence.examples:,}, {excluded}, p = {evidence.p_value:.4f}"
    return f"{evidence.verdict}: {claim.metric}{scope}, {found}."


def _of_the_test(claim: Claim, evidence: Evidence) -> Iterator[str]:
    if claim.kind == "corpus":
        yield "This is a bootstrap: the confidence is approximate, not finite-sample."
        if evidence.upper_bound == 1 and evidence.regressions + evidence.improvements < LEAST_DISAGREEING:
            yield f"Fewer than {LEAST_DISAGREEING} examples changed, which is too few for a bootstrap of this metric."
    if evidence.verdict == "PASS" and evidence.regressions_to_spare is not None:
        yield f"The verdict would survive {evidence.regressions_to_spare} further regressions."
    if evidence.examples_needed is not None:
        yield (
            f"About {evidence.examples_needed:,} examples would certify it four times in five, if the true rates are "
            "those seen."
        )
    if claim.num_candidates > 1:
        yield (
            f"These examples chose it among {claim.num_candidates} models, each of which may spend an alpha of "
            f"{claim.alpha_spent:.2g}."
        )
    if claim.use > 1:
        yield f"This is use number {claim.use} of the split, which may spend an alpha of {claim.alpha_spent:.2g}."


def _of_the_labels(claim: Claim, evidence: Evidence, labelled: str | None) -> Iterator[str]:
    if claim.scored == SAME_NEIGHBOUR:
        yield "No label was used: another neighbour may serve as well. It is about this collection alone."
    elif claim.scored == SAME_ANSWER:
        yield (
            "No label was used: the accuracy drops at most by the share of changed answers, whatever the right ones "
            "are. A certificate with labels excludes smaller drops."
        )
    elif labelled is not None:
        words = f"Of the {evidence.examples:,} examples {labelled.count('1'):,} have a label"
        if evidence.changed is not None:
            words += f"; the models answer {evidence.changed:,} differently"
        if evidence.unlabelled:
            words += f", of which {evidence.unlabelled:,} without a label count as worse"
        yield (
            f"{words}. Where both answer alike no label is needed: this is about the drop; neither model's "
            f"{claim.metric} was measured."
        )


def _verdict_in_words(claim: Claim, evidence: Evidence, reference: str) -> str:
    drops = f"the {claim.metric} of the pruned model drops by"
    drop, confidence = points(claim.max_drop), f"with {percent(1 - claim.alpha)} confidence"
    if claim.scored in WITHOUT_LABELS:
        of_texts = "of texts whose nearest neighbour" if claim.scored == SAME_NEIGHBOUR else "of answers that"
        drops, drop = f"the share {of_texts} the pruned model changes is", percent(claim.max_drop)
    scope = f" {claim.scope}" if claim.scope else ""
    if evidence.verdict == "INCONCLUSIVE":
        return (
            f"INCONCLUSIVE. Compared with {reference}, it can't be decided {confidence} from these "
            f"{evidence.examples:,} examples{scope} whether {drops} less than {drop}."
        )
    unseen = f"on unseen examples{scope} like those of the certification split"
    comparison = "less" if evidence.verdict == "PASS" else "more"
    return f"{evidence.verdict}. Compared with {reference}, {drops} {comparison} than {drop} {unseen}, {confidence}."


def _seen(claim: Claim, evidence: Evidence) -> str:
    excluded = f"drops above {points(evidence.upper_bound)} are" if evidence.upper_bound < 1 else "no drop is"
    if claim.scored in WITHOUT_LABELS:
        excluded = f"shares above {percent(evidence.upper_bound)} are" if evidence.upper_bound < 1 else "no share is"
        what = "nearest neighbours of" if claim.scored == SAME_NEIGHBOUR else "answers to"
        changed = f"the {what} {evidence.regressions:,} changed"
        return f"Of {evidence.examples:,} examples {changed}; {excluded} excluded (p = {evidence.p_value:.4f})."
    bound = f"{excluded} excluded (p = {evidence.p_value:.4f})"
    if claim.kind == "corpus":
        changed = f"{evidence.regressions + evidence.improvements:,} changed"
    else:
        changed = f"{evidence.regressions:,} got worse and {evidence.improvements:,} better"
    metric = ""
    if evidence.dense_metric is not None and evidence.pruned_metric is not None:
        before, after = percent(evidence.dense_metric), percent(evidence.pruned_metric)
        metric = f" {claim.metric} went from {before} to {after};"
    return f"Of {evidence.examples:,} examples {changed};{metric} {bound}."


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
