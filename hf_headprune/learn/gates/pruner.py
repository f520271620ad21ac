"""GatePruner: the learned scores of all heads of one model, and the gates that they open and close."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from hf_headprune.learn.closed_units import ClosedUnits
from hf_headprune.learn.exact import exact_device
from hf_headprune.learn.gates.clipping import ClippedSum
from hf_headprune.learn.gates.estimators import GATES, NOISE, hard_concrete_penalty_grad
from hf_headprune.learn.gates.importance import gradient_importance, standardised
from hf_headprune.learn.gates.settings import WITH_TEMPERATURE, SubsetGates
from hf_headprune.learn.pruner import Choice
from hf_headprune.learn.score_pruner import ScorePruner, check_steps_to_learn
from hf_headprune.learn.top_k import top_k_mask
from hf_headprune.masking import BeforeEveryPass
from hf_headprune.plan import PruningPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.learn.gates.schedule import GateSchedule, Phase
    from hf_headprune.learn.training_loop import TrainingLoop

logger = logging.getLogger(__name__)


class GatePruner(ScorePruner[SubsetGates]):
    """Scores and gates of all heads of one model.

    Training uses soft, noisy gates until the choice is decided; evaluation uses the hard top-K without noise, from the
    first training step on. Where query heads share keys and values, a group of them is what has one score and one gate.

    Attributes:
        groups: Which heads share which budget; together all heads once.
        schedule: Of the run.
        noise: Of this step, shape `(num_heads,)`, float64.
        probe: Factors in place of all gates, `(num_heads,)`; None in training.
    """

    part = "gates"
    schedule: GateSchedule

    def __init__(self, anatomy: Anatomy, settings: SubsetGates, *, multiplier: float = 1.0, seed: int = 0) -> None:
        """Makes closed-form initial scores; gradient importance comes later, through `set_scores`.

        Args:
            anatomy: Of the model.
            settings: Of the gates.
            multiplier: Learning rate of the scores over that of the run.
            seed: Of noise and random initial scores.

        Raises:
            InvalidSettingError: The model can't meet the budget.
        """
        self.groups = settings.budget_groups(anatomy)
        num_heads = sum(len(group.positions) for group in self.groups)
        tuning = settings.tuning
        fractions = tuple(map(float, (settings.warmup_ratio, settings.freeze_at)))
        cooling = (settings.temperature_range, tuning.anneal_end, tuning.ramp_steps, tuning.seed)
        run = (settings.chosen_estimator, settings.mode, *fractions, *cooling)
        super().__init__(settings, num_scores=num_heads, multiplier=multiplier, budget=(self.groups, *run))
        self.seed = seed
        self.noise = torch.zeros(num_heads, dtype=torch.float64)  # no buffer: not every device has float64
        for number, group in enumerate(self.groups):  # on the device once, not copied there in each forward pass
            self.register_buffer(
                f"positions_{number}", torch.tensor(group.positions, dtype=torch.long), persistent=False
            )
        self.phase: Phase = "open"
        self.temperature = settings.temperature_range[0]
        self.closed = 1.0
        self._clip: ClippedSum | None = None
        self.probe: torch.Tensor | None = None
        self._full = PruningPlan.full(anatomy)
        self._sites = anatomy.attention_sites
        self.heads_per_site = [site.groups for site in self._sites]
        self.units = ClosedUnits(self._sites, by_group=True)
        self._frozen: list[nn.Parameter] = []
        self.reset()

    @classmethod
    def of(cls, model: nn.Module, anatomy: Anatomy, settings: SubsetGates, loop: TrainingLoop) -> GatePruner:
        """See `Pruner.of`."""
        multiplier = settings.peak_score_learning_rate / loop.learning_rate
        seed = loop.seed if settings.tuning.seed is None else settings.tuning.seed
        found = cls(anatomy, settings, multiplier=multiplier, seed=seed)
        found.attach(model)
        return found

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the scores."""
        return self.settings.peak_score_learning_rate

    @property
    def num_heads(self) -> int:
        """Heads of the model, open or closed."""
        return self.num_scores

    def budgets(self) -> list[tuple[torch.Tensor, int]]:
        """Returns, for each budget, the positions of its heads among all heads and how many of them are kept."""
        return [(self.get_buffer(f"positions_{i}"), group.kept) for i, group in enumerate(self.groups)]

    @property
    def has_no_scores(self) -> bool:
        """Whether nothing tells the heads apart, so that the choice would follow their order."""
        scores = self.scores.detach()
        return not self.decided and 0 < sum(group.kept for group in self.groups) < len(scores) and not scores.std()

    def prepare(self, max_steps: int) -> None:
        """See `Pruner.prepare`."""
        self.schedule = self.settings.schedule(max_steps)
        check_steps_to_learn(self.part, self.schedule.open_steps, max_steps)

    def reset(self) -> None:
        """Starts over: initial scores, nothing decided, no step begun."""
        super().reset()
        self.phase = "open"
        uniform = torch.rand(self.num_heads, generator=torch.Generator().manual_seed(self.seed)) - 0.5
        scores = uniform if self.settings.tuning.initial_scores == "random" else torch.zeros_like(uniform)
        self.set_scores(scores.to(self.importance_bias.device))

    def begin_run(self, max_steps: int, step: int, loop: TrainingLoop) -> None:
        """See `Pruner.begin_run`; pipelined, freezes all weights."""
        super().begin_run(max_steps, step, loop)
        self._freeze(frozen=True)

    def begin_step(self, model: nn.Module, step: int, loop: TrainingLoop) -> None:
        """Sets phase, temperature and noise of one optimizer step; the first learning one scores the heads.

        A choice that a checkpoint brought along is kept, also where the schedule of a longer run would still learn.
        """
        starts = step == self.schedule.open_steps and self.has_no_scores
        if starts and self.settings.tuning.initial_scores == "gradient":  # a longer run goes on with what it has
            self._score_heads(model, loop)
        self.set_step(step, loss_scale=loop.loss_scale())
        super().begin_step(model, step, loop)

    def set_step(self, step: int, *, loss_scale: float = 1.0) -> None:
        """Sets phase, temperature and noise of one optimizer step.

        Args:
            step: Counted from zero.
            loss_scale: What fp16 training multiplies the loss with, and so the gradients that arrive here.
        """
        self.is_idle = False
        self.phase = "decided" if self.decided else self.schedule.phase(step)
        self.temperature = self.schedule.temperature(step)
        self.closed = self.schedule.closed(step)
        if self.phase == "decided":
            self.decide()
        elif self.phase == "learn":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            limit = self.settings.tuning.max_score_grad_norm
            self._clip = None if limit is None else ClippedSum(limit * loss_scale)
            drawn = NOISE[self.settings.chosen_estimator](self.num_heads, generator)
            self.noise = drawn.to(exact_device(self.importance_bias.device))

    def _score_heads(self, model: nn.Module, loop: TrainingLoop) -> None:
        """Gives the scores their start, by the gradient of each gate; the same in all processes."""
        batches = loop.batches(self.settings.tuning.scoring_examples, self.seed)
        importance = gradient_importance(model, self, batches, loop.loss)
        # Processes that stream have seen different examples, but must choose the same heads.
        self.set_scores(standardised(loop.from_first(importance)))

    def decide(self) -> None:
        """Fixes the hard choice, once: a choice that a checkpoint brought along is kept."""
        if not self.decided:
            self.kept.copy_(self.hard_mask())
            self.decided.fill_(True)
            self.seal()
        self.is_idle = False

    def undecided_until(self) -> int | None:
        """See `Pruner.undecided_until`."""
        return None if self.decided else self.schedule.decided_step

    def finish(self, model: nn.Module, loop: TrainingLoop) -> Choice:
        """See `Pruner.finish`."""
        if self.has_no_scores:
            logger.warning(
                "Training ended before the gates had learned anything; heads are chosen by the gradient of their "
                "gates. Train longer, or let the gates learn earlier (SubsetGates(warmup_ratio=...))."
            )
            self._score_heads(model, loop)
        self.decide()
        self.check_state()
        chosen = zip(self._sites, self.kept_per_site(), strict=True)
        kept = {site.name: site.units_of(groups) for site, groups in chosen}
        heads = torch.tensor([site.group for site in self._sites for _ in range(site.groups)])
        self.detach(model)
        return Choice(
            self._full.replace(kept_heads=kept), head_scores=self.scores.detach().cpu().repeat_interleave(heads)
        )

    def choice_problems(self) -> Iterable[str]:
        """Yields what is wrong with a choice that is decided."""
        for positions, kept in self.budgets():
            found = int(self.kept[positions].sum())
            if found != kept:
                yield f"{found} of {len(positions)} heads are kept, where {kept} were to be"

    @torch.no_grad()
    def hard_mask(self) -> torch.Tensor:
        """Returns the heads that are kept, ones and zeros of shape `(num_heads,)`: the decided ones, else top-K(w)."""
        undecided = self._per_group(lambda positions, kept: top_k_mask(self.scores[positions], kept))
        return torch.where(self.decided, self.kept, undecided.to(self.kept.dtype))

    def kept_per_site(self) -> list[list[int]]:
        """Returns the heads that are kept, for each attention site in the order of the anatomy."""
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
        if self.probe is not None or self.is_idle:
            return self.probe
        if not self.training:
            return self.hard_mask()
        if self.phase == "decided":
            return self.kept
        return self.soft_gates() if self.phase == "learn" else None

    @property
    def has_penalty(self) -> bool:
        """Whether something beside the loss has a gradient for the scores."""
        return self.settings.chosen_estimator == "hard_concrete" and self.settings.tuning.penalty > 0

    def add_penalty_grad(self, *, loss_scale: float = 1.0) -> None:
        """See `ScorePruner.add_penalty_grad`; nothing for estimators that have none."""
        if not self.has_penalty or self.phase != "learn":
            return
        scores = self.scores.detach()
        slope, strength = torch.zeros_like(scores), self.settings.tuning.penalty * loss_scale
        for positions, kept in self.budgets():
            slope[positions] = hard_concrete_penalty_grad(scores[positions], kept=kept, strength=strength)
        self.add_grad(slope)

    def refresh(self) -> None:
        """Computes the gates of a forward pass once and hands each site its slice."""
        factors = self.gates()
        if factors is None:
            self.units.scale([None] * len(self._sites))
        elif self.probe is None and self.phase == "decided":
            self.units.close(self.chosen(parts := factors.split(self.heads_per_site)), parts)
        else:
            self.units.scale(factors.split(self.heads_per_site))

    def attach(self, model: nn.Module) -> None:
        """Joins the base model as a submodule and hooks every attention site; pipelined, freezes all weights."""
        if self.settings.mode == "pipelined":
            self._frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self._freeze(frozen=True)
        self.join(model)
        self.handles = BeforeEveryPass(self.refresh).attach(model)
        self.handles += self.units.attach(model)

    def idle(self) -> None:
        """See `Pruner.idle`; what was frozen can train again."""
        super().idle()
        self._freeze(frozen=False)

    def detach(self, model: nn.Module) -> None:
        """See `Pruner.detach`."""
        super().detach(model)
        self._freeze(frozen=False)

    def _freeze(self, *, frozen: bool) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(not frozen)

    def quantities(self) -> dict[str, float]:
        """Returns what a training log should show of the gates, as scalars.

        Keys: `temperature`, where the estimator has one; `expected_heads/<site>` (noise-free gates, summed);
        `hard_heads/<site>` (what evaluation uses); `sample_overlap` (share of the K largest noisy scores that are among
        the K largest scores; 1 where the estimator has no noise); `kth_gap` (score of the last head kept minus that of
        the first one closed, smallest over the budgets).
        """
        with torch.no_grad():
            hard, scores = self.hard_mask(), self.scores
            noisy = scores + self.noise.float().to(scores.device)
            overlap = total = 0.0
            gaps = []
            for positions, kept in self.budgets():
                top = top_k_mask(scores[positions], kept)
                overlap += float((top * top_k_mask(noisy[positions], kept)).sum())
                total += kept
                ordered = torch.sort(scores[positions], descending=True).values
                if 0 < kept < len(positions):
                    gaps.append(float(ordered[kept - 1] - ordered[kept]))
            expected = hard if self.phase == "decided" else self.soft_gates(noise_free=True)
        found = {}
        for key, values in (("expected_heads", expected), ("hard_heads", hard)):
            for site, part in zip(self._sites, values.split(self.heads_per_site), strict=True):
                found[f"{key}/{site.name}"] = float(part.sum())
        if self.settings.chosen_estimator in WITH_TEMPERATURE:
            found["temperature"] = self.temperature
        found["sample_overlap"] = overlap / max(total, 1.0)
        return found | ({"kth_gap": min(gaps)} if gaps else {})

    def _per_group(self, function: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        parts = self.budgets()
        if len(parts) == 1:
            return function(*parts[0])
        order = torch.argsort(torch.cat([positions for positions, _ in parts]))
        return torch.cat([function(positions, kept) for positions, kept in parts])[order]
