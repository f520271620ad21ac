"""Estimates from one backward pass what the removal of each unit does to each example."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.anatomy import anatomy_of, base_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.projections import Refit
    from hf_headprune.search.units import Unit


class ExampleGates:
    """Forward pre-hook of an output projection: one gate per example and unit of the site.

    Attributes:
        gates: Shape `(batch, units)`, with gradient; those of the last forward pass.
    """

    def __init__(
        self, open_units: torch.Tensor, unit_width: int, residual: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> None:
        """Stores which units are open, `(units,)`, the columns per unit, and what is lost for good with an open one."""
        self._open_units = open_units
        self._residual = residual
        self._unit_width = unit_width
        self.gates: torch.Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Multiplies the first argument, `(batch, length, units * unit_width)`, by the gates of each example."""
        hidden = args[0]
        gates = self._open_units.to(hidden.dtype).expand(hidden.shape[0], -1).contiguous()  # (batch, units)
        self.gates = gates.requires_grad_()
        per_column = gates.repeat_interleave(self._unit_width, dim=1)  # (batch, units * unit_width)
        if self._residual is None:
            return (hidden * per_column[:, None], *args[1:])
        is_open = self._open_units.to(hidden.dtype).repeat_interleave(self._unit_width)  # (units * unit_width,)
        matrix, constant = (part.to(hidden) for part in self._residual)
        leaving = hidden @ matrix.T + constant
        return (hidden * is_open + leaving * (per_column - is_open)[:, None], *args[1:])


class GateGradients:
    """Gradient with respect to gates, with the units of a plan open."""

    def __init__(
        self,
        model: nn.Module,
        plan: PruningPlan,
        sites: Iterable[str],
        refit: Refit | None = None,
    ) -> None:
        """Prepares one hook for each site named that has units.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        anatomy, named = anatomy_of(model), set(sites)
        plan.check_fits(anatomy)
        base, device = base_model(model), next(model.parameters()).device
        self._hooks: dict[str, tuple[nn.Module, ExampleGates]] = {}
        for site in anatomy.sites:
            if site.units and site.name in named:
                is_open = torch.zeros(site.units, device=device)
                is_open[list(plan.kept(site.name))] = 1.0
                residual = None if refit is None else refit.residual(site.name, plan.kept(site.name))
                gates = ExampleGates(is_open, site.unit_width, residual)
                self._hooks[site.name] = base.get_submodule(site.output), gates

    @contextmanager
    def attached(self) -> Iterator[GateGradients]:
        """Attaches the hooks for the length of a `with` block."""
        with ExitStack() as stack:
            for module, hook in self._hooks.values():
                stack.callback(module.register_forward_pre_hook(hook).remove)
            yield self

    def of(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the gradient of one number per example.

        Args:
            values: Of the forward pass just made, `(batch,)`, with their graph. Examples of a batch do not influence
                one another, so the gradient of their sum holds that of each.

        Returns:
            `{site: (units, batch)}`. Minus the gradient is the first-order change when an open unit is removed; for a
            unit that the plan removes it is the change that restoring it would make, with its sign turned.
        """
        gates: list[Any] = [hook.gates for _, hook in self._hooks.values()]
        gradients = torch.autograd.grad(values.sum(), gates, allow_unused=True)
        found = zip(self._hooks, gates, gradients, strict=True)
        return {
            site: (torch.zeros_like(gate) if gradient is None else gradient).T.float() for site, gate, gradient in found
        }


def owners_of(units: Sequence[Unit], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Returns for each site that units lie in the unit that each of its heads or FFN units belongs to, or -1."""
    owners = {part.site: torch.full((sizes[part.site],), -1) for unit in units for part in unit}
    for number, unit in enumerate(units):
        for part in unit:
            owners[part.site][list(part.indices)] = number
    return owners
