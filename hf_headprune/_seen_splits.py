"""A model remembers the examples by which it was pruned or searched, so that it is not certified on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn


class SeenSplits:
    """What examples were seen, as fingerprints where they can be had. Pickles leave it behind.

    Attributes:
        splits: What examples were used for ("search" or "calibration") and what tells them apart -> the fingerprints,
            or the examples.
    """

    def __init__(self, splits: Mapping[tuple[str, Any], Any] | None = None) -> None:
        """Holds them."""
        self.splits = dict(splits or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> SeenSplits:
        """Returns itself: it does not change."""
        return self

    def __reduce__(self) -> tuple[type[SeenSplits], tuple[()]]:
        """Forgets the examples."""
        return SeenSplits, ()


def remember_seen_(model: nn.Module, **splits: Any) -> None:
    """Lets a model, and every copy of it in this process, remember examples until it is deleted.

    Args:
        model: What is to be pruned, or was.
        **splits: `search=...`, `calibration=...`: fingerprints, or a few examples; None is passed by.
    """
    new = {(name, _key_of(seen)): seen for name, seen in splits.items() if seen is not None}
    _hold(model, SeenSplits(_splits_of(model) | new))


def share_seen_(model: nn.Module, other: nn.Module) -> None:
    """Lets a model remember what another one, such as a copy of it, has seen."""
    _hold(model, SeenSplits(_splits_of(model) | _splits_of(other)))


def seen_by(*models: Any) -> Iterator[tuple[str, Any]]:
    """Yields what models remember, each pair once: what examples were used for, and what was remembered of them."""
    merged: dict[tuple[str, Any], Any] = {}
    for model in models:
        merged |= _splits_of(model)
    yield from ((name, seen) for (name, _), seen in merged.items())


def _key_of(seen: Any) -> Any:
    return seen.sha256() if hasattr(seen, "sha256") else id(seen)


def _hold(model: Any, seen: SeenSplits) -> None:
    model.headprune_seen = seen


def _splits_of(model: Any) -> dict[tuple[str, Any], Any]:
    return getattr(model, "headprune_seen", SeenSplits()).splits
