"""Takes closed units out of a live model's products by slices of its weights, so that nothing is computed for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._offloaded import is_offloaded
from hf_headprune.anatomy import base_model, transposed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from hf_headprune.anatomy import Part, Site
    from hf_headprune.plan import PruningPlan


class WeightSlices:
    """The projections of a model's sites, whole or without the units that a plan removes.

    A site that loses none is left alone, and so is one that loses all: no kernel takes products of no width.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        """Finds the projections.

        Args:
            model: Live model, whose attention reads the number of its heads off the width of its projections.
            sites: Of that model.
        """
        base = base_model(model)
        self._projections: list[tuple[Site, list[tuple[Part, Any]], Any]] = [
            (
                site,
                [(part, base.get_submodule(part.path)) for part in site.parts],
                base.get_submodule(site.output),
            )
            for site in sites
            if site.units and not _is_loaded_anew(base, site)
        ]
        self._whole: dict[str, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def take_out(self, plan: PruningPlan) -> set[str]:
        """Slices the weights of sites that are whole, until `restore`; returns the names of those it sliced."""
        taken = set()
        for site, inputs, output in self._projections:
            kept = plan.kept(site.name)
            if len(kept) == site.units or not site.runs_with(kept) or site.name in self._whole:
                continue
            taken.add(site.name)
            columns = torch.tensor(site.columns(kept), device=output.weight.device)
            for part, projection in inputs:
                entries = torch.tensor(site.rows(part, kept), device=output.weight.device)
                for parameter in projection.parameters(recurse=False):
                    self._put(
                        site,
                        parameter,
                        parameter.data.index_select(parameter.dim() - 1 if transposed(projection) else 0, entries),
                    )
            dim = 0 if transposed(output) else 1
            self._put(site, output.weight, output.weight.data.index_select(dim, columns).contiguous())
        return taken

    def restore(self, site: str) -> None:
        """Puts back what `take_out` found at a site, if it took anything."""
        for parameter, tensor in self._whole.pop(site, ()):
            parameter.data = tensor

    def _put(self, site: Site, parameter: nn.Parameter, tensor: torch.Tensor) -> None:
        self._whole.setdefault(site.name, []).append((parameter, parameter.data))
        parameter.data = tensor


def _is_loaded_anew(base: nn.Module, site: Site) -> bool:
    """Tells whether weights of a site are loaded at each pass, so that slices of them would not last."""
    return any(is_offloaded(base.get_submodule(path)) for path in (*site.inputs, site.output))
