"""Runs several plans in one forward pass: the batch holds its examples once for each plan, share by share.

Plans that are measured together mostly keep the same units. Only where they differ, an output projection multiplies
each share of its input by the weights of the share's plan; all other products are those of one plan on a larger batch.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from hf_headprune.anatomy import Site
    from hf_headprune.plan import PruningPlan

Projection = tuple[torch.Tensor, torch.Tensor | None]  # weight (hidden_size, width) and bias (hidden_size,)


def union_of(plans: Sequence[PruningPlan]) -> PruningPlan:
    """Returns the plan that keeps whatever one of several keeps."""
    first = plans[0]
    return first.replace(
        kept_heads={site: _union(plan.kept(site) for plan in plans) for site in first.kept_heads},
        kept_ffn={site: _union(plan.kept(site) for plan in plans) for site in first.kept_ffn},
    )


def differing_sites(sites: Sequence[Site], plans: Sequence[PruningPlan]) -> list[Site]:
    """Returns the sites of which not all plans keep the same units."""
    return [site for site in sites if any(plan.kept(site.name) != plans[0].kept(site.name) for plan in plans)]


def without_closed(projection: Projection, site: Site, kept: Sequence[int]) -> Projection:
    """Returns a projection that gives nothing for units that a plan does not keep."""
    weight, bias = projection
    columns = torch.tensor(site.columns(kept), dtype=torch.long, device=weight.device)
    closed = torch.zeros_like(weight)
    closed[:, columns] = weight[:, columns]
    return closed, bias


def repeated(tensors: Mapping[str, torch.Tensor], times: int) -> dict[str, torch.Tensor]:
    """Returns tensors `(batch, ...)` as `(times * batch, ...)`, one whole batch after the other."""
    return {name: tensor.expand(times, *tensor.shape).flatten(0, 1) for name, tensor in tensors.items()}


@contextmanager
def projecting(projections: Mapping[nn.Module, Sequence[Projection]]) -> Iterator[None]:
    """Lets linear modules multiply each share of their input by weights of its own, for the length of a `with` block.

    Args:
        projections: For each module one projection per share; the shares follow one another along the first axis of
            its input and are equally large.
    """
    before = {module: vars(module).get("forward") for module in projections}
    try:
        for module, own in projections.items():
            module.forward = _Shares(own)
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


class _Shares:
    def __init__(self, projections: Sequence[Projection]) -> None:
        self._weights = torch.stack([weight for weight, _ in projections]).transpose(1, 2)  # (shares, width, hidden)
        biases = [bias for _, bias in projections if bias is not None]
        self._biases = torch.stack(biases)[:, None] if biases else None  # (shares, 1, hidden)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        shares = hidden.reshape(len(self._weights), -1, hidden.shape[-1])
        product: Any = torch.bmm(shares, self._weights)
        if self._biases is not None:
            product = product + self._biases.to(product.dtype)
        return product.reshape(*hidden.shape[:-1], -1)


def _union(kept: Any) -> tuple[int, ...]:
    return tuple(sorted(set().union(*kept)))
