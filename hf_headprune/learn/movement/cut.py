"""What the cut keeps of masks of blocks, and masks that make it keep an exact share.

The cut takes whole heads and FFN units. A block that is closed inside one that stays is a zero that counts on, and a
block that is open inside one that goes is lost: a budget of what is cut is one of heads and units.

Everything here is a pure function of tensors and runs without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from hf_headprune.learn.movement.masks import ScoreTensor, top_k_over_model

Parts = Sequence[torch.Tensor]


@dataclass(frozen=True)
class CutSite:
    """The score tensors of one site, and what its blocks can choose among.

    Attributes:
        start: Position of its first tensor in the layout.
        tensors: Of its matrices, the value (or first) matrix and the output projection last; or the one of its units.
        groups: The site's units, or groups of as many as a block touches, at the cost of whole units.
    """

    start: int
    tensors: tuple[ScoreTensor, ...]
    groups: ScoreTensor

    def of(self, parts: Parts) -> Parts:
        """Returns those of a part per tensor of the layout that are this site's."""
        return parts[self.start : self.start + len(self.tensors)]

    def values(self, scores: Parts) -> torch.Tensor:
        """Returns what each group is worth, `(groups,)`: the mean score of its value or of its output blocks.

        The lower of both, since without either it contributes nothing.
        """
        if len(self.tensors) == 1:
            return scores[0]
        value, output = scores[-2], scores[-1].view(self.tensors[-1].shape).T
        return torch.minimum(*(part.reshape(self.groups.numel, -1).mean(1) for part in (value, output)))

    def alive(self, masks: Parts) -> torch.Tensor:
        """Marks the units that the cut keeps, `(units,)`: those with an open value block and an open output block."""
        if len(self.tensors) == 1:
            return masks[0]
        value, output = (mask.view(tensor.shape) for mask, tensor in zip(masks[-2:], self.tensors[-2:], strict=True))
        return self._by_unit(value.amax(1)) * self._by_unit(output.amax(0))

    def _by_unit(self, live: torch.Tensor) -> torch.Tensor:
        """Marks the units with a living block, `(units,)`, from marks of blocks along the units' dimension."""
        units = self.tensors[0].units
        height = math.lcm(units, len(live))  # slices that neither a unit nor a block divides
        return live.repeat_interleave(height // len(live)).view(units, -1).amax(1)

    def masks(self, by_block: Parts, scores: Parts, chosen: torch.Tensor) -> list[torch.Tensor]:
        """Returns the masks, one per tensor, of which the cut keeps exactly the chosen groups.

        Groups that go lose their output blocks alone: the others still hear what opening those would do.

        Args:
            by_block: Masks that decide about the blocks inside.
            scores: Of the site.
            chosen: Ones and zeros, `(groups,)`.
        """
        if len(self.tensors) == 1:
            return [chosen]
        *inner, value, output = by_block
        value = torch.maximum(value, self._best(scores[-2].view(self.tensors[-2].shape)).flatten())
        best = self._best(scores[-1].view(self.tensors[-1].shape).T)
        opened = torch.maximum(output.view(self.tensors[-1].shape).T, best).T
        columns = chosen.repeat_interleave(opened.shape[1] // len(chosen))
        return [*inner, value, (opened * columns).flatten()]

    def _best(self, scores: torch.Tensor) -> torch.Tensor:
        """Marks the best block, `(rows, columns)`, of each unit, or of each row where a block touches several."""
        is_within = self.groups.numel == self.tensors[0].units
        parts = scores.reshape(self.groups.numel if is_within else len(scores), -1)
        return (parts >= parts.amax(1, keepdim=True)).to(scores.dtype).view(scores.shape)


def cut_sites(layout: Sequence[ScoreTensor], width_multiple: int) -> tuple[CutSite, ...]:
    """Gathers the tensors of a layout by their site.

    Args:
        layout: The tensors.
        width_multiple: FFN units stay in multiples of this.
    """
    sites, start = [], 0
    for name, found in groupby(layout, key=lambda tensor: tensor.site):
        tensors = tuple(found)
        sites.append(CutSite(start, tensors, _groups(name, tensors, width_multiple)))
        start += len(tensors)
    return tuple(sites)


def masks_of_cut(
    scores: torch.Tensor, budget: float | torch.Tensor, layout: Sequence[ScoreTensor], sites: Sequence[CutSite]
) -> torch.Tensor:
    """Keeps whole heads and FFN units that a budget pays for; blocks say which.

    What blocks would spend on attention, were each paid for alone (`top_k_over_model`), goes to whole heads, those of
    the highest value. FFN units get the rest, and heads what chunks of FFN units leave over.

    Args:
        scores: Of all tensors, `(n,)`.
        budget: Sum of the costs of the units that the cut keeps; it is never exceeded, and met to less than a head and
            than a chunk of FFN units, unless all of them stay.
        layout: The tensors, in the order of `scores`.
        sites: From `cut_sites`.

    Returns:
        Ones and zeros, `(n,)`.
    """
    sizes = [tensor.numel for tensor in layout]
    by_block, parts = top_k_over_model(scores, budget, layout).split(sizes), scores.split(sizes)
    heads = [site for site in sites if site.groups.kind.endswith("attention")]
    ffns = [site for site in sites if site not in heads]
    chosen: dict[str, torch.Tensor] = {}
    if heads and ffns:
        share = _cost(pair for site in heads for pair in zip(site.tensors, site.of(by_block), strict=True))
        chosen = _chosen(ffns, parts, budget - _spent(heads, _chosen(heads, parts, share)))
        budget = budget - _spent(ffns, chosen)
    chosen |= _chosen(heads or ffns, parts, budget)
    return torch.cat(
        [mask for site in sites for mask in site.masks(site.of(by_block), site.of(parts), chosen[site.groups.name])]
    )


def cost_of_cut(mask: torch.Tensor, layout: Sequence[ScoreTensor], sites: Sequence[CutSite]) -> torch.Tensor:
    """Returns the sum of the costs of the units that the cut keeps of a mask, `(n,)`; float64."""
    masks = mask.split([tensor.numel for tensor in layout])
    alive = (site.alive(site.of(masks)).sum(dtype=torch.float64) / site.tensors[0].units for site in sites)
    return torch.stack(
        [share * site.groups.cost * site.groups.numel for share, site in zip(alive, sites, strict=True)]
    ).sum()


def _groups(name: str, tensors: tuple[ScoreTensor, ...], width_multiple: int) -> ScoreTensor:
    if tensors[0].is_units:
        return tensors[0]
    units = tensors[0].units
    number = math.gcd(units, tensors[-2].shape[0], tensors[-1].shape[1])
    is_attention = tensors[0].kind.endswith("attention")
    return ScoreTensor(
        name=name,
        paths=(),
        kind=tensors[0].kind,
        shape=(number,),
        cost=sum(tensor.cost * tensor.numel for tensor in tensors) / number,
        multiple=1 if is_attention else math.lcm(width_multiple, units // number) * number // units,
    )


def _chosen(sites: Sequence[CutSite], scores: Parts, budget: float | torch.Tensor) -> dict[str, torch.Tensor]:
    groups = [site.groups for site in sites]
    values = torch.cat([site.values(site.of(scores)) for site in sites])
    kept = top_k_over_model(values, budget, groups).split([group.numel for group in groups])
    return {group.name: part for group, part in zip(groups, kept, strict=True)}


def _spent(sites: Sequence[CutSite], chosen: dict[str, torch.Tensor]) -> torch.Tensor:
    return _cost((site.groups, chosen[site.groups.name]) for site in sites)


def _cost(masks: Iterable[tuple[ScoreTensor, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([tensor.cost * mask.sum(dtype=torch.float64) for tensor, mask in masks]).sum()
