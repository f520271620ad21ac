"""Makes certificates: runs both models on a split that nothing has seen, tests the claim, writes down everything."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune._certificate_file import attach_certificate_
from hf_headprune.errors import CertificateError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate, ExampleRecord
from hf_headprune.guarantee.claim import Claim, Metric
from hf_headprune.guarantee.evidence import PairedScores, evidence_of
from hf_headprune.guarantee.path import CertifiedPath, PathStep, walk
from hf_headprune.guarantee.records import environment_of, record_of, turned_by_rounding
from hf_headprune.guarantee.scored import CertificationData, ScoredSplit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from hf_headprune.guarantee.evidence import Evidence
    from hf_headprune.guarantee.sequence import AlphaLedger
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit

ROUND_OFF = 1e-9


def certify_path(  # noqa: PLR0913 - the arguments of `certify`, by the same names
    model: nn.Module,
    plans: Sequence[PruningPlan],
    dataset: Any,
    metric: str | Metric = "accuracy",
    max_drop: float = 0.01,
    confidence: float = 0.95,
    *,
    reference: PruningPlan | None = None,
    refit: Refit | None = None,
    ledger: AlphaLedger | None = None,
    seed: int = 0,
) -> CertifiedPath:
    """Tests plans from the least pruned to the most on a model, and stops at the first that can't be certified.

    All of it is one use of the certification split. Few, well separated plans are best: each must pass.

    Args:
        model: The dense model; plans are applied by masks, reversibly.
        plans: In an order that was fixed without looking at the certification split.
        dataset: Certification split, or `CertificationData`.
        metric: "accuracy", or a `Metric`.
        max_drop: Drop that is to be excluded for each plan.
        confidence: Of the statement.
        reference: What of the model the plans are compared with, such as the heads that training kept; None for all.
        refit: Refits output projections to each plan, where the search did so.
        ledger: Of the uses of certification splits; without one this must be the only use.
        seed: Of the bootstrap.

    Returns:
        `certified_index` is the index of the plan to cut, or None; pass the whole to `certify` with the cut model.

    Raises:
        DataLeakError: Training or search have seen an example.
        InvalidPlanError: A plan does not fit the model.
        InvalidSettingError: A setting or the data set is malformed, or there is no plan.
        UnsupportedModelError: The model can't be scored.
    """
    if not plans:
        raise InvalidSettingError("certify_path: at least one plan is needed, received none. Pass the search's path.")
    split = _scored(dataset, metric, model)
    claim = split.claim(max_drop, confidence, ledger=ledger, seed=seed)
    dense = split.scores_of_plan(model, reference, refit)
    candidates = [(name_of(plan), lambda plan=plan: split.scores_of_plan(model, plan, refit)) for plan in plans]
    dense_pair = PairedScores(dense, dense, split.groups())
    return walk(dense_pair, candidates, claim, split.prints.sha256(), split.metric.aggregate)


def furthest_within(  # noqa: PLR0913 - the arguments of `certify`, by the same names
    model: nn.Module,
    plans: Sequence[PruningPlan],
    dataset: Any,
    metric: str | Metric = "accuracy",
    max_drop: float = 0.01,
    *,
    reference: PruningPlan | None = None,
    refit: Refit | None = None,
) -> int | None:
    """Goes from the least pruned plan on while the metric of the certification split drops by at most `max_drop`.

    What was seen is no promise: `certify(..., chosen_among=len(plans))` says what these examples exclude about the plan
    that they chose.

    Args:
        model: The dense model; plans are applied by masks, reversibly.
        plans: In an order that was fixed without looking at the certification split.
        dataset: Certification split, or `CertificationData`.
        metric: "accuracy", or a `Metric`.
        max_drop: Drop that may be seen, absolute.
        reference: What of the model the plans are compared with; None for all.
        refit: Refits output projections to each plan, where the search did so.

    Returns:
        Index of the last plan before the first that drops more, or None where that is the first one.

    Raises:
        DataLeakError: Training or search have seen an example.
        InvalidPlanError: A plan does not fit the model.
        InvalidSettingError: The data set is malformed.
        UnsupportedModelError: The model can't be scored.
    """
    split = _scored(dataset, metric, model)
    value = split.metric.aggregate or np.mean
    whole = value(split.scores_of_plan(model, reference, refit))
    last = None
    for index, plan in enumerate(plans):
        if whole - value(split.scores_of_plan(model, plan, refit)) > max_drop + ROUND_OFF:
            break
        last = index
    return last


def certify(  # noqa: PLR0913 - the public verb: its arguments are the words of the claim
    dense: nn.Module,
    pruned: nn.Module,
    dataset: Any,
    metric: str | Metric = "accuracy",
    max_drop: float = 0.01,
    confidence: float = 0.95,
    *,
    path: CertifiedPath | None = None,
    chosen_among: int = 1,
    ledger: AlphaLedger | None = None,
    seed: int = 0,
) -> Certificate:
    """Tests on unseen examples that a pruned model lost less than `max_drop` of a metric, and writes a certificate.

    The pruned model takes it along: its `save_pretrained` writes it beside the weights, as long as they are the same.

    Args:
        dense: The model that it is compared with.
        pruned: The model that the statement is about.
        dataset: Certification split that neither training nor search has seen, each example with its label; or
            `CertificationData`, which says how to read it and what to compare it with.
        metric: "accuracy" of a sequence classification model, or a `Metric`.
        max_drop: Drop that is to be excluded, absolute: 0.01 is one point.
        confidence: Of the statement, above 0.5.
        path: What `certify_path` returned, where the pruned model is its last certified plan (the first plan, where
            none was certified); the rest of the arguments must be the same.
        chosen_among: Models among which the split itself has chosen the pruned one; each may spend an equal share of
            alpha, so that the statement holds however the split chose. Not with a path, which is free of that cost.
        ledger: Of the uses of certification splits; without one this must be the only use. Not with a path.
        seed: Of the bootstrap.

    Raises:
        CertificateError: The path was tested on other data or for another claim, or the pruned model is not the one
            that it certified.
        DataLeakError: Training or search have seen an example.
        InvalidSettingError: A setting or the data set is malformed.
        UnsupportedModelError: A model can't be scored.
    """
    split = _scored(dataset, metric, dense, pruned)
    records = {"dense": record_of(dense), "pruned": record_of(pruned)}
    if path is None:
        claim = split.claim(max_drop, confidence, ledger=ledger, seed=seed, chosen_among=chosen_among)
    elif chosen_among != 1:
        raise InvalidSettingError(
            f"certify: a path says how its plan was chosen, received chosen_among={chosen_among!r} beside it. Leave "
            "one of the two out."
        )
    else:
        claim = _claim_of(path, split, split.claim(max_drop, confidence, ledger=None, seed=seed), ledger)
    scores = PairedScores(split.scores_of(dense), split.scores_of(pruned), split.groups())
    evidence = evidence_of(scores, claim, split.metric.aggregate)
    if path is not None:
        _check_own_step(path, evidence, turned_by_rounding(pruned, evidence.examples))
    order = split.prints.order
    keys = split.prints.keys
    certificate = Certificate(
        claim=claim,
        evidence=evidence,
        split=split.prints.sha256(),
        disjointness=split.disjointness,
        path=path if path is None else _with_own_step(path, evidence.broken, evidence.fixed, evidence.p_value),
        **records,
        examples=ExampleRecord.of(
            split.prints.kind, split.prints.columns, [keys[int(index)] for index in order], scores, claim.kind
        ),
        steered_training=split.data.steered_training,
        environment=environment_of(pruned),
    )
    attach_certificate_(pruned, certificate.to_json())
    return certificate


def name_of(plan: PruningPlan) -> str:
    """Returns what identifies a plan on a path."""
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]
    return f"{plan.num_removed_heads} heads and {plan.num_removed_ffn} FFN units removed, plan {digest}"


def _scored(dataset: Any, metric: str | Metric, *models: Any) -> ScoredSplit:
    data = dataset if isinstance(dataset, CertificationData) else CertificationData(dataset)
    return ScoredSplit(data, Metric.of(metric), *models)


def _claim_of(path: CertifiedPath, split: ScoredSplit, claim: Claim, ledger: AlphaLedger | None) -> Claim:
    """Returns the claim of a path, if it is the one that is asked for."""
    tested = path.claim
    asked = (claim.metric, claim.kind, claim.max_drop, claim.alpha, claim.seed, split.prints.sha256())
    received = (tested.metric, tested.kind, tested.max_drop, tested.alpha, tested.seed, path.split)
    if asked != received or ledger is not None:
        raise CertificateError(
            f"certify: the path must have been tested for the same claim on the same split, and has spent its share of "
            f"alpha already; asked for {asked}, the path has {received}, ledger {'given' if ledger else 'none'}. Pass "
            "the arguments of certify_path, without the ledger."
        )
    return tested


def _check_own_step(path: CertifiedPath, evidence: Evidence, allowed: int) -> None:
    """Refuses a model that does not answer as the path's own candidate did: it was chosen in some other way."""
    step = path.steps[path.own_index]
    if abs(evidence.broken - step.broken) + abs(evidence.fixed - step.fixed) > allowed:
        raise CertificateError(
            f"certify: with a path, the pruned model must be candidate {path.own_index} ({step.name}), which got "
            f"{step.broken} examples worse and {step.fixed} better; received a model with {evidence.broken} and "
            f"{evidence.fixed}. Cut plans[path.certified_index], refitted as the path was, or certify without the path "
            "on examples that have not been looked at."
        )


def _with_own_step(path: CertifiedPath, broken: int, fixed: int, p: float) -> CertifiedPath:
    """Puts the cut model's own numbers in place of those of its masked plan.

    Raises:
        CertificateError: Rounding turned an answer, and the verdict with it: the path ends elsewhere then.
    """
    own = path.own_index
    step = PathStep(path.steps[own].name, broken, fixed, p, p <= path.claim.level)
    if step.certified != path.steps[own].certified:
        raise CertificateError(
            f"certify: on the path, candidate {own} ({step.name}) got p = {path.steps[own].p_value:.6f}, and cut, "
            f"p = {p:.6f}: rounding turned an answer, and the verdict with it. Cut the plan before it on the path, or "
            "certify on other examples."
        )
    return replace(path, steps=(*path.steps[:own], step, *path.steps[own + 1 :]))
