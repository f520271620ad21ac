"""Attention that takes its own heads of a bias that one layer makes for the heads of all layers.

In T5 and MPNet the bias of relative positions has an entry per head of the dense model and is handed from layer to
layer. A block that has lost heads remembers which it has kept, in a buffer of its own.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import initialization

from hf_headprune._offloaded import device_of
from hf_headprune.anatomy import KEPT_HEADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

UNWRITTEN = "headprune_unwritten_heads"  # attribute of a block whose buffer has no memory: what will be written there


class OwnHeadsOfBias:
    """Forward of attention with some heads of a shared bias; mixed into the class of the attention."""

    dense_class: Any
    bias_argument: str
    _bias_of_all_heads: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the dense forward with its own part of the bias, and hands on the whole.

        A bias with one head for all is passed as it is.
        """
        given = signature_of(self.dense_class).bind(self, *args, **kwargs)
        bias = given.arguments.get(self.bias_argument)
        self._bias_of_all_heads = bias
        if bias is not None:
            given.arguments[self.bias_argument] = self._own(bias)
        outputs = self.dense_class.forward(*given.args, **given.kwargs)
        whole, self._bias_of_all_heads = self._bias_of_all_heads, None
        if not hasattr(self.dense_class, "compute_bias"):  # the bias is made elsewhere, and not handed on
            return outputs
        own = outputs[1]
        return (outputs[0], own[:, :1] if whole is None else whole, *outputs[2:])

    def compute_bias(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Makes the bias of all heads, notes it, and returns this block's part."""
        self._bias_of_all_heads = self.dense_class.compute_bias(self, *args, **kwargs)
        return self._own(self._bias_of_all_heads)

    def _own(self, bias: torch.Tensor) -> torch.Tensor:
        """Returns the block's heads of a bias, `(batch, heads, queries, keys)`."""
        return bias if bias.shape[1] == 1 else bias.index_select(1, getattr(self, KEPT_HEADS))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles name the class by what it is made from, since it has no module of its own."""
        return _blank, (self.dense_class, self.bias_argument), self.__dict__.copy()


@functools.cache
def signature_of(dense_class: Any) -> inspect.Signature:
    """Returns the signature of a class's forward pass."""
    return inspect.signature(dense_class.forward)


@functools.cache
def own_heads_class(dense_class: Any, bias_argument: str) -> Any:
    """Returns the subclass of an attention class that takes its own heads of a bias, always the same one."""
    namespace: dict[str, Any] = {"dense_class": dense_class, "bias_argument": bias_argument}
    return type(f"OwnHeads{dense_class.__name__}", (OwnHeadsOfBias, dense_class), namespace)


def take_heads_of_bias_(core: nn.Module, kept: Sequence[int], *, argument: str) -> None:
    """Lets an attention block, in place, take the heads that it keeps of a bias of all heads.

    Args:
        core: Module that computes the heads.
        kept: Heads that stay, numbered as the block has them now.
        argument: Name of the argument of its forward pass that is the bias.
    """
    known = getattr(core, KEPT_HEADS, None)
    device = device_of(core)
    index = torch.tensor(list(kept), dtype=torch.long, device=device)
    if known is not None:
        index = known.index_select(0, index)
    core.register_buffer(KEPT_HEADS, index)
    if index.is_meta:
        before = vars(core).get(UNWRITTEN)
        vars(core)[UNWRITTEN] = list(kept) if before is None else [before[head] for head in kept]
    if not isinstance(core, OwnHeadsOfBias):
        dense_class: Any = type(core)
        core.__class__ = own_heads_class(dense_class, argument)


def write_heads_of_bias_(model: nn.Module) -> None:
    """Writes into buffers that were made without memory which heads they hold, unless a checkpoint has said so."""
    for core in model.modules():
        index = getattr(core, KEPT_HEADS, None)
        if index is not None and not index.is_meta and UNWRITTEN in vars(core):
            initialization.copy_(index, torch.tensor(vars(core).pop(UNWRITTEN), device=index.device))


def _blank(dense_class: Any, bias_argument: str) -> Any:
    cls = own_heads_class(dense_class, bias_argument)
    return cls.__new__(cls)
