"""Several promises together: of each class or group, on several data sets, by several metrics; all of them must hold.

Each is tested at the full level. That all hold is stated only if each one was shown: if any is false, the chance of
that is at most the chance that this one passes (intersection-union test). That one fails is stated at its share.

Source:
    Berger, Technometrics 24 (1982): multiparameter hypothesis testing and acceptance sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune.errors import InvalidSettingError, shown
from hf_headprune.guarantee.arithmetic import badness
from hf_headprune.guarantee.certificate import ExampleRecord, Promise
from hf_headprune.guarantee.evidence import evidence_of
from hf_headprune.guarantee.examples import groups_of, rows_of
from hf_headprune.guarantee.external import first_reader
from hf_headprune.guarantee.scored import CertificationData, ScoredSplit, data_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hf_headprune.guarantee.claim import Claim
    from hf_headprune.guarantee.outcomes import PairedScores


def are_several(dataset: Any, metric: Any, each: Any) -> bool:
    """Tells whether arguments of `certify` ask for more than one promise."""
    return isinstance(dataset, Mapping) or isinstance(metric, (list, tuple)) or each is not None


def promises_of(
    models: tuple[Any, Any],
    dataset: Any,
    metric: Any,
    each: Any,
    claim_of: Callable[[ScoredSplit], Claim],
    *,
    labels: Any,
) -> tuple[Promise, ...]:
    """Tests every promise; returns them with the worst first.

    Args:
        models: The dense and the pruned one.
        dataset: One split, or a mapping of names to splits.
        metric: One metric, or several.
        each: Column, or columns, in each value of which the promise must hold too.
        claim_of: Returns the claim on a split.
        labels: Of examples without any of their own; for one split.

    Raises:
        InvalidSettingError: Names are none, or there is nothing to test.
    """
    splits, columns = _splits(dataset, labels), _columns(each)
    metrics = metric if isinstance(metric, (list, tuple)) else [metric]
    if not metrics:
        raise InvalidSettingError("certify: metric must be a metric or a list of some, received an empty list.")
    found = []
    for name, data in splits.items():
        for asked in metrics:
            split = ScoredSplit(data, asked, first_reader(models), seen=models)
            pair = split.compared(*(split.outcome_of(model) for model in models))
            claim = replace(claim_of(split), dataset=name)
            found += [(split, pair, claim, places) for claim, places in _parts(split, claim, columns)]
    if len({claim for _, _, claim, _ in found}) < len(found):
        raise InvalidSettingError("certify: promises must differ, received a metric or a column twice.")
    made = [_promise(*part, num_promises=len(found)) for part in found]
    return tuple(sorted(made, key=badness, reverse=True))


def part_of(data: CertificationData, column: str, value: str) -> CertificationData:
    """Returns the examples of a split with a value in a column."""
    values = groups_of(data.dataset, column, where="certify(each=...)")
    kept = [index for index, found in enumerate(values) if found == value]
    labels = data.labels
    if labels is not None:
        known = labels if isinstance(labels, Mapping) else dict(enumerate(labels))
        labels = {place: known[index] for place, index in enumerate(kept) if known.get(index) is not None}
    return replace(data, dataset=rows_of(data.dataset, kept), labels=labels)


def _parts(split: ScoredSplit, claim: Claim, columns: tuple[str, ...]) -> Iterator[tuple[Claim, np.ndarray]]:
    """Yields the claim on the whole split and on each part of it, with the places of its examples in their order."""
    yield claim, np.arange(len(split.prints))
    for column in columns:
        values = groups_of(split.data.dataset, column, where="certify(each=...)")
        ordered = np.array([values[index] for index in split.prints.order], dtype=object)
        for value in sorted(set(values)):
            yield replace(claim, column=column, value=value), np.flatnonzero(ordered == value)


def _promise(split: ScoredSplit, pair: PairedScores, claim: Claim, places: np.ndarray, *, num_promises: int) -> Promise:
    claim = replace(claim, num_promises=num_promises)
    prints, pair = split.prints.taken(split.prints.order[places]), pair.taken(places)
    return Promise(
        claim=claim,
        evidence=evidence_of(pair, claim, split.metric.aggregate),
        split=prints.sha256(),
        disjointness=split.disjointness,
        examples=ExampleRecord.of(prints.kind, prints.columns, list(prints.keys), pair, claim.kind),
    )


def _splits(dataset: Any, labels: Any) -> dict[str, CertificationData]:
    if not isinstance(dataset, Mapping):
        return {"": data_of(dataset, labels)}
    if not dataset or labels is not None or not all(isinstance(name, str) and name for name in dataset):
        raise InvalidSettingError(
            "certify: several data sets are a mapping of names to splits, each with labels of its own "
            f"(CertificationData(..., labels=)), received {shown(dataset)} and labels {shown(labels)}."
        )
    return {name: data_of(data) for name, data in dataset.items()}


def _columns(each: Any) -> tuple[str, ...]:
    columns = (each,) if isinstance(each, str) else () if each is None else each
    if not isinstance(columns, (list, tuple)) or not all(isinstance(name, str) and name for name in columns):
        raise InvalidSettingError(
            f"certify: each must be the name of a column or a list of some, received {shown(each)}. Pass each='label' "
            "for a promise about each class."
        )
    return tuple(columns)
