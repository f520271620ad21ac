"""MovementPruner: the learned scores of all blocks and FFN units of one model, and the masks that follow from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.anatomy import base_model
from hf_headprune.learn.exact import exact_device
from hf_headprune.learn.movement import masks
from hf_headprune.learn.movement.blocks import (
    BlockMaskedLinear,
    MaskSlot,
    UnitMaskedLinear,
    UnitRowScores,
    become_masked_,
    become_plain_,
    close_blocks_,
    close_units_,
)
from hf_headprune.learn.movement.cut import cost_of_cut, cut_sites, masks_of_cut
from hf_headprune.learn.movement.layout import budget_of, score_layout, with_exact_fraction
from hf_headprune.learn.movement.magnitude import magnitudes
from hf_headprune.learn.movement.schedule import MovementSchedule
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.learn.pruner import Choice
from hf_headprune.learn.score_pruner import ScorePruner, check_steps_to_learn
from hf_headprune.masking import BeforeEveryPass
from hf_headprune.plan import PruningPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.learn.movement.masks import ScoreTensor
    from hf_headprune.learn.training_loop import TrainingLoop

ROUND_OFF = 1e-6  # of a density, which float32 masks and sums in another order leave


class MovementPruner(ScorePruner[BlockMovement]):
    """Scores and masks of blocks and FFN units of one model.

    Masks are made once per optimizer step. Evaluation uses those of the end of the schedule, made once per evaluation.

    Attributes:
        layout: The score tensors, in the order of the scores.
        ranked: What a budget is spent on: the same, or groups of units that the cut takes whole.
        settings: With a density that the model can meet exactly, if there is one.
        schedule: Of the run.
        mask: Of this training step, ones and zeros of shape `(num_scores,)`.
        probe: Factors that replace all masks, `(num_scores,)`, and receive the gradient of each block's or unit's
            factor; None in training.
        total_cost: Of everything scored.
    """

    part = "movement"
    mask: torch.Tensor
    penalty_weights: torch.Tensor
    schedule: MovementSchedule

    def __init__(self, layout: tuple[ScoreTensor, ...], settings: BlockMovement, *, multiplier: float = 1.0) -> None:
        """Starts with scores of zero and everything open.

        Args:
            layout: From `score_layout`.
            settings: Of block movement.
            multiplier: Learning rate of the scores over that of the run.
        """
        super().__init__(
            settings,
            num_scores=sum(tensor.numel for tensor in layout),
            multiplier=multiplier,
            budget=budget_of(settings, layout),
        )
        self.layout = layout
        counts_cut = settings.counts_cut and not all(tensor.is_units for tensor in layout)
        self.sites = cut_sites(layout, settings.tuning.width_multiple) if counts_cut else ()
        self.ranked = tuple(site.groups for site in self.sites) or layout
        self.settings = with_exact_fraction(settings, self.ranked)
        self.total_cost = sum(tensor.cost * tensor.numel for tensor in layout)
        weights = masks.penalty_weights(layout, settings.penalty_strengths)
        self.register_buffer("penalty_weights", weights, persistent=False)
        self.register_buffer("mask", torch.ones(self.num_scores), persistent=False)
        self.penalty_strength = 0.0
        self.is_decided = False
        self.probe: torch.Tensor | None = None
        self.slots: list[MaskSlot] = []
        self._linears: list[tuple[nn.Linear, ...]] = []  # of each tensor; they belong to the model, not to the pruner
        self._final_mask: torch.Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, anatomy: Anatomy, settings: BlockMovement, loop: TrainingLoop) -> MovementPruner:
        """See `Pruner.of`.

        Raises:
            InvalidSettingError: Blocks, width multiple or budget do not fit the model.
            UnsupportedModelError: A scored matrix is no plain linear module.
        """
        layout = score_layout(model, anatomy, settings)
        found = cls(layout, settings, multiplier=settings.tuning.score_learning_rate / loop.learning_rate)
        found.attach(model)
        return found

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the scores."""
        return self.settings.tuning.score_learning_rate

    def prepare(self, max_steps: int) -> None:
        """See `Pruner.prepare`."""
        settings = self.settings
        start, end = settings.levels
        self.schedule = MovementSchedule(
            open_steps=round(settings.warmup_ratio * max_steps),
            reached_step=round(settings.ramp_end * max_steps),
            decided_step=round(settings.freeze_at * max_steps),
            start=start,
            end=end,
            end_penalty=settings.tuning.penalty,
        )
        check_steps_to_learn(self.part, self.schedule.open_steps, max_steps)

    def reset(self) -> None:
        """Starts over: scores of zero, nothing masked, nothing decided."""
        super().reset()
        self.mask.fill_(1.0)
        self.is_decided, self._final_mask = False, None

    def begin_step(self, model: nn.Module, step: int, loop: TrainingLoop) -> None:
        """See `Pruner.begin_step`: makes the masks."""
        self.set_step(step)
        super().begin_step(model, step, loop)

    def set_step(self, step: int) -> None:
        """Makes the masks of one optimizer step, counted from zero; the same for all its micro-batches and ranks."""
        self.is_idle, self._final_mask = False, None
        self.penalty_strength = self.schedule.penalty(step)
        if self.schedule.decided(step) or bool(self.decided):
            self.decide()
        elif self.schedule.is_open(step):
            self.mask.fill_(1.0)
        else:
            self.mask.copy_(self.mask_at(self.schedule.level(step)))

    def decide(self) -> None:
        """Fixes the masks, once: a choice that a checkpoint brought along is kept."""
        if not self.decided:
            self.kept.copy_(self.final_mask())
            self.decided.fill_(True)
            self.seal()
        self.mask.copy_(self.kept)
        self.is_decided, self.is_idle, self._final_mask = True, False, None

    def undecided_until(self) -> int | None:
        """See `Pruner.undecided_until`."""
        return None if self.decided else round(self.schedule.reached_step)

    def finish(self, model: nn.Module, loop: TrainingLoop) -> Choice:
        """See `Pruner.finish`; what is masked becomes zero in the weights."""
        del loop
        self.decide()
        self.check_state()
        self.apply_(model)
        return Choice(PruningPlan.of(model), wrote_zeros=True)

    def choice_problems(self) -> Iterable[str]:
        """Yields what is wrong with masks that are decided."""
        if not self.settings.ranks:
            if bool(self.kept.all()) and not bool(self.mask_at(self.settings.levels[1]).all()):
                yield "the masks are decided and close nothing, though the scores say otherwise"
            return
        found, wanted = self.density(self.kept), self.settings.levels[1]
        if self.settings.tuning.ranking == "per_matrix":
            wanted, slack = self.density(masks.top_k_per_tensor(torch.zeros_like(self.kept), wanted, self.layout)), 0.0
        else:  # never more than the budget, and less by no more than what is cut as one
            slack = max(part.cost * part.multiple for part in self.ranked) / self.total_cost
        if not wanted - slack - ROUND_OFF <= found <= wanted + ROUND_OFF:
            yield f"the masks keep {found:.4f} of what is counted, where {wanted:.4f} was to be"

    @torch.no_grad()
    def mask_at(self, level: float) -> torch.Tensor:
        """Returns the masks at a threshold, or with a fraction kept: ones and zeros of shape `(num_scores,)`."""
        settings = self.settings
        scores = magnitudes(self.layout, self._linears) if settings.method == "magnitude" else self.scores
        if not settings.ranks:
            return masks.threshold_mask(
                scores,
                level,
                self.layout,
                sigmoid=settings.method == "sigmoid_threshold",
                min_kept=settings.tuning.min_kept,
            )
        if settings.tuning.ranking == "per_matrix":
            return masks.top_k_per_tensor(scores, level, self.layout)
        exact, budget = scores.to(exact_device(scores.device)), level * self.total_cost
        if self.sites:
            return masks_of_cut(exact, budget, self.layout, self.sites).to(scores.device)
        return masks.top_k_over_model(exact, budget, self.layout).to(scores.device)

    @torch.no_grad()
    def final_mask(self) -> torch.Tensor:
        """Returns the masks that evaluation uses, `(num_scores,)`: the decided ones, else those of the end level."""
        if self._final_mask is None:
            self._final_mask = torch.where(self.decided, self.kept, self.mask_at(self.settings.levels[1]))
        return self._final_mask

    def density(self, mask: torch.Tensor) -> float:
        """Returns what share of the cost a mask keeps; it waits for the device."""
        if self.sites:
            return float(cost_of_cut(mask.to(exact_device(mask.device)), self.layout, self.sites)) / self.total_cost
        parts = zip(self.layout, mask.split(self._sizes), strict=True)
        return sum(tensor.cost * float(part.sum()) for tensor, part in parts) / self.total_cost

    @property
    def has_penalty(self) -> bool:
        """Whether something beside the loss has a gradient for the scores."""
        return self.settings.tuning.penalty > 0

    def penalty(self) -> float:
        """Returns the penalty as the training loss would contain it; it waits for the device."""
        with torch.no_grad():
            return float(masks.penalty(self.scores, self.penalty_weights)) * self.penalty_strength

    @torch.no_grad()
    def add_penalty_grad(self, *, loss_scale: float = 1.0) -> None:
        """Adds the penalty's gradient to the scores' gradient; call it once per optimizer step.

        Args:
            loss_scale: What the gradients that are there are still multiplied with.
        """
        if self.penalty_strength > 0.0 and not self.is_decided:
            self.add_grad(masks.penalty_grad(self.scores, self.penalty_weights) * (self.penalty_strength * loss_scale))

    def refresh(self) -> None:
        """Hands each masked module its part of the masks and scores of a forward pass; none where all is open."""
        for slot, tensor, mask, part in zip(self.slots, self.layout, *map(self._split, self._factors()), strict=False):
            slot.mask = None if mask is None else mask.view(tensor.shape)
            slot.scores = None if part is None else part.view(tensor.shape)

    def _split(self, values: torch.Tensor | None) -> Iterable[torch.Tensor | None]:
        return [None] * len(self.layout) if values is None else values.split(self._sizes)

    def _factors(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Returns the masks of the next forward pass, and the scores where they are learned, `(num_scores,)` each."""
        if self.probe is not None:
            return self.probe.detach(), self.probe
        if self.is_idle:
            return None, None
        if not self.training:
            return self.final_mask(), None
        self._final_mask = None  # the scores may change before the next evaluation
        learns = not self.is_decided and self.settings.method != "magnitude" and torch.is_grad_enabled()
        return self.mask, self.scores if learns else None

    def attach(self, model: nn.Module) -> None:
        """Joins the base model as a submodule and masks its linear modules."""
        base = base_model(model)
        self.handles = BeforeEveryPass(self.refresh).attach(model)
        by_weights = self.settings.tuning.score_gradient == "weights"
        for tensor in self.layout:
            linears: Any = tuple(base.get_submodule(path) for path in tensor.paths)
            slot = MaskSlot(scores_closed=not by_weights)
            if not tensor.is_units:
                become_masked_(linears[0], BlockMaskedLinear, slot, masks_bias=self.settings.tuning.mask_bias)
            else:
                become_masked_(linears[-1], UnitMaskedLinear, slot)
                for linear, rows in zip(linears, tensor.rows, strict=False) if by_weights else ():
                    owners = torch.tensor(rows.owners())
                    self.handles.append(linear.register_forward_hook(UnitRowScores(slot, owners)))
            self.slots.append(slot)
            self._linears.append(linears)
        self.join(model)

    def detach(self, model: nn.Module) -> None:
        """Leaves the model's modules as they were before `attach`; the weights keep what they learned, unmasked."""
        super().detach(model)
        for linears in self._linears:
            become_plain_(linears[-1])
        self.slots, self._linears = [], []

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Decides, writes the masks into the weights as zeros, in place, and detaches.

        In evaluation the model then computes what it computed with the bank. Units that were closed have a row, a bias
        and a column of zeros.
        """
        self.decide()
        for tensor, linears, part in zip(self.layout, self._linears, self.kept.split(self._sizes), strict=True):
            if tensor.is_units:
                close_units_(linears, part, tensor.rows)
            else:
                close_blocks_(linears[0], part.view(tensor.shape), masks_bias=self.settings.tuning.mask_bias)
        self.detach(model)

    @property
    def _sizes(self) -> list[int]:
        return [tensor.numel for tensor in self.layout]

    def quantities(self) -> dict[str, float]:
        """Returns what a training log should show of the masks, as scalars.

        Keys: `density` (share of the cost that this step keeps), `final_density` (what evaluation uses), `penalty`, and
        `ffn_width/<site>` (units that evaluation uses).
        """
        final = self.final_mask()
        found = {"density": self.density(self.mask), "final_density": self.density(final), "penalty": self.penalty()}
        for tensor, part in zip(self.layout, final.split(self._sizes), strict=True):
            if tensor.is_units:
                found[f"ffn_width/{tensor.name}"] = float(part.sum())
        return found

    def before_loading(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `ScorePruner`; evaluation makes its masks anew."""
        self.is_decided, self._final_mask = bool(state["decided"]), None
        super().before_loading(state)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MovementPruner:  # noqa: FBT001, FBT002 - signature of nn.Module
        self._final_mask = None
        super()._apply(fn, recurse)
        return self
