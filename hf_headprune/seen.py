"""What was looked at to choose what of a model stays goes along with it, so that nobody certifies the model on that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


class SeenSplits:
    """Data sets by reference: copies of a model share them, and what is pickled leaves them behind.

    Attributes:
        splits: Pairs of what a data set was used for ("search" or "calibration") and the data set.
    """

    def __init__(self, *splits: tuple[str, Any]) -> None:
        """Holds the pairs."""
        self.splits = splits

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
    known = list(seen_by(model))
    new = [pair for pair in splits.items() if pair[1] is not None and not any(_same(pair, other) for other in known)]
    holder: Any = model
    holder.headprune_seen = SeenSplits(*known, *new)


def seen_by(*models: Any) -> Iterator[tuple[str, Any]]:
    """Yields what models remember, each pair once: what a data set was used for, and the data set."""
    found: list[tuple[str, Any]] = []
    for model in models:
        for pair in getattr(model, "headprune_seen", SeenSplits()).splits:
            if not any(_same(pair, other) for other in found):
                found.append(pair)
                yield pair


def _same(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    return one[0] == other[0] and one[1] is other[1]
