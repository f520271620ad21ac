"""Gradients of a loss for some leaves alone, also where the loss runs the model again inside of its backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn


def gradients_of(
    loss: torch.Tensor, leaves: Sequence[torch.Tensor], model: nn.Module
) -> tuple[torch.Tensor | None, ...]:
    """Returns the gradient of a loss for each leaf, None where the loss does not depend on it.

    Contrastive losses that cache (Gao et al. 2021, arXiv 2101.06983) embed without a graph, and again with one when the
    backward pass comes. No other tensor keeps a gradient, whichever way it is.

    Args:
        loss: A number.
        leaves: Of the graph, or of the one that the backward pass makes.
        model: What that pass runs.
    """
    # Hooks of what a graph begins with run in any case, and may make that second pass: so it begins one step later.
    found = torch.autograd.grad(loss.view_as(loss), leaves, allow_unused=True)
    if any(gradient is not None for gradient in found):
        return found
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = {id(leaf): leaf for leaf in (*leaves, *trained, *_leaves_of(loss))}.values()
    before = [(leaf, leaf.grad) for leaf in others]
    try:
        for leaf, gradient in before:
            leaf.grad = None if gradient is None else gradient.clone()  # the loss may read it
        for parameter in trained:
            parameter.requires_grad_(False)  # the graph of the second pass leads to the leaves alone
        loss.backward()
        return tuple(leaf.grad for leaf in leaves)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for leaf, gradient in before:
            leaf.grad = gradient


def _leaves_of(loss: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the leaves of the graph of a loss."""
    left, seen = [loss.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), torch.Tensor):
            yield leaf
        left += [following for following, _ in node.next_functions]
