"""GateBank: the learned scores of all heads of one model, and the gates that they open and close."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_headprune.anatomy import base_model
from hf_headprune.learn.gates.estimators import GATES, NOISE, hard_concrete_penalty_grad, top_k_mask
from hf_headprune.learn.gates.exact import exact_device
from hf_headprune.learn.gates.settings import WITH_TEMPERATURE
from hf_headprune.learn.score_bank import ScoreBank
from hf_headprune.masking import BeforeEveryPass, UnitScale, attach

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.budgets import BudgetGroup
    from hf_headprune.learn.gates.settings import SubsetGates
    from hf_headprune.learn.schedules import GateSchedule, Phase

BANK_NAME = "headprune_gates"


class GateBank(ScoreBank):
    """Scores and gates of all heads. It lives inside the base model, so that the Trainer trains, saves and resumes it.

    Training uses soft, noisy gates until the choice is decided; evaluation uses the hard top-K without noise, from the
    first training step on.

    Attributes:
        noise: Of this step, shape `(num_heads,)`, float64.
    """

    def __init__(self, groups: Sequence[BudgetGroup], settings: SubsetGates, *, multiplier: float, seed: int) -> None:
        """Makes closed-form initial scores; gradient importance comes later, through `set_scores`.

        Args:
            groups: Which heads share which budget; together all heads once.
            settings: Of the gates.
            multiplier: Learning rate of the scores over that of the run.
            seed: Of noise and random initial scores.
        """
        num_heads = sum(len(group.positions) for group in groups)
        super().__init__(num_heads, multiplier=multiplier, budget=settings.chosen_kept_heads)
        self.groups = tuple(groups)
        self.settings = settings
        self.seed = seed
        self.noise = torch.zeros(self.num_heads, dtype=torch.float64)  # no buffer: not every device has float64
        for number, group in enumerate(self.groups):  # on the device once, not copied there in each forward pass
            self.register_buffer(
                f"positions_{number}", torch.tensor(group.positions, dtype=torch.long), persistent=False
            )
        self.phase: Phase = "open"
        self.temperature = settings.temperature_range[0]
        self.closed = 1.0
        self._clip: _ClippedSum | None = None
        self.probe: torch.Tensor | None = None
        self.scales: list[UnitScale] = []
        self.heads_per_site: list[int] = []
        self.handles: list[RemovableHandle] = []
        self.frozen: list[nn.Parameter] = []
        self.reset()

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the scores."""
        return self.settings.peak_score_learning_rate

    @property
    def num_heads(self) -> int:
        """Heads of the model, open or closed."""
        return self.num_scores

    def budgets(self) -> list[tuple[torch.Tensor, int]]:
        """Returns, for each budget, the positions of its heads among all heads and how many of them stay."""
        return [(self.get_buffer(f"positions_{i}"), group.kept) for i, group in enumerate(self.groups)]

    @property
    def has_no_scores(self) -> bool:
        """Whether nothing tells the heads apart, so that the choice would follow their order."""
        scores = self.scores.detach()
        return not self.decided and 0 < sum(group.kept for group in self.groups) < len(scores) and not scores.std()

    def reset(self) -> None:
        """Starts over: initial scores, nothing decided, no step begun."""
        super().reset()
        uniform = torch.rand(self.num_heads, generator=torch.Generator().manual_seed(self.seed)) - 0.5
        is_random = self.settings.initial_scores == "random"
        self.set_scores(uniform.to(self.importance_bias.device) * (self.settings.initial_spread if is_random else 0.0))

    def begin_step(self, step: int, schedule: GateSchedule, *, loss_scale: float = 1.0) -> None:
        """Sets phase, temperature and noise of one optimizer step; the same for all its micro-batches and ranks.

        A choice that a checkpoint brought along stays, also where the schedule of a longer run would still learn.

        Args:
            step: Counted from zero.
            schedule: Of the run.
            loss_scale: What fp16 training multiplies the loss with, and so the gradients that arrive here.
        """
        self.is_idle = False
        self.phase = "decided" if self.decided else schedule.phase(step)
        self.temperature = schedule.temperature(step)
        self.closed = schedule.closed(step)
        self.steps.fill_(step + 1)
        if self.phase == "decided":
            self.decide()
        elif self.phase == "learn":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            limit = self.settings.max_score_grad_norm
            self._clip = None if limit is None else _ClippedSum(limit * loss_scale)
            drawn = NOISE[self.settings.chosen_estimator](self.num_heads, generator)
            self.noise = drawn.to(exact_device(self.importance_bias.device))

    def decide(self) -> None:
        """Fixes the hard choice, once: a choice that a checkpoint brought along stays."""
        if not self.decided:
            self.kept.copy_(self.hard_mask())
            self.decided.fill_(True)
        self.is_idle = False

    @torch.no_grad()
    def hard_mask(self) -> torch.Tensor:
        """Returns the heads that stay, ones and zeros of shape `(num_heads,)`: the decided ones, else top-K(w)."""
        undecided = self._per_group(lambda positions, kept: top_k_mask(self.scores[positions], kept))
        return torch.where(self.decided, self.kept, undecided.to(self.kept.dtype))

    def kept_per_site(self) -> list[list[int]]:
        """Returns the heads that stay, for each attention site in the order of the anatomy."""
        return [part.nonzero().flatten().tolist() for part in self.hard_mask().split(self.heads_per_site)]

    def soft_gates(self, *, noise_free: bool = False) -> torch.Tensor:
        """Returns the gates of this step, shape `(num_heads,)`, float32, with gradient to the scores."""
        scores, estimate = self.scores, GATES[self.settings.chosen_estimator]
        device = scores.device
        if self._clip is not None and scores.requires_grad:
            scores.register_hook(self._clip)
        scores = scores.to(exact_device(device))
        noise = (torch.zeros_like(self.noise) if noise_free else self.noise).to(scores.device)

        def gates(positions: torch.Tensor, kept: int) -> torch.Tensor:
            here = positions.to(scores.device)
            return estimate(scores[here], noise[here], kept=kept, temperature=self.temperature).float().to(device)

        return 1.0 - self.closed * (1.0 - self._per_group(gates))

    def gates(self) -> torch.Tensor | None:
        """Returns the factors that the next forward pass uses, or None when all heads are open."""
        if self.probe is not None:
            return self.probe
        if not self.training:
            return None if self.is_idle else self.hard_mask()
        if self.phase == "decided":
            return self.kept
        return self.soft_gates() if self.phase == "learn" else None

    @property
    def has_penalty(self) -> bool:
        """Whether something beside the loss has a gradient for the scores."""
        return self.settings.chosen_estimator == "hard_concrete" and self.settings.penalty > 0

    def add_penalty_grad(self, *, loss_scale: float = 1.0) -> None:
        """Adds the penalty's gradient to the scores' gradient, for estimators that have one.

        Args:
            loss_scale: What the gradients that are there are still multiplied with.
        """
        grad = self.importance_bias.grad
        if not self.has_penalty or self.phase != "learn" or grad is None:
            return
        for positions, kept in self.budgets():
            scores = self.scores.detach()[positions]
            strength = self.settings.penalty * loss_scale
            grad[positions] += hard_concrete_penalty_grad(scores, kept=kept, strength=strength)

    def refresh(self) -> None:
        """Computes the gates of a forward pass once and hands each site its slice."""
        factors = self.gates()
        slices = [None] * len(self.scales) if factors is None else factors.split(self.heads_per_site)
        for scale, factor in zip(self.scales, slices, strict=True):
            scale.scale = factor

    def attach(self, model: nn.Module, anatomy: Anatomy) -> None:
        """Joins the base model as a submodule and hooks every attention site; pipelined, freezes all weights."""
        if self.settings.mode == "pipelined":
            self.frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
            model.requires_grad_(False)
        base = base_model(model)
        base.add_module(BANK_NAME, self)
        self.train(model.training).to(next(model.parameters()).device)
        self.heads_per_site = [site.units for site in anatomy.attention_sites]
        self.scales = [UnitScale(site.unit_width) for site in anatomy.attention_sites]
        self.handles = BeforeEveryPass(self.refresh).attach(model)
        self.handles += [
            attach(model, site, scale) for site, scale in zip(anatomy.attention_sites, self.scales, strict=True)
        ]

    def detach(self, model: nn.Module) -> None:
        """Leaves the model as it was before `attach`; the weights keep what they learned."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        delattr(base_model(model), BANK_NAME)

    def _per_group(self, function: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        parts = self.budgets()
        if len(parts) == 1:
            return function(*parts[0])
        order = torch.argsort(torch.cat([positions for positions, _ in parts]))
        return torch.cat([function(positions, kept) for positions, kept in parts])[order]


class _ClippedSum:
    """Changes the gradients that the micro-batches of a step bring so that the norm of their sum is clipped."""

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm
        self._sum: torch.Tensor | float = 0.0
        self._passed_on: torch.Tensor | float = 0.0

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        """Hook of a tensor: returns what makes of the gradients passed on so far the clipped sum of those that came."""
        self._sum = self._sum + grad
        clipped = self._sum * (self._max_norm / self._sum.norm().clamp_min(self._max_norm))
        passed_on, self._passed_on = self._passed_on, clipped
        return clipped - passed_on


def gate_quantities(bank: GateBank, site_names: Sequence[str]) -> dict[str, float]:
    """Returns what a training log should show of the gates, as scalars.

    Keys: `temperature`, where the estimator has one; `expected_heads/<site>` (noise-free gates, summed);
    `hard_heads/<site>` (what evaluation uses); `sample_overlap` (share of the K largest noisy scores that are among the
    K largest scores; 1 where the estimator has no noise); `kth_gap` (score of the last head kept minus that of the
    first one closed, smallest over the budgets).
    """
    with torch.no_grad():
        hard, scores = bank.hard_mask(), bank.scores
        noisy = scores + bank.noise.float().to(scores.device)
        overlap = total = 0.0
        gaps = []
        for positions, kept in bank.budgets():
            top = top_k_mask(scores[positions], kept)
            overlap += float((top * top_k_mask(noisy[positions], kept)).sum())
            total += kept
            ordered = torch.sort(scores[positions], descending=True).values
            if 0 < kept < len(positions):
                gaps.append(float(ordered[kept - 1] - ordered[kept]))
        expected = hard if bank.phase == "decided" else bank.soft_gates(noise_free=True)
    sums = {
        "expected_heads": [float(part.sum()) for part in expected.split(bank.heads_per_site)],
        "hard_heads": [float(part.sum()) for part in hard.split(bank.heads_per_site)],
    }
    quantities = {
        f"{key}/{site}": value for key, values in sums.items() for site, value in zip(site_names, values, strict=True)
    }
    if bank.settings.chosen_estimator in WITH_TEMPERATURE:
        quantities["temperature"] = bank.temperature
    quantities["sample_overlap"] = overlap / max(total, 1.0)
    return quantities | ({"kth_gap": min(gaps)} if gaps else {})
