"""Weights masked by blocks, and the gradients of the blocks' scores; no mask of full size is ever made.

A mask of shape `(rows, columns)` stands for a matrix cut into as many blocks of equal shape; the block's shape follows
from that of the matrix. A mask of the units of a site (heads or FFN units) is a vector: the output projection's columns
are multiplied by it, which for an FFN equals masking the rows of the first matrix (biases included) too.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from hf_headprune.anatomy import matrix_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune._layouts import Entries


def masked_blocks(matrix: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns a matrix, `(out, in)`, multiplied block by block with a mask, `(rows, columns)`."""
    return (_by_blocks(matrix, mask) * mask.to(matrix.dtype)[:, None, :, None]).view_as(matrix)


def block_sums(matrix: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Returns the sum over each block of a matrix, float32, in the shape `(rows, columns)` of `blocks`."""
    rows, columns = blocks.shape
    by_column = matrix.reshape(rows, -1, matrix.shape[1]).sum(1, dtype=torch.float32)  # faster than both at once
    return by_column.view(rows, columns, -1).sum(2)


def live_rows(mask: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Marks the rows of the matrix, `(num_rows,)`, in which at least one block of the mask is alive."""
    return mask.amax(1).repeat_interleave(num_rows // mask.shape[0])


def _by_blocks(matrix: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    rows, columns = blocks.shape
    return matrix.reshape(rows, matrix.shape[0] // rows, columns, matrix.shape[1] // columns)


class MaskSlot:
    """Where a module finds the mask and the scores of its next forward pass.

    Attributes:
        mask: Factors, ones and zeros in training: `(rows, columns)` or `(units,)`; None leaves the module unchanged.
        scores: Of the same shape, to receive gradients; None when no score is learned.
        scores_closed: Whether the scores of closed units receive the gradient that opening them would have.
    """

    def __init__(self, *, scores_closed: bool = True) -> None:
        """Starts empty."""
        self.mask: torch.Tensor | None = None
        self.scores: torch.Tensor | None = None
        self.scores_closed = scores_closed

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry no graph, which torch refuses to copy."""
        mask = None if self.mask is None else self.mask.detach()
        return {"mask": mask, "scores": None, "scores_closed": self.scores_closed}


class BlockMaskedLinear(nn.Linear):
    """A linear module that multiplies its weight by a mask of blocks, and its bias by the rows that are left.

    A plain `nn.Linear` becomes one by `become_masked_` and stops being one by `become_plain_`; its parameters and
    their names stay.

    Attributes:
        slot: Mask and scores, of shape `(rows, columns)`.
        masks_bias: Whether the bias of a row without a living block is dropped too.
    """

    slot: MaskSlot
    masks_bias: bool

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to `(..., out_features)`."""
        mask = self.slot.mask
        bias: torch.Tensor | None = self.bias
        if mask is None:
            return functional.linear(hidden, matrix_of(self), bias)
        if self.masks_bias and bias is not None:
            bias = bias * live_rows(mask, len(bias)).to(bias.dtype)
        return _BlockMasked.apply(*_as_autocast(hidden, matrix_of(self), bias), self.slot.scores, mask)


class UnitMaskedLinear(nn.Linear):
    """The output projection of a site without the columns of closed units: as if its input were masked.

    Attributes:
        slot: Mask and scores, of shape `(units,)`.
    """

    slot: MaskSlot

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps `(..., units * unit_width)` to `(..., out_features)`."""
        mask, scores = self.slot.mask, self.slot.scores
        if mask is None:
            return functional.linear(hidden, matrix_of(self), self.bias)
        if scores is not None and not self.slot.scores_closed:
            scores = scores * mask
        # The columns of a unit are a block over all rows; to mask weights is less work than to mask activations.
        read = _as_autocast(hidden, matrix_of(self), self.bias)
        return _BlockMasked.apply(*read, None if scores is None else scores[None], mask[None])


class UnitRowScores:
    """Forward hook of a first matrix of an FFN: its rows' share of the gradient of the units' scores.

    Attributes:
        slot: That of the second matrix.
        owners: Unit of each row, `(rows,)`; None where rows are units.
    """

    def __init__(self, slot: MaskSlot, owners: torch.Tensor | None = None) -> None:
        """Reads the slot of the second matrix."""
        self.slot = slot
        self.owners = owners

    def __call__(self, module: nn.Linear, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Returns the output, `(..., rows)`, unchanged."""
        scores = self.slot.scores
        return output if scores is None else _RowScores.apply(output, module.bias, scores, self.owners)


def become_masked_(linear: nn.Linear, kind: type[nn.Linear], slot: MaskSlot, **settings: Any) -> None:
    """Turns a plain linear module into a masked one, in place."""
    vars(linear).update(slot=slot, plain_class=type(linear), **settings)
    linear.__class__ = kind


def become_plain_(linear: nn.Linear) -> None:
    """Turns a masked linear module back into a plain one, in place."""
    linear.__class__ = vars(linear).get("plain_class", nn.Linear)
    for name in ("slot", "plain_class", "masks_bias"):
        vars(linear).pop(name, None)


def close_units_(linears: tuple[nn.Linear, ...], mask: torch.Tensor, rows: Sequence[Entries] = ()) -> None:
    """Zeroes, in place, the rows, biases and columns of the units that a mask, `(units,)`, closes.

    Args:
        linears: Matrices of a site; of the last, the output projection, the columns belong to the units.
        mask: Ones and zeros.
        rows: Which rows of each matrix but the last belong to which unit; unit by unit when left out.
    """
    *inputs, output = linears
    weight = matrix_of(output)
    weight.mul_(mask.repeat_interleave(weight.shape[1] // len(mask)).to(weight.dtype))
    for linear, entries in zip_longest(inputs, rows):
        weight = matrix_of(linear)
        owned = mask.repeat_interleave(len(weight) // len(mask))
        if entries is not None:
            owned = mask[torch.tensor(entries.owners(), device=mask.device)]
        weight.mul_(owned.to(weight.dtype)[:, None])
        if linear.bias is not None:
            linear.bias.mul_(owned.to(weight.dtype))


def close_blocks_(linear: nn.Linear, mask: torch.Tensor, *, masks_bias: bool) -> None:
    """Zeroes, in place, the blocks that a mask, `(rows, columns)`, closes, and the biases of rows without any other."""
    weight = matrix_of(linear)
    weight.copy_(masked_blocks(weight, mask))
    if masks_bias and linear.bias is not None:
        linear.bias.mul_(live_rows(mask, len(linear.bias)).to(linear.bias.dtype))


def _as_autocast(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Casts what a product reads as autocast will anyway: to mask it then costs half as much. Doubles stay."""
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device.type
    if any(tensor.dtype == torch.float64 for tensor in given) or not torch.amp.is_autocast_available(device):
        return tensors
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


class _BlockMasked(torch.autograd.Function):
    """`hidden @ (M * W).T + bias`, with the straight-through gradient of the scores.

    The masked weight is computed again for the backward pass: keeping it would cost the memory of a second weight.
    Under autocast the cast weight is kept, as plain linear modules keep theirs.

    Source: Lagunas et al. 2021 (arXiv 2109.04838), section 3.2; dL/dS_b is the sum over the block of dL/dW' * W.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scores: torch.Tensor | None,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        del scores
        ctx.save_for_backward(hidden, weight, mask)
        return functional.linear(hidden, masked_blocks(weight, mask), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grad_outputs[0]
        hidden, weight, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grads: list[torch.Tensor | None] = [None] * 5
        if needs[0]:
            grads[0] = (grad @ masked_blocks(weight, mask).to(grad.dtype)).to(hidden.dtype)
        if needs[1] or needs[3]:
            full = _outer(grad, hidden).to(weight.dtype)  # gradient of the masked weight
            grads[1] = masked_blocks(full, mask) if needs[1] else None
            grads[3] = block_sums(full.mul_(weight), mask) if needs[3] else None
        grads[2] = grad.flatten(0, -2).sum(0) if needs[2] else None
        return tuple(grads)


class _RowScores(torch.autograd.Function):
    """Identity whose backward gives each unit's score the sum over its row of dL/dW * W, without the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        bias: torch.Tensor | None,
        scores: torch.Tensor,
        owners: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(output, bias, owners)
        ctx.units = len(scores)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grad_outputs[0]
        output, bias, owners = ctx.saved_tensors
        from_weight = output if bias is None else output - bias.to(output.dtype)
        by_row = (grad * from_weight).flatten(0, -2).sum(0, dtype=torch.float32)
        if owners is not None:
            by_row = by_row.new_zeros(ctx.units).index_add(0, owners.to(by_row.device), by_row)
        return grad, None, by_row, None


def _outer(grad: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a weight, `(out, in)`, from those of the output and the input, `(..., features)`."""
    return grad.flatten(0, -2).T @ hidden.to(grad.dtype).flatten(0, -2)
