"""Checks of a certificate that need neither model nor data: each number follows from those below it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune._strict_json import LARGEST
from hf_headprune.errors import CertificateError, HeadPruneError
from hf_headprune.guarantee.claim import AGREEMENT
from hf_headprune.guarantee.evidence import evidence_of, evidence_of_changes, evidence_of_counts
from hf_headprune.guarantee.examples import CONTENT, TEXT, TOKENS
from hf_headprune.guarantee.outcomes import Counts
from hf_headprune.guarantee.paired import p_value
from hf_headprune.guarantee.sequence import alpha_of_use
from hf_headprune.guarantee.verification import close

_RANK = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2}

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hf_headprune.guarantee.certificate import Certificate, Promise
    from hf_headprune.guarantee.claim import Claim, Metric
    from hf_headprune.guarantee.evidence import Evidence
    from hf_headprune.guarantee.outcomes import PairedScores
    from hf_headprune.guarantee.path import PathStep
    from hf_headprune.guarantee.verification import Level, Verification


def check_settings(certificate: Certificate, result: Verification) -> None:
    """Derives from the certificate's settings what follows from them, and lists what nothing can derive."""
    claim, path = certificate.claim, certificate.path
    spent = (alpha_of_use(claim.alpha, claim.use) if claim.use else claim.alpha) / claim.num_candidates
    if not math.isclose(spent, claim.alpha_spent, rel_tol=1e-9):
        result.add(
            "counts",
            "alpha_spent",
            f"use {claim.use} may spend {spent} on it, the certificate says {claim.alpha_spent}",
        )
    _check_stop(certificate, result)
    names = tuple(record.name for record in certificate.disjointness)
    if names != tuple(name for name in ("train", "search") if name in names):
        result.add("counts", "disjointness", f"'train' and 'search' may be compared, once each, received {names}")
    for record in certificate.disjointness:
        if not record.compared_by or set(record.compared_by) - {TOKENS, TEXT, CONTENT}:
            result.add(
                "counts", "disjointness", f"{record.name}: compared by {list(record.compared_by)} is no comparison"
            )
    result.on_trust += [
        f"what the pruned model is compared with: {certificate.reference}",
        "the assumptions: " + " ".join(certificate.assumptions),
        f"that the split was used {f'{claim.use} times' if claim.use > 1 else 'once'} until then",
        "the environment: versions, device and date, and the names of the models' classes",
    ]
    result.on_trust += [f"that {record.name} is what was compared" for record in certificate.not_fingerprinted]
    if not certificate.steered_training:
        result.on_trust.append("that training did not choose by evaluations on the examples")
    if path is not None:
        result.on_trust.append(
            "the path: its names, and the counts of its other candidates, from which their p-values follow"
        )


def _check_stop(certificate: Certificate, result: Verification) -> None:
    """Derives whether examples may be left unused."""
    claim = certificate.claim
    if not 0 <= certificate.unused <= (LARGEST if claim.stops_early else 0):
        result.add("counts", "unused", f"examples are left unused where the test stops early, {certificate.unused} are")
    if claim.stops_early and (claim.kind != "bounded" or certificate.examples.groups or certificate.path):
        result.add("counts", "stops_early", "only betting on single examples, without a path, may stop early")


def badness(promise: Certificate | Promise) -> tuple[int, float]:
    """Returns what the worst promise has most of."""
    return _RANK[promise.evidence.verdict], promise.evidence.p_value


def check_promises(certificate: Certificate, result: Verification) -> None:
    """Derives what several promises have in common, and that the worst is the one whose verdict counts."""
    parts = certificate.parts()
    claims = [part.claim for part in parts]
    if badness(parts[0]) < max(map(badness, parts)):
        result.add("counts", "promises", "the first is not the worst of them")
    if any(claim.num_promises != len(parts) for claim in claims) or len(set(claims)) < len(parts):
        result.add("counts", "promises", f"there are {len(parts)}, each must say so, and none be there twice")
    if len({(claim.max_drop, claim.alpha, claim.alpha_spent) for claim in claims}) > 1 or (
        certificate.promises and certificate.path is not None
    ):
        result.add("counts", "promises", "all must be of one drop and one confidence, and without a path")
    if certificate.promises:
        result.on_trust.append("that there are no further promises, such as of groups that are not listed")


def check_counts(certificate: Certificate, result: Verification) -> None:
    """Derives p-value, bounds and verdict from the counts anew, also those along the path."""
    claim, evidence, recorded = certificate.claim, certificate.evidence, len(certificate.examples)
    if evidence.examples != recorded:  # a test of numbers that no outcome backs could take for ever
        result.add("counts", "examples", f"they are {evidence.examples} in the evidence, outcomes of {recorded} follow")
        return
    try:
        if claim.kind in ("binary", AGREEMENT):
            _compare("counts", evidence, _follows(evidence, claim), result)
            result.checked.append("counts: p-value, bounds and verdict follow from the counts")
        _check_path(certificate, result)
    except HeadPruneError as error:  # counts that can't be
        result.add("counts", "counts", str(error))


def _follows(evidence: Evidence, claim: Claim) -> Evidence:
    """Returns the evidence that the counts in evidence give."""
    if claim.kind == AGREEMENT:
        return evidence_of_changes(evidence.regressions, evidence.examples, claim)
    right = evidence.dense_metric
    both_right = None if right is None else round(right * evidence.examples) - evidence.regressions
    counts = Counts(evidence.examples, evidence.regressions, evidence.improvements, both_right, evidence.unlabelled)
    return evidence_of_counts(counts, claim, changed=evidence.changed)


def is_near(recorded: float | None, follows: float | None) -> bool:
    """Tells whether a number is the one that follows, but for rounding; None if it can't be known."""
    if recorded is None or follows is None:
        return recorded is follows
    return close(recorded, follows)


def _check_path(certificate: Certificate, result: Verification) -> None:
    path, evidence, claim = certificate.path, certificate.evidence, certificate.claim
    if path is None:
        return
    if (path.claim, path.split) != (claim, certificate.split) or not path.steps:
        result.add("counts", "path", "it was tested for another claim or on another split, or holds no step")
        return
    for number, step in enumerate(path.steps):
        for problem in _problems_of(step, certificate):
            result.add("counts", "path", f"step {number}: {problem}")
    own = path.steps[path.own_index]
    if (own.regressions, own.improvements, own.p_value) != (
        evidence.regressions,
        evidence.improvements,
        evidence.p_value,
    ):
        result.add("counts", "path", f"its last certified candidate, number {path.own_index}, is not this model")
    if not (is_near(path.dense_metric, evidence.dense_metric) and is_near(own.metric, evidence.pruned_metric)):
        result.add("counts", "path", "its metrics of the two models are not those of the evidence")
    *before, last = (step.certified for step in path.steps)
    if not all(before) or (last and path.untested):
        result.add("counts", "path", "it has to stop at the first candidate that fails, and nowhere before")
    result.checked.append(f"path: {len(path.steps)} of {path.planned} candidates, in order, up to the first failure")


def _problems_of(step: PathStep, certificate: Certificate) -> Iterator[str]:
    """Yields what of a step does not follow from its counts."""
    claim, evidence = certificate.claim, certificate.evidence
    p, metric, before = step.p_value, step.metric, evidence.dense_metric
    if claim.kind == AGREEMENT:
        p = evidence_of_changes(step.regressions, evidence.examples, claim).p_value
    if claim.kind == "binary":
        p = p_value(step.regressions, step.improvements, evidence.examples, claim.max_drop)
        change = (step.improvements - step.regressions) / evidence.examples
        metric = None if before is None else before + change
    if not close(p, step.p_value) or step.certified != (step.p_value <= claim.threshold):
        yield f"its counts give p = {p:.6f}, it says {step.p_value:.6f}"
    if not is_near(step.metric, metric):
        yield f"its counts give a metric of {metric}, it says {step.metric}"


def check_examples(certificate: Certificate, metric: Metric | None, result: Verification) -> None:
    """Derives the counts, and what follows from them, from the outcomes of the examples anew."""
    kind = certificate.claim.kind
    if metric is None and kind == "corpus":
        result.skipped.append("numbers from the examples: the metric was not given")
        return
    try:
        scores = certificate.examples.scores(kind)
    except CertificateError as error:
        result.add("examples", "examples", str(error))
        return
    evidence = certificate.evidence
    _check_outcomes(scores, evidence, result)
    means: dict[str, float | None] = {"dense_metric": None, "pruned_metric": None}
    if scores.labelled is None:
        means = {"dense_metric": float(np.mean(scores.dense)), "pruned_metric": float(np.mean(scores.pruned))}
    if kind not in ("binary", AGREEMENT):
        try:
            follows = evidence_of(scores, certificate.claim, None if metric is None else metric.aggregate)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # the metric is the user's function
            result.add("examples", "outcomes", f"the metric can't be computed from them: {error!r}")
            return
        _compare("examples", evidence, follows, result)
    elif any(not _same(value, getattr(evidence, name)) for name, value in means.items()):
        result.add("examples", "accuracies", f"the outcomes give {means}")
    result.checked.append("examples: the numbers follow from the outcomes of the examples")


def _check_outcomes(scores: PairedScores, evidence: Evidence, result: Verification) -> None:
    """Compares the counts in evidence with the outcomes, and those with their marks."""
    counts = scores.counts
    changed = None if scores.changed is None else int(scores.changed.sum())
    found = (counts.examples, counts.regressions, counts.improvements, counts.unlabelled, changed)
    said = (evidence.examples, evidence.regressions, evidence.improvements, evidence.unlabelled, evidence.changed)
    if found != said:
        result.add(
            "examples",
            "outcomes",
            f"n, regressions, improvements, those without a label, and changed answers are {found} in the outcomes, "
            f"{said} in the evidence",
        )
    if problem := scores.contradiction():
        result.add("examples", "marks", problem)


def _compare(level: Level, stated: Evidence, found: Evidence, result: Verification) -> None:
    for name, value in dataclasses.asdict(found).items():
        said = getattr(stated, name)
        if not _same(value, said):
            result.add(level, name, f"it follows that it is {value}, the certificate says {said}")


def _same(value: object, said: object) -> bool:
    return close(value, said) if isinstance(value, float) and isinstance(said, float) else value == said
