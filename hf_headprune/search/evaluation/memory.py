"""Keeps hidden states that plans share, under a bound on their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class StateMemory:
    """Hidden states under a bound on their bytes.

    Those of the owner at work are never dropped for one another: plans are measured in turns over all batches, where
    dropping the oldest would drop each state just before it is needed again. Older owners are dropped first.

    Attributes:
        num_bytes: Held now.
        peak_bytes: Held at most so far.
    """

    def __init__(self, limit_mib: float) -> None:
        """Starts empty."""
        self.num_bytes = self.peak_bytes = 0
        self._limit = int(limit_mib * 2**20)
        self._held: dict[Any, dict[Any, torch.Tensor]] = {}  # owners, the one used last at the end
        self._without_room: set[Any] = set()

    def of(self, owner: Any) -> Mapping[Any, torch.Tensor]:
        """Returns the states of an owner, which is now the one at work."""
        self._held[owner] = self._held.pop(owner, {})
        return self._held[owner]

    def has_room(self, owner: Any) -> bool:
        """Whether no state of this owner was turned away yet."""
        return owner not in self._without_room

    def add(self, owner: Any, key: Any, state: torch.Tensor) -> None:
        """Keeps a state where the bound allows it, at the cost of other owners."""
        size = _bytes(state)
        if key in self.of(owner):
            return
        while self.num_bytes + size > self._limit and len(self._held) > 1:
            self.drop(next(iter(self._held)))
        if self.num_bytes + size > self._limit:
            self._without_room.add(owner)
            return
        self._held[owner][key] = state
        self.num_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)

    def drop(self, owner: Any) -> None:
        """Forgets an owner and its states."""
        self._without_room.discard(owner)
        self.num_bytes -= sum(map(_bytes, self._held.pop(owner, {}).values()))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
