"""Takes batches apart into examples without their padding, and puts others together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_headprune.tasks.examples import IGNORED_LABEL, LABEL_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

IDS, MASK = "input_ids", "attention_mask"


class Rows:
    """Examples of batches, which other batches may be made of.

    Attributes:
        lengths: Tokens of each example, `(num_examples,)`.
    """

    def __init__(self, batches: Sequence[Mapping[str, torch.Tensor]], pad_token_id: int | None) -> None:
        """Cuts padding off where it is on the right and masked; any other is kept."""
        self._rows: list[dict[str, torch.Tensor]] = []
        self._filler = {IDS: pad_token_id or 0, **dict.fromkeys(LABEL_NAMES, IGNORED_LABEL)}
        self._sequences: set[str] = set()
        for batch in batches:
            inputs = dict(batch)
            width = inputs[IDS].shape[1] if IDS in inputs else None
            if width is not None and MASK not in inputs:
                inputs[MASK] = torch.ones_like(inputs[IDS])
            along = {name for name, tensor in inputs.items() if tensor.dim() > 1 and tensor.shape[1] == width}
            self._sequences |= along
            for index in range(len(next(iter(inputs.values())))):
                row = {name: tensor[index] for name, tensor in inputs.items()}
                length = _length(row[MASK]) if width is not None else None
                self._rows.append({name: value[:length] if name in along else value for name, value in row.items()})
        self.lengths = np.array([len(row[IDS]) if IDS in row else 1 for row in self._rows])

    def batch(self, indices: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
        """Returns a batch of some examples, padded on the right to the longest of them."""
        rows = [self._rows[index] for index in indices]
        tensors = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name in self._sequences:
                tensor = torch.nn.utils.rnn.pad_sequence(
                    values, batch_first=True, padding_value=self._filler.get(name, 0)
                )
            else:
                tensor = torch.stack(values)
            tensors[name] = tensor.to(device)
        return tensors


def can_be_taken_apart(batches: Sequence[Mapping[str, torch.Tensor]]) -> bool:
    """Tells whether every batch has the same entries, with a row per example and at most one axis of tokens."""
    if len({frozenset(batch) for batch in batches}) != 1:
        return False
    for batch in batches:
        sizes = {len(tensor) if tensor.dim() else -1 for tensor in batch.values()}
        flat = all(tensor.dim() <= 2 for tensor in batch.values()) or IDS not in batch  # noqa: PLR2004
        if len(sizes) != 1 or not flat:
            return False
    return True


def _length(mask: torch.Tensor) -> int:
    """Returns where the masked end of an example begins; its whole width where ones and zeros mix."""
    ones = int(mask.sum())
    return ones if ones and bool(mask[:ones].eq(1).all()) else len(mask)
