"""Lets a model remember the examples that it is chosen by, as fingerprints, so that no data set is kept alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune._seen_splits import remember_seen_
from hf_headprune.errors import HeadPruneError
from hf_headprune.guarantee.examples import ExampleFingerprints

if TYPE_CHECKING:
    from torch import nn


def remember_examples_(model: nn.Module, **splits: Any) -> None:
    """Lets a model remember data sets: they can certify nothing from now on.

    A data set whose examples have no fingerprint could certify nothing anyway; it is passed by.

    Args:
        model: What is to be pruned.
        **splits: `search=dataset`, `calibration=dataset`; None is passed by.
    """
    for name, dataset in splits.items():
        if dataset is None:
            continue
        try:
            remember_seen_(model, **{name: ExampleFingerprints.of(dataset)})
        except HeadPruneError:
            continue
