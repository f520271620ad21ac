"""Closes units of a live model, plan after plan, and takes them out of its products where that changes nothing."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._offloaded import device_of
from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.masking import UnitScale, attach, evaluating
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.weight_slices import WeightSlices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

Inputs = dict[str, torch.Tensor]
ROUNDINGS = 1000  # of the largest logit: in fp32 far more than two orders of a sum differ by, and far less than a head


class ClosedUnits:
    """The units of a model that a plan removes, closed while the model is measured.

    Attributes:
        anatomy: Of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        """Finds the units.

        Raises:
            UnsupportedModelError: The model's family is not declared.
        """
        self.anatomy = anatomy_of(model)
        self._model = model
        self._sites = [site for site in self.anatomy.sites if site.units]
        self._scales: dict[str, UnitScale] = {}
        self._kept: dict[str, tuple[int, ...]] = {}
        self._slices = WeightSlices(model, self._sites)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches one scale per site for the length of a `with` block; `close` sets them."""
        with ExitStack() as stack:
            stack.callback(self.open)
            self._scales = {site.name: UnitScale(site.unit_width) for site in self._sites}
            for site in self._sites:
                stack.callback(attach(self._model, site, self._scales[site.name]).remove)
            yield

    def open(self) -> None:
        """Makes every site whole; only while attached."""
        for name, scale in self._scales.items():
            self._slices.restore(name)
            scale.scale = None
        self._kept = {}

    def close(self, plan: PruningPlan) -> None:
        """Closes exactly the units that a plan removes; only while attached.

        Sites that keep the same as before stay as they are: a plan differs from its parent in few.
        """
        device = device_of(self._model)
        for site in self._sites:
            kept = plan.kept(site.name)
            if self._kept.get(site.name) == kept:
                continue
            self._slices.restore(site.name)
            scale = torch.zeros(site.units, device=device)
            scale[list(kept)] = 1.0
            self._scales[site.name].scale = None if len(kept) == site.units else scale
            self._kept[site.name] = kept

    def take_out(self, plan: PruningPlan) -> None:
        """Takes the units that `close` has closed out of the products, until it opens them; only while attached."""
        for name in self._slices.take_out(plan):
            self._scales[name].scale = None

    def can_take_out(self, inputs: Inputs) -> bool:
        """Tries whether taking units out of the products gives what closing them gives, up to round-off in fp32.

        In lower precision round-off hides all but shapes that don't fit, so that nothing is taken out there.
        """
        plan = self._trial_plan()
        with evaluating(self._model), self.attached():
            self.close(plan)
            if not self._computes_in_full_precision(inputs):
                return False
            closed = _logits_in(self._model(**inputs))
            try:
                self.take_out(plan)
                taken = _logits_in(self._model(**inputs))
            except RuntimeError:  # shapes that do not follow from the projections
                return False
        scale = float(closed.abs().amax()) * torch.finfo(closed.dtype).eps
        return bool((taken - closed).abs().amax() <= ROUNDINGS * scale)

    def _computes_in_full_precision(self, inputs: Inputs) -> bool:
        """Tells whether products are computed in fp32 or fp64; autocast may come from a wrapped forward."""
        kinds: list[torch.dtype] = []
        module = base_model(self._model).get_submodule(self._sites[0].output)
        with ExitStack() as stack:
            stack.callback(module.register_forward_hook(lambda *given: kinds.append(given[-1].dtype)).remove)
            self._model(**inputs)
        return all(kind in (torch.float32, torch.float64) for kind in kinds)

    def _trial_plan(self) -> PruningPlan:
        """Returns a plan that removes a unit of every site."""
        full = PruningPlan.full(self.anatomy)
        return full.replace(
            kept_heads={site: sum(full.groups(site)[:-1], ()) for site in full.num_heads},
            kept_ffn={site: range(1, count) for site, count in full.num_ffn.items()},
        )


def _logits_in(outputs: Any) -> torch.Tensor:
    """Returns all logits of a model's output in one tensor: those of classes or tokens, or of both ends of spans.

    Without a head: its last hidden states.
    """
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state
