"""Makes certificates: runs both models on a split that nothing has seen, tests the claim, writes down everything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune._beside_weights import read_text
from hf_headprune._certificate_file import CERTIFICATE_NAME, attach_certificate_
from hf_headprune._checks import is_number
from hf_headprune.errors import CertificateError, DataLeakError, InvalidSettingError, shown
from hf_headprune.guarantee.certificate import DENSE, Certificate, ExampleRecord, Promise
from hf_headprune.guarantee.claim import LONGEST_NAME, Claim, Metric, is_name
from hf_headprune.guarantee.evidence import evidence_of
from hf_headprune.guarantee.external import bare, check_external, first_reader, is_external, is_model
from hf_headprune.guarantee.path import CertifiedPath, PathStep, certify_in_order
from hf_headprune.guarantee.promises import are_several, promises_of
from hf_headprune.guarantee.records import environment_of, record_of, turned_by_rounding
from hf_headprune.guarantee.resampling import ROUND_OFF
from hf_headprune.guarantee.scored import ScoredSplit, data_of
from hf_headprune.guarantee.sequence import AlphaLedger
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan, refitted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from hf_headprune.guarantee.certificate import ModelRecord
    from hf_headprune.guarantee.evidence import Evidence
    from hf_headprune.guarantee.outcomes import Outcome, PairedScores
    from hf_headprune.plan import PlanOrResult

CHOSEN_BY = "headprune_chosen_by"  # attribute of a model: certificates whose examples have chosen it
Opened = Callable[[Any, Any], AbstractContextManager[Any]]


def certify_path(  # noqa: PLR0913 - the arguments of `certify`, by the same names
    model: nn.Module,
    plans: Sequence[PlanOrResult],
    dataset: Any,
    metric: Any = None,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    *,
    reference: PlanOrResult | Any = None,
    ledger: AlphaLedger | None = None,
    seed: int = 0,
    opened: Opened = masked,
) -> CertifiedPath:
    """Tests plans from the least pruned to the most on a model, and stops at the first that can't be certified.

    All of it is one use of the certification split. Few, well separated plans are best: each must pass. Each is tested
    for one promise and on all examples, so that the plans are compared by the same.

    Args:
        model: The dense model; it is unchanged afterwards.
        plans: Plans, or results that hold one with its refit, in an order that was fixed without looking at the
            certification split. The plans of one path may share one refit: it is computed for each as it is tested.
        dataset: Certification split, `CertificationData`, or a `ScoredSplit` that was read already.
        metric: As in `certify`.
        max_drop: Drop that is to be excluded for each plan.
        confidence: Of the statement.
        reference: What of the model the plans are compared with: a plan or a result; None for all. Or another model,
            alone or with rows of its own, as in `certify`.
        ledger: Of the uses of certification splits; without one this must be the only use.
        seed: Of the bootstrap.
        opened: Context manager that takes the model and a plan, and yields what is scored: the model with masks, or a
            pruned copy, which runs faster.

    Returns:
        `certified_index` is the index of the plan to prune to, or None; pass the whole to `certify` with the pruned
        model.

    Raises:
        DataLeakError: Training or search have seen an example.
        InvalidPlanError: A plan does not fit the model.
        InvalidSettingError: A setting or the data set is malformed, or there is no plan.
        UnsupportedModelError: The model can't be scored.
    """
    _check_plans(plans, "certify_path")
    if are_several(dataset, metric, None):
        raise InvalidSettingError(
            "certify_path: plans are tested for one promise, on one data set by one metric, received "
            f"{type(dataset).__name__} and {shown(metric)}. Test them for the strictest promise, and certify several "
            "of the pruned model on examples that the path has not looked at: certify(dense, pruned, test, each=...)."
        )
    _check_ledger(ledger)
    split = _read(model, dataset, metric, reference, "certify_path")
    claim = split.claim(max_drop, confidence, ledger=ledger, seed=seed)
    dense = split.outcome_of_reference(model, reference)
    known: dict[str | None, Outcome] = {}

    def compared(plan: PlanOrResult) -> PairedScores:
        return split.compared(dense, _outcome_of(split, model, plan, opened, known))

    candidates = [(name_of(plan), partial(compared, plan)) for plan in plans]
    path = certify_in_order(
        split.compared(dense, dense), candidates, claim, split.prints.sha256(), split.metric.aggregate
    )
    if is_model(reference):
        known[record_of(reference).weights] = dense
    elif reference is None or (refitted(reference).refit is None and refitted(reference).plan == PruningPlan.of(model)):
        known[record_of(model).weights] = dense
    path.remember(known)
    return path


def _read(model: nn.Module, dataset: Any, metric: Any, reference: PlanOrResult | None, where: str) -> ScoredSplit:
    """Returns a split as it is scored, unless it was read already, and by the metric that is asked for.

    A score that compares a model with another one compares it with the reference.
    """
    if not isinstance(dataset, ScoredSplit):
        return ScoredSplit.of_plan(data_of(dataset), metric, model, None if is_model(reference) else reference)
    given = dataset.metric.name
    if metric not in (None, given) and Metric.of(metric, model, where=where).name != given:
        raise InvalidSettingError(
            f"{where}: the split was read to be scored by {given!r}, received the metric {shown(metric)}. Leave metric "
            "out, or read the split by it."
        )
    return dataset


def _outcome_of(
    split: ScoredSplit,
    model: nn.Module,
    plan: PlanOrResult,
    opened: Opened,
    known: dict[str | None, Outcome] | None = None,
) -> Outcome:
    """Returns how a plan answers; keeps that in `known` by the weights of its pruned copy, where there is one."""
    with opened(model, plan) as pruned:
        outcome = split.outcome_of(pruned)
        if known is not None and pruned is not model:
            known[record_of(pruned).weights] = outcome
    return outcome


def furthest_within(  # noqa: PLR0913 - the arguments of `certify_path`
    model: nn.Module,
    plans: Sequence[PlanOrResult],
    dataset: Any,
    metric: Any = None,
    max_drop: float = 0.01,
    *,
    reference: PlanOrResult | Any = None,
    opened: Opened = masked,
) -> tuple[int | None, tuple[float, ...]]:
    """Goes from the least pruned plan on while the metric of the certification split drops by at most `max_drop`.

    What was seen is no guarantee: `certify(..., num_candidates=len(plans))` says what these examples exclude about the
    plan that they chose.

    Args:
        model: The dense model; it is unchanged afterwards.
        plans: As in `certify_path`.
        dataset: Certification split, `CertificationData`, or a `ScoredSplit` that was read already.
        metric: As in `certify`.
        max_drop: Drop that may be seen, absolute.
        reference: As in `certify_path`.
        opened: As in `certify_path`.

    Returns:
        Index of the last plan before the first that drops more, or None where that is the first one; and the metrics
        of the reference and of each plan that was measured.

    Raises:
        DataLeakError: Training or search have seen an example.
        InvalidPlanError: A plan does not fit the model.
        InvalidSettingError: The data set, a plan or the drop is malformed.
        UnsupportedModelError: The model can't be scored.
    """
    _check_plans(plans, "furthest_within")
    if not (is_number(max_drop) and 0 <= max_drop < 1):
        raise InvalidSettingError(f"furthest_within: max_drop must be in [0, 1), received {shown(max_drop)}.")
    split = _read(model, dataset, metric, reference, "furthest_within")
    value = split.metric.aggregate or np.mean
    whole = split.outcome_of_reference(model, reference)
    metrics = [split.value_of(whole)]
    last = None
    for index, plan in enumerate(plans):
        pair = split.compared(whole, _outcome_of(split, model, plan, opened))
        metrics.append(float(value(pair.pruned)))
        if value(pair.dense) - metrics[-1] > max_drop + ROUND_OFF:
            break
        last = index
    return last, tuple(metrics)


def certify(  # noqa: PLR0913 - the public verb: its arguments are the words of the claim
    dense: nn.Module | Any,
    pruned: nn.Module | Any,
    dataset: Any,
    metric: Any = None,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    *,
    labels: Any = None,
    each: str | Sequence[str] | None = None,
    stop_early: bool = False,
    reference_name: str = DENSE,
    path: CertifiedPath | None = None,
    num_candidates: int = 1,
    ledger: AlphaLedger | None = None,
    seed: int = 0,
) -> Certificate:
    """Tests on unseen examples that a pruned model lost less than `max_drop` of a metric, and writes a certificate.

    The pruned model takes it along: its `save_pretrained` writes it beside the weights, as long as they are the same.

    Args:
        dense: The model that it is compared with.
        pruned: The model that the statement is about. What is deployed may be something else than a model of torch: a
            function of the examples that returns the class of each, such as one that asks a service; the path of an
            ONNX or OpenVINO file; or a list of recorded classes. So may `dense`. The certificate names what has no
            fingerprint. A model whose tokenizer is another one comes with the same examples as that encodes them, as a
            pair: `certify((dense, its_examples), pruned, examples)`.
        dataset: Certification split that neither training nor search has seen, each example with its label unless
            `labels` are given; or `CertificationData`, which says how to read it and what to compare it with.
        metric: None for the first metric of the model's task, or its name (see `scorer_for`); a module of the package
            `evaluate`, or a function `(predictions, references) -> number`, higher is better; or a `Metric` with a
            function that scores each example. Scores of 0 and 1 get an exact test, others in [0, 1] betting, and what
            is no mean over examples a bootstrap, which is approximate. "agreement" needs no label at all: it bounds the
            share of changed answers, and with it the drop of the accuracy.
        max_drop: Drop that is to be excluded, absolute: 0.01 is one percentage point.
        confidence: Of the statement, above 0.5.
        labels: Labels of those examples on which the models disagree, by index, see `disagreements`; the examples then
            hold none of their own. The same test decides, and the certificate says that it is about the drop. A
            disagreement without a label counts as a regression. Short for `CertificationData(..., labels=)`.
        each: Column, or columns, of the examples: the promise must hold for each value there too, such as for each
            class with "label". With several data sets (a mapping of names to splits as `dataset`) or metrics (a list),
            all must hold. Each promise is tested at the full level; the certificate lists them, the worst first.
            Without path and ledger.
        stop_early: Whether examples are looked at in the order of their fingerprints until the verdict is certain.
            Betting then takes the place of the exact test, which needs fewer examples where all are looked at. For one
            promise, scores from 0 to 1, all examples labelled, without path and groups.
        reference_name: What the dense model is, for the certificate's first sentence, such as "the teacher".
        path: What `certify_path` returned, where the pruned model is its last certified plan (the first plan, where
            none was certified); the rest of the arguments must be the same.
        num_candidates: Models among which the split itself has chosen the pruned one; each may spend an equal share of
            alpha, so that the statement holds however the split chose. Not with a path, which is free of that cost.
        ledger: Of the uses of certification splits; without one this must be the only use. Not with a path.
        seed: Of the bootstrap.

    Raises:
        CertificateError: The path was tested on other data or for another claim, or the pruned model is not the one
            that it certified.
        DataLeakError: Training or search have seen an example, or these examples have chosen the model, as an earlier
            certificate of it says.
        InvalidSettingError: A setting or the data set is malformed.
        UnsupportedModelError: A model can't be scored, or carries gates or a mask.
    """
    if not is_name(reference_name):
        raise InvalidSettingError(
            f"certify: reference_name must be a text of 1 to {LONGEST_NAME} letters, received {shown(reference_name)}."
        )
    _check_ledger(ledger)
    check_external((dense, pruned), "certify")
    if are_several(dataset, metric, each):
        if path is not None or ledger is not None or stop_early:
            raise InvalidSettingError(
                "certify: several promises are made without path and ledger, and without stop_early. Leave these out."
            )
        asked = partial(
            ScoredSplit.claim,
            max_drop=max_drop,
            confidence=confidence,
            ledger=None,
            seed=seed,
            num_candidates=num_candidates,
        )
        promises = promises_of((dense, pruned), dataset, metric, each, asked, labels=labels)
        looked_at = {key for promise in promises for key in promise.examples.key_list()}
        _check_not_chosen_by(looked_at, pruned, record_of(pruned), num_candidates)
        return _of_several(promises, dense, pruned, dataset, reference_name)
    split = ScoredSplit(data_of(dataset, labels), metric, first_reader((dense, pruned)), seen=(dense, pruned))
    _check_stop(split, path, stop_early=stop_early)
    records = record_of(dense), record_of(pruned)  # what has none is refused before it is run
    if path is None:
        _check_not_chosen_by(split.prints.keys, pruned, records[1], num_candidates)
        claim = split.claim(max_drop, confidence, ledger=ledger, seed=seed, num_candidates=num_candidates)
    elif not isinstance(path, CertifiedPath) or num_candidates != 1:
        raise InvalidSettingError(
            "certify: path must be what certify_path returned, and says how its plan was chosen; received "
            f"{shown(path)} and num_candidates={shown(num_candidates)} beside it. Leave one of the two out."
        )
    else:
        claim = _claim_of(path, split, split.claim(max_drop, confidence, ledger=None, seed=seed), ledger)
    known = _known(path, records, split.metric)
    claim, scores = _scored(split, claim, dense, pruned, stop_early=stop_early, known=known)
    return _attached(pruned, _of_one(split, claim, scores, pruned, records, path, reference_name))


def _known(path: CertifiedPath | None, records: Sequence[ModelRecord], metric: Metric) -> list[Outcome | None]:
    """Returns how the dense and the pruned model answer, where a path has run these very weights."""
    known = [None if path is None else path.outcome_of(record.weights) for record in records]
    # A score that compares models has compared the pruned one with what the path was compared with.
    return [None, None] if known[0] is None and getattr(metric.score, "compares_models", False) else known


def _of_one(  # noqa: PLR0913, PLR0917 - what a certificate is made of
    split: ScoredSplit,
    claim: Claim,
    scores: PairedScores,
    pruned: nn.Module | Any,
    records: tuple[ModelRecord, ModelRecord],
    path: CertifiedPath | None,
    reference_name: str,
) -> Certificate:
    """Returns the certificate of one promise.

    Raises:
        CertificateError: The pruned model is not the one that the path has certified.
    """
    evidence = evidence_of(scores, claim, split.metric.aggregate)
    if path is not None:
        _check_own_step(path, evidence, turned_by_rounding(pruned, evidence.examples))
        path = _with_own_step(path, evidence)
    order, keys = split.prints.order[: len(scores.dense)], split.prints.keys
    return Certificate(
        claim=claim,
        reference=reference_name,
        evidence=evidence,
        split=split.prints.sha256(),
        disjointness=split.disjointness,
        path=path,
        dense=records[0],
        pruned=records[1],
        examples=ExampleRecord.of(
            split.prints.kind, split.prints.columns, [keys[int(index)] for index in order], scores, claim.kind
        ),
        steered_training=split.data.steered_training,
        environment=environment_of(pruned),
        unused=len(split.prints) - len(order),
    )


def _of_several(
    promises: tuple[Promise, ...], dense: nn.Module, pruned: nn.Module, dataset: Any, reference_name: str
) -> Certificate:
    """Returns the certificate that lists promises, the worst first."""
    worst, *others = promises
    splits = list(dataset.values()) if isinstance(dataset, Mapping) else [dataset]
    certificate = Certificate(
        **{name: getattr(worst, name) for name in Promise.__dataclass_fields__},
        reference=reference_name,
        path=None,
        dense=record_of(dense),
        pruned=record_of(pruned),
        steered_training=any(data_of(split).steered_training for split in splits),
        environment=environment_of(pruned),
        promises=tuple(others),
    )
    return _attached(pruned, certificate)


def _scored(
    split: ScoredSplit,
    claim: Claim,
    dense: nn.Module,
    pruned: nn.Module,
    *,
    stop_early: bool,
    known: Sequence[Outcome | None],
) -> tuple[Claim, PairedScores]:
    """Runs each model whose answers are not known; returns the claim as it is tested, and how they compare."""
    if not stop_early:
        models = dense, pruned
        return claim, split.compared(*(it or split.outcome_of(model) for it, model in zip(known, models, strict=True)))
    bet = replace(claim, kind="bounded", stops_early=True)
    return bet, split.until(lambda pair: evidence_of(pair, bet).verdict != "INCONCLUSIVE", dense, pruned)


def _check_stop(split: ScoredSplit, path: CertifiedPath | None, *, stop_early: bool) -> None:
    if not isinstance(stop_early, bool):
        raise InvalidSettingError(f"certify: stop_early must be True or False, received {shown(stop_early)}.")
    is_plain = path is None and split.labelled is None and split.data.groups is None
    if stop_early and not (is_plain and split.metric.aggregate is None):
        raise InvalidSettingError(
            "certify: stop_early is for one model, a metric that is a mean over examples, labels for all and no "
            f"groups; received the metric {split.metric.name!r} of kind {split.metric.kind!r}, path {shown(path)}, "
            f"groups {shown(split.data.groups)}. Leave stop_early out."
        )


def _check_not_chosen_by(keys: Iterable[bytes], pruned: Any, record: ModelRecord, num_candidates: int) -> None:
    """Sees by the certificates that a model has, or had, that no example has helped to choose it, unless that is said.

    Raises:
        DataLeakError: One has.
    """
    asked = {*keys}
    for earlier in _choices_of(pruned).values():
        among = _chosen_among(earlier)
        is_new = earlier.pruned.weights != record.weights or asked.isdisjoint(earlier.examples.key_list())
        if not is_new and is_number(num_candidates) and 1 <= num_candidates < among:
            raise DataLeakError(
                f"certify: these examples have chosen the model among {among}, as a certificate of it says, so what "
                f"they show is too good. Pass other examples, or num_candidates={among}, which allows for the choice."
            )


def _chosen_among(certificate: Certificate) -> int:
    return certificate.claim.num_candidates if certificate.path is None else certificate.path.planned


def _choices_of(pruned: Any) -> dict[str, Certificate]:
    """Returns the certificates whose examples chose among models, of those that a model carries or that lie by it."""
    texts: list[str] = []
    folder = Path(pruned).parent if isinstance(pruned, str | Path) else None
    if not is_external(pruned):
        model = bare(pruned)
        carried = getattr(model, "headprune_certificate", None)
        texts += [*getattr(model, CHOSEN_BY, ()), *([] if carried is None else [carried])]
        name = getattr(model, "name_or_path", "")
        folder = Path(name) if name else None
    if folder is not None and folder.is_dir():
        texts += map(read_text, sorted(folder.glob(f"{CERTIFICATE_NAME}*")))
    found = {}
    for text in texts:
        with suppress(CertificateError):  # whoever reads a damaged one is told
            found[text.strip()] = Certificate.from_json(text)
    return {text: it for text, it in found.items() if _chosen_among(it) > 1}


def _attached(pruned: Any, certificate: Certificate) -> Certificate:
    if not is_external(pruned):
        model = bare(pruned)
        setattr(model, CHOSEN_BY, (*_choices_of(model),))
        attach_certificate_(model, certificate.to_json())
    return certificate


def name_of(given: PlanOrResult) -> str:
    """Returns what identifies a plan on a path."""
    plan, refit = (found := refitted(given)).plan, found.refit
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]
    removed = f"{plan.num_removed_heads} heads and {plan.num_removed_ffn} FFN units removed"
    return f"{removed}{'' if refit is None else ', refitted'}, plan {digest}"


def _check_plans(plans: Any, where: str) -> None:
    if not isinstance(plans, (list, tuple)) or not plans:
        raise InvalidSettingError(
            f"{where}: at least one plan is needed, in a list or tuple, received {shown(plans)}. Pass those "
            "on the way to the search's result."
        )
    for plan in plans:
        refitted(plan)


def _check_ledger(ledger: Any) -> None:
    if not isinstance(ledger, AlphaLedger | None):
        raise InvalidSettingError(f"certify: ledger must be an AlphaLedger or None, received {shown(ledger)}.")


def _claim_of(path: CertifiedPath, split: ScoredSplit, claim: Claim, ledger: AlphaLedger | None) -> Claim:
    """Returns the claim of a path, if it is the one that is asked for."""
    tested = path.claim
    asked, received = (
        (each.metric, each.kind, each.scored, each.max_drop, each.alpha, each.seed, where)
        for each, where in ((claim, split.prints.sha256()), (tested, path.split))
    )
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
    differing = abs(evidence.regressions - step.regressions) + abs(evidence.improvements - step.improvements)
    if differing > allowed:
        raise CertificateError(
            f"certify: with a path, the pruned model must be candidate {path.own_index} ({step.name}), which got "
            f"{step.regressions} examples worse and {step.improvements} better; received a model with "
            f"{evidence.regressions} and {evidence.improvements}. Cut plans[path.certified_index], refitted as on the "
            "path, or certify without the path on examples that have not been looked at."
        )


def _with_own_step(path: CertifiedPath, evidence: Evidence) -> CertifiedPath:
    """Puts the pruned model's own numbers in place of those of its masked plan.

    Raises:
        CertificateError: Rounding turned an answer, and the verdict with it: the path ends elsewhere then.
    """
    own = path.own_index
    p = evidence.p_value
    counts = evidence.regressions, evidence.improvements
    step = PathStep(path.steps[own].name, *counts, evidence.pruned_metric, p, p <= path.claim.threshold)
    if step.certified != path.steps[own].certified:
        raise CertificateError(
            f"certify: on the path, candidate {own} ({step.name}) got p = {path.steps[own].p_value:.6f}, and cut, "
            f"p = {p:.6f}: rounding turned an answer, and the verdict with it. Cut the plan before it on the path, or "
            "certify on other examples."
        )
    return replace(path, steps=(*path.steps[:own], step, *path.steps[own + 1 :]))
