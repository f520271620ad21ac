"""Hard-concrete gates on heads, FFN units and whole blocks, and the Lagrangian that leads them to a density.

Source: Louizos et al. 2018 (arXiv 1712.01312), equations 10 to 12; the constraint is that of Xia et al. 2022
(arXiv 2204.00408), section 3.1: a (s - t) + b (s - t)^2, which the multipliers a and b maximise; s is the share of
weights expected to be closed, and t rises linearly to the target. The bounds of log alpha are of the authors' code.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from benchmarks.arena.case import Case, best_units, plan_of, weights_of
from hf_headprune import prune_model_
from hf_headprune.anatomy import base_model
from hf_headprune.masking import UnitScale, attach

if TYPE_CHECKING:
    from hf_headprune.anatomy import Site

LOWEST, HIGHEST, TEMPERATURE = -0.1, 1.1, 2 / 3  # of the stretched concrete distribution
SHIFT = -TEMPERATURE * log(-LOWEST / HIGHEST)  # P(gate > 0) = sigmoid(log alpha + SHIFT)
BOUND = log(100)  # of |log alpha|; all gates start there, open
SHARPNESS = 0.8  # of a gate without noise: sigmoid(SHARPNESS log alpha / TEMPERATURE)
NOISE = 1e-6  # its uniform numbers keep this distance from 0 and 1


class Gates(nn.Module):
    """The gates of one model, attached to it until it is cut.

    Attributes:
        units: log alpha of the heads or FFN units of each site, `(units,)`, in the order of the sites.
        blocks: log alpha of each site as a whole, `(sites,)`.
        multipliers: Of the distance to the target, and of its square.
    """

    def __init__(self, case: Case) -> None:
        """Attaches open gates, which let everything pass until they are sampled."""
        super().__init__()
        self._case = case
        self.units = nn.ParameterList(nn.Parameter(torch.full((site.units,), BOUND)) for site in case.sites)
        self.blocks = nn.Parameter(torch.full((len(case.sites),), BOUND))
        self.multipliers = nn.Parameter(torch.zeros(2))
        self._scales = [UnitScale(site.unit_width) for site in case.sites]
        pairs = zip(case.sites, self._scales, strict=True)
        self._handles = [attach(case.model, site, scale) for site, scale in pairs]
        total = sum(weights_of(site) * site.units for site in case.sites)
        self._shares = [weights_of(site) / total for site in case.sites]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Of the model as it was before the cut."""
        return self._case.sites

    @property
    def log_alphas(self) -> list[nn.Parameter]:
        """Of units and blocks."""
        return [*self.units, self.blocks]

    def sample_(self) -> torch.Tensor:
        """Draws all gates for the next forward pass, and returns those of the blocks, `(sites,)`."""
        blocks = _drawn(self.blocks)
        for scale, units, block in zip(self._scales, self.units, blocks, strict=True):
            scale.scale = _drawn(units) * block
        return blocks

    def expected_density(self) -> torch.Tensor:
        """Returns the share of weights whose gates are expected to be open."""
        blocks = torch.sigmoid(self.blocks + SHIFT)
        parts = zip(self._shares, self.units, blocks, strict=True)
        return torch.stack([share * torch.sigmoid(units + SHIFT).sum() * block for share, units, block in parts]).sum()

    def penalty(self, progress: float) -> torch.Tensor:
        """Returns the Lagrangian's term, with a target that has come so far, from 0 to 1, on its way."""
        missing = 1 - self.expected_density() - progress * (1 - self._case.density)
        return self.multipliers[0] * missing + self.multipliers[1] * missing.square()

    @torch.no_grad()
    def cut_(self) -> None:
        """Prunes the model to the density: what is likeliest to be open stays, and its gate goes into the weights."""
        case = self._case
        for handle in self._handles:
            handle.remove()
        chances = [logsigmoid(values.double() + SHIFT) for values in self.units]
        blocks = logsigmoid(self.blocks.double() + SHIFT)
        scores = {site.name: chances[i] + blocks[i] for i, site in enumerate(case.sites)}
        kept = best_units(case.sites, scores, case.budget)
        for site, units, block in zip(case.sites, self.units, self.blocks, strict=True):
            factors = _without_noise(units) * _without_noise(block)
            output: Any = base_model(case.model).get_submodule(site.output)
            output.weight *= factors.repeat_interleave(site.unit_width)
        prune_model_(case.model, plan_of(case.model, kept))


def _drawn(log_alpha: torch.Tensor) -> torch.Tensor:
    """Returns gates with noise: exactly 0 and 1 have a chance."""
    noise = torch.empty_like(log_alpha).uniform_(NOISE, 1 - NOISE)
    concrete = torch.sigmoid((noise.logit() + log_alpha) / TEMPERATURE)
    return (concrete * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def _without_noise(log_alpha: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(SHARPNESS * log_alpha / TEMPERATURE)


class GateSteps(TrainerCallback):
    """Trains the gates beside a model: they have optimizers of their own, at a constant rate.

    Attributes:
        gates: What trains.
        step: Of the model's optimizer.
    """

    def __init__(self, gates: Gates, learning_rate: float, *, open_steps: int, rise_steps: int) -> None:
        """Makes the optimizers.

        Args:
            gates: Attached to the model that trains.
            learning_rate: Of log alpha and of the multipliers.
            open_steps: First steps, in which the model trains without gates.
            rise_steps: Next ones, in which the target rises.
        """
        self.gates, self.step = gates, 0
        self._open, self._rise = open_steps, max(rise_steps, 1)
        self._optimizers = [
            torch.optim.Adam(gates.log_alphas, learning_rate),
            torch.optim.Adam([gates.multipliers], learning_rate, maximize=True),
        ]

    @property
    def is_open(self) -> bool:
        """Whether the model still trains without gates."""
        return self.step < self._open

    def penalty(self) -> torch.Tensor:
        """Returns the Lagrangian's term in this step."""
        return self.gates.penalty(min((self.step - self._open) / self._rise, 1.0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the number of the step."""
        self.step = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Steps: gates down, multipliers up."""
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for log_alpha in self.gates.log_alphas:
                log_alpha.clamp_(-BOUND, BOUND)
