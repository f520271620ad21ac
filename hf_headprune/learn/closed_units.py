"""Closes units of a model in training: by factors while the choice may change, and then out of all products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import linear

from hf_headprune.anatomy import base_model, matrix_of, transposed
from hf_headprune.masking import UnitScale, attach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.hooks import RemovableHandle

    from hf_headprune.anatomy import Site


class ClosedUnits:
    """The sites of a model whose units are closed while it trains.

    Once a choice is made, a forward pass takes the rows and columns of the units that are kept out of the weights, and
    computes with them alone. The weights keep their place and their shape, so that the optimizer, checkpoints, and
    whoever splits or copies the model see what they saw before; what is closed has a gradient of zero, as under a mask.

    Attributes:
        scales: Factors of each site's units.
    """

    def __init__(self, sites: Sequence[Site], *, by_group: bool = False) -> None:
        """Opens everything.

        Args:
            sites: Where units may be closed.
            by_group: Whether there is one factor for the heads of a group.
        """
        self._sites, self._by_group = sites, by_group
        self.scales = [UnitScale(site.group_width if by_group else site.unit_width) for site in sites]
        self._kept: dict[str, tuple[int, ...]] = {}  # of the sites that `close` has closed

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hooks the sites of a model; returns what removes the hooks."""
        self._base = base_model(model)
        return [attach(model, site, scale) for site, scale in zip(self._sites, self.scales, strict=True)]

    def scale(self, factors: Sequence[torch.Tensor | None]) -> None:
        """Multiplies the units of each site by factors, `(units,)`; None leaves a site alone."""
        for site, scale, factor in zip(self._sites, self.scales, factors, strict=True):
            self._put_back(site)
            scale.scale = factor

    def close(self, kept: Sequence[tuple[int, ...]], factors: Sequence[torch.Tensor]) -> None:
        """Computes with what is kept alone where the forward pass of a site can, and multiplies by factors elsewhere.

        Args:
            kept: Units, or groups, of each site, ascending.
            factors: Ones and zeros that say the same.
        """
        for site, scale, units, factor in zip(self._sites, self.scales, kept, factors, strict=True):
            if self._kept.get(site.name) == units:  # it is so since an earlier pass
                continue
            self._put_back(site)
            if len(units) == (site.groups if self._by_group else site.units):  # of a block without units, too
                scale.scale = None
                continue
            self._kept[site.name] = units
            scale.scale = factor
            # No kernel takes products of no width: where nothing is kept, a group is computed, and masked.
            computed = site.units_of(units or (0,)) if self._by_group or not units else units
            if self._take_out(site, computed):
                scale.scale = None if units else factor[: 1 if self._by_group else site.group]

    def _take_out(self, site: Site, units: Sequence[int]) -> bool:
        """Lets the projections of a site compute with some units alone; returns whether they can."""
        modules = self._modules(site)
        if not site.runs_with(units) or not all(map(_is_plain, modules)):
            return False
        for module, part in zip(modules, site.parts, strict=False):  # the last one is the output projection
            vars(module)["forward"] = _SomeOf(module, site.rows(part, units), outputs=True)
        vars(modules[-1])["forward"] = _SomeOf(modules[-1], site.columns(units), outputs=False)
        return True

    def _put_back(self, site: Site) -> None:
        if self._kept.pop(site.name, None) is not None:
            for module in self._modules(site):
                if isinstance(vars(module).get("forward"), _SomeOf):
                    del vars(module)["forward"]

    def _modules(self, site: Site) -> list[nn.Module]:
        return [self._base.get_submodule(path) for path in (*site.inputs, site.output)]


class _SomeOf:
    """Forward pass of a linear module that computes some of its outputs, or is given some of its inputs."""

    def __init__(self, module: Any, entries: Sequence[int], *, outputs: bool) -> None:
        self._module, self._is_of_outputs = module, outputs
        self._entries = torch.tensor(entries, device=module.weight.device)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns `(..., outputs)`; the weights are those that the module has now."""
        module, bias = self._module, self._module.bias
        self._entries = entries = self._entries.to(module.weight.device)
        weight = matrix_of(module).index_select(0 if self._is_of_outputs else 1, entries)
        return linear(
            hidden, weight, bias.index_select(0, entries) if self._is_of_outputs and bias is not None else bias
        )


def _is_plain(module: nn.Module) -> bool:
    """Tells whether the forward pass of a module is that of a linear one, and its own."""
    return (type(module) is nn.Linear or transposed(module)) and "forward" not in vars(module)
