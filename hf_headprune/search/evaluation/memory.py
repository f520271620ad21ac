"""Keeps hidden states that plans share, under a bound on their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


class StateMemory:
    """Hidden states under a bound on their bytes, in groups that are dropped as a whole, those used last at the end.

    A group holds what one prefix of a plan computed of all batches. Groups at work are never dropped for one another:
    a plan is measured in turns over all batches, where dropping the oldest state would drop each just before it is
    needed again.

    Attributes:
        num_bytes: Held now.
        peak_bytes: Held at most so far.
        has_room: Whether no state of the groups at work was turned away yet.
    """

    def __init__(self, limit_mib: float) -> None:
        """Starts empty."""
        self.num_bytes = self.peak_bytes = 0
        self.has_room = True
        self._limit = int(limit_mib * 2**20)
        self._held: dict[Any, dict[Any, torch.Tensor]] = {}
        self._at_work: dict[Any, None] = {}

    def work_on(self, groups: Iterable[Any]) -> None:
        """Says which groups are needed next."""
        self._at_work, self.has_room = dict.fromkeys(groups), True
        for group in self._at_work:
            if group in self._held:
                self._held[group] = self._held.pop(group)

    def get(self, group: Any, key: Any) -> torch.Tensor | None:
        """Returns a state, or None where it is not held."""
        return self._held.get(group, {}).get(key)

    def add(self, group: Any, key: Any, state: torch.Tensor) -> None:
        """Keeps a state of a group at work where the bound allows it, at the cost of groups that are not."""
        if self.get(group, key) is not None:
            return
        size = _bytes(state)
        while self.num_bytes + size > self._limit and (idle := [g for g in self._held if g not in self._at_work]):
            self.num_bytes -= sum(map(_bytes, self._held.pop(idle[0]).values()))
        self.has_room = self.num_bytes + size <= self._limit
        if self.has_room:
            self._held.setdefault(group, {})[key] = state
            self.num_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.num_bytes)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
