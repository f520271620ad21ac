"""A model remembers the examples by which it was pruned or searched, so that it is not certified on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn


class SeenSplits:
    """Data sets by reference: copies of a model share them, and what is pickled leaves them behind.

    Attributes:
        splits: What a data set was used for ("search" or "calibration") and the `id` of the data set -> the data set.
    """

    def __init__(self, splits: Mapping[tuple[str, int], Any] | None = None) -> None:
        """Holds them, and so keeps their ids their own."""
        self.splits = dict(splits or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> SeenSplits:
        """Returns itself: it does not change, and a data set may be large."""
        return self

    def __reduce__(self) -> tuple[type[SeenSplits], tuple[()]]:
        """Forgets the data sets."""
        return SeenSplits, ()


def remember_seen_(model: nn.Module, **splits: Any) -> None:
    """Lets a model, and every copy of it in this process, remember data sets until it is deleted.

    Args:
        model: What is to be pruned, or was.
        **splits: `search=dataset`, `calibration=dataset`; None is passed by.
    """
    new = {(name, id(dataset)): dataset for name, dataset in splits.items() if dataset is not None}
    holder: Any = model
    holder.headprune_seen = SeenSplits(_splits_of(model) | new)


def seen_by(*models: Any) -> Iterator[tuple[str, Any]]:
    """Yields what models remember, each pair once: what a data set was used for, and the data set."""
    merged: dict[tuple[str, int], Any] = {}
    for model in models:
        merged |= _splits_of(model)
    yield from ((name, dataset) for (name, _), dataset in merged.items())


def _splits_of(model: Any) -> dict[tuple[str, int], Any]:
    return getattr(model, "headprune_seen", SeenSplits()).splits
