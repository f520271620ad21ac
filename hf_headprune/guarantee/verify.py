"""Checks a certificate again: its arithmetic, its examples, both models, every fingerprint."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune.errors import CertificateError, InvalidSettingError, shown
from hf_headprune.guarantee.arithmetic import check_counts, check_examples, check_promises, check_settings
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.claim import RIGHT_ANSWER, Metric, accuracy_of_answers, agreement
from hf_headprune.guarantee.evidence import evidence_of
from hf_headprune.guarantee.examples import INPUT_BYTES, TEXT, ExampleFingerprints, check_dataset, rows_of
from hf_headprune.guarantee.external import bare, first_reader, is_external
from hf_headprune.guarantee.labels import PartlyLabelled, own_labels, with_labels
from hf_headprune.guarantee.promises import part_of
from hf_headprune.guarantee.records import dtype_of, old_configs_of, record_of, turned_by_rounding
from hf_headprune.guarantee.scored import CertificationData, ScoredSplit, numbered, with_windows
from hf_headprune.guarantee.verification import TOLERANCE, Verification
from hf_headprune.guarantee.wording import AGREEMENT, SAME_NEIGHBOUR, WITHOUT_LABELS
from hf_headprune.tasks.registry import metrics_of, scorer_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from hf_headprune.guarantee.claim import Claim, Kind
    from hf_headprune.guarantee.evidence import Evidence
    from hf_headprune.guarantee.outcomes import Outcome, PairedScores

SHOWN = 5
MODELS = ("dense", "pruned")


def verify_certificate(
    certificate: Certificate | str | Path,
    model: nn.Module | Any = None,
    dataset: Any = None,
    *,
    dense: nn.Module | Any = None,
    metric: Any = None,
) -> Verification:
    """Checks a certificate at up to four levels, as far as what is given reaches.

    1. *counts*: every number and the verdict follow from the counts, also along the path; 2. *examples*: the counts
    follow from the outcomes of the examples; 3. *models*: both models give these outcomes when they are run again;
    4. *fingerprints*: weights, configurations, the certification split, and what it was compared with are the same.

    Args:
        certificate: The certificate, its file, or the folder that holds it.
        model: The pruned model, or what else was certified; with rows of its own, as in `certify`.
        dataset: The certification split, or `CertificationData` with what training and search have seen.
        dense: The model that the pruned one was compared with, likewise.
        metric: What the certificate was made with, where that was a `Metric` or a function.

    Returns:
        What differs, what could not be checked, and what rests on trust; `holds` is true where nothing differs.

    Raises:
        CertificateError: The file is malformed, was changed after it was written, or the metric is another one.
        HeadPruneError: A model or the data set can't be read at all.
    """
    if isinstance(certificate, (str, Path)):
        certificate = Certificate.load(certificate)
    if not isinstance(certificate, Certificate):
        raise InvalidSettingError(
            f"verify_certificate: certificate must be a Certificate or a path, received {shown(certificate)}."
        )
    result = Verification(certificate.verdict)
    for name, given in (("dense", dense), ("pruned", model)):
        if given is None:
            result.skipped.append(f"{name} weights and configuration: no {name} model was given")
        else:
            _check_model(name, certificate, given, result)
    if dataset is None:
        result.skipped.append("the certification split: no data were given")
    parts = certificate.parts()
    check_promises(certificate, result)
    for part in parts:
        found = Verification()
        _verify_part(part, {"dense": dense, "pruned": model}, dataset, metric, found)
        result.join(found, part.claim.scope if parts[1:] else "")
    return result


def _verify_part(
    certificate: Certificate, models: dict[str, nn.Module | None], dataset: Any, metric: Any, result: Verification
) -> None:
    """Verifies one promise."""
    given = next((model for model in reversed(models.values()) if model is not None), None)
    compared = _metric(certificate, _own_metric(certificate.claim, metric), bare(given))
    check_settings(certificate, result)
    check_counts(certificate, result)
    check_examples(certificate, compared, result)
    own = _own_data(certificate.claim, dataset, result)
    data = None if own is None else _as_certified(certificate, own, result)
    if data is None:
        return
    prints = ExampleFingerprints.of(with_labels(data.dataset, data.labels), columns=data.columns)
    used = data
    if certificate.claim.stops_early:
        first = prints.order[: len(certificate.examples)]
        used = dataclasses.replace(data, dataset=rows_of(data.dataset, sorted(first.tolist())))
    if _check_split(certificate, prints, result):
        _run_again(certificate, models, used, compared, result)
    else:
        result.skipped.append("both models on the certification split: it is another one")
    _check_disjoint(certificate, data, prints, result)


def _own_metric(claim: Claim, metric: Any) -> Any:
    """Returns which of several metrics a claim is about."""
    if not isinstance(metric, (list, tuple)):
        return metric
    return next((it for it in metric if isinstance(it, Metric) and it.name == claim.metric), None)


def _own_data(claim: Claim, dataset: Any, result: Verification) -> CertificationData | None:
    """Returns the examples that a claim is about, of the data that were given; None where they are not."""
    if dataset is None:
        return None
    several = dataset if isinstance(dataset, Mapping) else {"": dataset}
    if claim.dataset not in several:
        result.skipped.append(
            f"the certification split {claim.scope}: no data of that name were given, in a mapping of names to splits"
        )
        return None
    given = several[claim.dataset]
    data = given if isinstance(given, CertificationData) else CertificationData(given)
    check_dataset(data.dataset)
    if not claim.column:
        return data
    has_column = all(hasattr(row, "keys") and row.get(claim.column) is not None for row in data.dataset)
    part = part_of(data, claim.column, claim.value) if has_column else None
    if part is None or not len(part.dataset):
        result.add("fingerprints", "split", f"no example has {shown(claim.value)} in the column {shown(claim.column)}")
        return None
    return part


def _metric(certificate: Certificate, metric: Any, model: nn.Module | None) -> Metric | None:
    """Returns the metric that scores can be computed with, or None where nothing says how."""
    claim = certificate.claim
    if metric is None:
        return None if model is None else _built_in(claim, model)
    if isinstance(metric, str) and metric == AGREEMENT:
        metric = agreement()
    if not isinstance(metric, Metric):
        if model is None:
            return None
        metric = Metric.of(metric, model, where="verify_certificate")
    if metric.name != claim.metric or claim.kind not in _kinds_of(metric.kind):
        raise CertificateError(
            f"verify_certificate: the certificate is about {claim.metric!r} of kind {claim.kind!r}, received a metric "
            f"{metric.name!r} of kind {metric.kind!r}. Pass the metric that it was made with."
        )
    return dataclasses.replace(metric, kind=claim.kind)


def _built_in(claim: Claim, model: nn.Module) -> Metric | None:
    """Returns the metric of the model's task that a claim is about, or None where it is about a function."""
    if claim.scored in WITHOUT_LABELS:
        return agreement(of_neighbours=claim.scored == SAME_NEIGHBOUR)
    if claim.scored == RIGHT_ANSWER:
        return accuracy_of_answers()
    for name in metrics_of(model):
        scorer = scorer_for(model, name)
        is_same = scorer.in_words == claim.metric and claim.kind in _kinds_of(scorer.kind)
        if is_same and scorer.describes(claim.scored):
            return dataclasses.replace(Metric.of(scorer, model), kind=claim.kind)
    return None


def _kinds_of(kind: Kind) -> tuple[Kind, ...]:
    """Returns the kinds of claims about scores of a kind: 0/1 scores of groups are compared as bounded ones."""
    return (kind, "bounded") if kind in ("binary", AGREEMENT) else (kind,)


def _check_model(name: str, certificate: Certificate, model: nn.Module, result: Verification) -> None:
    # The class of a checkpoint may be a local copy of ours; what it computes is in weights and configuration.
    stated, found = (dataclasses.asdict(record) for record in (getattr(certificate, name), record_of(model)))
    if name == "pruned":
        stated["dtype"], found["dtype"] = certificate.environment.dtype, dtype_of(model)
    if stated["config"] in old_configs_of(model):
        stated["config"] = found["config"]
    for what, value in found.items():
        if what != "name" and value != stated[what]:
            result.add("fingerprints", f"{name} {what}", f"the model has {value}, the certificate says {stated[what]}")
    result.checked.append(f"fingerprints: {name} weights and configuration")


def _as_certified(certificate: Certificate, data: CertificationData, result: Verification) -> CertificationData | None:
    """Returns the data, to be read as the certificate did, or None where they lack the text columns that it names."""
    if certificate.examples.labelled is not None and data.labels is None:  # the examples hold those that are known
        labels = {} if certificate.claim.scored in WITHOUT_LABELS else own_labels(data.dataset)
        data = dataclasses.replace(data, dataset=PartlyLabelled(data.dataset, {}), labels=labels)
    if certificate.examples.groups is not None:
        data = with_windows(data)
    if data.columns or certificate.examples.kind != TEXT:
        return data
    columns = certificate.examples.columns
    if lacking := set(columns) - set(data.dataset[0]):
        result.add("fingerprints", "split", f"the examples lack the text columns {sorted(lacking)}")
        return None
    return dataclasses.replace(data, columns=columns)


def _check_split(certificate: Certificate, prints: ExampleFingerprints, result: Verification) -> bool:
    """Compares the examples; returns whether they are the same."""
    result.checked.append("fingerprints: the certification split")
    record = certificate.examples
    if (prints.kind, prints.columns if prints.kind == "text" else ()) != (
        record.kind,
        record.columns if record.kind == "text" else (),
    ):
        result.add(
            "fingerprints",
            "split",
            f"the examples are compared by {prints.kind} {list(prints.columns)}, the certificate by {record.kind} "
            f"{list(record.columns)}; pass them as they were when it was made",
        )
        return False
    try:
        stated = record.key_list()
    except CertificateError as error:
        result.add("examples", "examples", str(error))
        return False
    relabelled, added, lost = _differences(stated, _used(certificate, prints, result))
    for name, text, where in (
        ("label", "{} examples have another label", relabelled),
        ("example", "{} examples are not in the certificate", added),
    ):
        if where:
            result.add("fingerprints", name, f"{text.format(len(where))} (indices {where[:SHOWN]})")
    if lost:
        result.add("fingerprints", "example", f"{lost} examples of the certificate are not in the data")
    if prints.sha256() != certificate.split:
        result.add(
            "fingerprints", "split", f"its sha256 is {prints.sha256()}, the certificate says {certificate.split}"
        )
    return not (relabelled or added or lost) and prints.sha256() == certificate.split


def _used(certificate: Certificate, prints: ExampleFingerprints, result: Verification) -> tuple[bytes, ...]:
    """Returns the fingerprints of the examples that were used: the first of them where the test stopped early."""
    if not certificate.claim.stops_early:
        return prints.keys
    used = len(certificate.examples)
    if used + certificate.unused != len(prints):
        result.add("fingerprints", "unused", f"{certificate.unused} of {len(prints)} examples are said to be unused")
    return tuple(prints.keys[index] for index in prints.order[:used])


def _differences(stated: Sequence[bytes], given: Sequence[bytes]) -> tuple[list[int], list[int], int]:
    """Returns which given examples differ in their label alone, which are new, and how many stated ones are lacking."""
    unmatched, new = Counter[bytes](stated), []
    for index, key in enumerate(given):  # of copies too many, the last ones are new
        if unmatched[key]:
            unmatched[key] -= 1
        else:
            new.append(index)
    inputs = Counter(key[:INPUT_BYTES] for key in unmatched.elements())
    relabelled, added = [], []
    for index in new:
        same_input = given[index][:INPUT_BYTES]
        if inputs[same_input]:
            inputs[same_input] -= 1
            relabelled.append(index)
        else:
            added.append(index)
    return relabelled, added, unmatched.total() - len(relabelled)


def _run_again(
    certificate: Certificate,
    models: dict[str, nn.Module | None],
    data: CertificationData,
    metric: Metric | None,
    result: Verification,
) -> None:
    present = [model for model in models.values() if model is not None]
    if metric is None or not present:
        result.skipped.append("both models on the certification split: models or metric were not given")
        return
    is_relative = getattr(metric.score, "compares_models", False) and "labels" not in data.dataset[0]
    if is_relative and models["dense"] is None:
        result.skipped.append(f"both models on the certification split: {metric.name} needs the dense model")
        return
    asked = AGREEMENT if metric.scored in WITHOUT_LABELS else metric
    given, others = first_reader(present), tuple(filter(is_external, present))
    try:
        split = ScoredSplit(dataclasses.replace(data, train=None, search=None), asked, given, seen=others)
    except InvalidSettingError as error:
        if certificate.examples.labelled is None:
            raise  # of the data that were passed, not of what the certificate says
        result.add("models", "labelled", str(error))
        return
    if split.metric.scored != certificate.claim.scored:
        result.add("models", "scored", f"it is {split.metric.scored!r}, it was {certificate.claim.scored!r}")
        return
    try:
        recorded = certificate.examples.scores(certificate.claim.kind)
    except CertificateError:
        return  # level 2 has said so
    _check_groups(certificate, split.groups(), recorded.groups, result)
    _compare_models(certificate, split, models, recorded, result)


def _compare_models(
    certificate: Certificate,
    split: ScoredSplit,
    models: dict[str, nn.Module | None],
    recorded: PairedScores,
    result: Verification,
) -> None:
    outcomes = {name: split.outcome_of(model) for name, model in models.items() if model is not None}
    scores, differing = _as_run_now(split, outcomes, recorded), {}
    for name, said in (("dense", recorded.dense), ("pruned", recorded.pruned)):
        if name not in outcomes:
            result.skipped.append(f"the {name} model on the certification split: it was not given")
            continue
        found = getattr(scores, name)
        if found.shape != said.shape:
            result.add("models", f"{name} model", f"its scores have shape {found.shape}, on record are {said.shape}")
            return
        same = np.isclose(found, said, rtol=0, atol=TOLERANCE).reshape(len(said), -1).all(axis=1)
        if name == "pruned" and scores.changed is not None and recorded.changed is not None:
            same &= scores.changed == recorded.changed
        allowed = turned_by_rounding(models[name], len(said))
        differing[name] = sorted(split.prints.order[~same].tolist()), allowed
        result.checked.append(f"models: the {name} model was run on {len(said)} examples")
    if any(indices for indices, _ in differing.values()):  # else it is what the outcomes on record say
        _compare(certificate, evidence_of(scores, certificate.claim, split.metric.aggregate), differing, result)


def _as_run_now(split: ScoredSplit, outcomes: Mapping[str, Outcome], recorded: PairedScores) -> PairedScores:
    """Returns what is on record, with what the models at hand say in its place."""
    if len(outcomes) == len(MODELS):
        return split.compared(*(outcomes[name] for name in MODELS))
    scores = recorded
    for name, outcome in outcomes.items():  # without a label, an answer means nothing without the other model's
        said = getattr(recorded, name)
        known = outcome.scores if recorded.labelled is None else np.where(recorded.labelled, outcome.scores, said)
        scores = dataclasses.replace(scores, **{name: known})
    return scores


def _check_groups(
    certificate: Certificate, found: np.ndarray | None, said: np.ndarray | None, result: Verification
) -> None:
    if found is None or said is None:
        if said is not None:
            result.skipped.append("the groups of the examples: their column was not given")
        elif found is not None:
            result.add("fingerprints", "groups", "the certificate takes all examples for independent")
        return
    keys = certificate.examples.key_list()
    count = Counter(keys)
    alone = np.array([count[key] == 1 for key in keys])  # copies have no order among themselves
    if not np.array_equal(numbered(found[alone]), numbered(said[alone])):
        result.add("fingerprints", "groups", "other examples belong together")


def _compare(
    certificate: Certificate, evidence: Evidence, differing: dict[str, tuple[list[int], int]], result: Verification
) -> None:
    """Judges what the models say now, and by how many examples that differs, beside how many may."""
    same_verdict = evidence.verdict == certificate.verdict
    for name, (indices, allowed) in differing.items():
        text = f"{len(indices)} examples score differently (indices {indices[:SHOWN]})"
        if len(indices) > allowed or (indices and not same_verdict):
            result.add("models", f"{name} model", text)
        elif indices:
            result.notes.append(f"{name} model: {text}; rounding differs between machines, and the verdict is the same")
    if not same_verdict:
        result.add(
            "models",
            "verdict",
            f"the models give {evidence.verdict} (p = {evidence.p_value:.4f}, drops above {evidence.upper_bound:.4f} "
            f"excluded), the certificate says {certificate.verdict}",
        )


def _check_disjoint(
    certificate: Certificate, data: CertificationData, prints: ExampleFingerprints, result: Verification
) -> None:
    records = {record.name: record for record in certificate.disjointness}
    for name, split in (("train", data.train), ("search", data.search)):
        if split is None:
            result.skipped.append(f"that the {name} split holds none of the examples: it was not given")
            continue
        other = ExampleFingerprints.of(split, columns=data.columns)
        shared = prints.shared_with(other)
        if shared:
            result.add("fingerprints", f"{name} split", f"it holds {len(shared)} of the certification examples too")
        if name not in records:
            result.add("fingerprints", f"{name} split", "the certificate was made without comparing it")
        elif (said := (records[name].split, records[name].examples)) != (found := (other.sha256(), len(other))):
            text = "its sha256 is {} ({} examples), it was {} ({})".format(*found, *said)
            result.add("fingerprints", f"{name} split", text)
        ways = prints.compared_with(other)
        if name in records and (lacking := [way for way in records[name].compared_by if way not in ways]):
            result.skipped.append(f"that the {name} split was compared by {', '.join(lacking)}: the data given lack it")
        words = f"the {name} split, and that it holds none of the examples, by {' and '.join(ways)}"
        result.checked.append(f"fingerprints: {words}")
