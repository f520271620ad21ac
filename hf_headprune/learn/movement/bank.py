"""MovementBank: the learned scores of all blocks and FFN units of one model, and the masks that follow from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune.anatomy import base_model
from hf_headprune.learn.gates.exact import exact_device
from hf_headprune.learn.movement import masks
from hf_headprune.learn.movement.blocks import (
    BlockMaskedLinear,
    MaskSlot,
    UnitMaskedLinear,
    UnitRowScores,
    become_masked_,
    become_plain_,
    block_sums,
    close_blocks_,
    close_units_,
)
from hf_headprune.learn.movement.cut import cost_of_cut, cut_sites, masks_of_cut
from hf_headprune.learn.movement.layout import score_layout, with_exact_fraction
from hf_headprune.learn.schedules import MovementSchedule
from hf_headprune.learn.score_bank import ScoreBank
from hf_headprune.masking import BeforeEveryPass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.learn.movement.masks import ScoreTensor
    from hf_headprune.learn.movement.settings import BlockMovement

BANK_NAME = "headprune_movement"


class MovementBank(ScoreBank):
    """Scores and masks of blocks and FFN units. It lives inside the base model, so that the Trainer trains it.

    Masks are made once per optimizer step. Evaluation uses those of the end of the schedule, made once per evaluation.

    Attributes:
        layout: The score tensors, in the order of the scores.
        settings: With `kept` as a fraction.
        mask: Of this training step, ones and zeros of shape `(num_scores,)`.
        probe: Factors that replace all masks, `(num_scores,)`, and receive the gradient of each block's or unit's
            factor; None in training.
        total_cost: Of everything scored.
    """

    mask: torch.Tensor
    penalty_weights: torch.Tensor

    def __init__(self, layout: tuple[ScoreTensor, ...], settings: BlockMovement, *, multiplier: float) -> None:
        """Starts with scores of zero and everything open.

        Args:
            layout: From `score_layout`.
            settings: Of block movement.
            multiplier: Learning rate of the scores over that of the run.
        """
        budget: tuple[Any, ...] = (
            settings.method,
            settings.kept,
            settings.counts,
            settings.levels,
            settings.width_multiple,
            settings.scope,
            settings.min_kept,
            settings.mask_bias,
            settings.score_gradient,
            (settings.seq_len, settings.target_len),
            *((tensor.name, tensor.shape) for tensor in layout),
        )
        super().__init__(sum(tensor.numel for tensor in layout), multiplier=multiplier, budget=budget)
        self.layout = layout
        counts_cut = settings.counts_cut and not all(tensor.is_units for tensor in layout)
        self.sites = cut_sites(layout, settings.width_multiple) if counts_cut else ()
        self.settings = with_exact_fraction(settings, tuple(site.groups for site in self.sites) or layout)
        self.total_cost = sum(tensor.cost * tensor.numel for tensor in layout)
        weights = masks.penalty_weights(layout, settings.penalty_strengths)
        self.register_buffer("penalty_weights", weights, persistent=False)
        self.register_buffer("mask", torch.ones(self.num_scores), persistent=False)
        self.penalty_strength = 0.0
        self.is_decided = False
        self.probe: torch.Tensor | None = None
        self.slots: list[MaskSlot] = []
        self.handles: list[RemovableHandle] = []
        self._linears: list[tuple[nn.Linear, ...]] = []  # of each tensor; they belong to the model, not to the bank
        self._final_mask: torch.Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, anatomy: Anatomy, settings: BlockMovement, *, learning_rate: float) -> MovementBank:
        """Makes the bank of a model and joins it.

        Args:
            model: Live model.
            anatomy: Of that model.
            settings: Of block movement.
            learning_rate: Of the run.

        Raises:
            InvalidSettingError: Blocks, width multiple or budget do not fit the model.
            UnsupportedModelError: A scored matrix is no plain linear module.
        """
        layout = score_layout(model, anatomy, settings)
        bank = cls(layout, settings, multiplier=settings.score_learning_rate / learning_rate)
        bank.attach(model)
        return bank

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the scores."""
        return self.settings.score_learning_rate

    def schedule(self, max_steps: int) -> MovementSchedule:
        """Returns the schedule of a run of `max_steps` optimizer steps."""
        settings = self.settings
        start, end = settings.levels
        return MovementSchedule(
            open_steps=round(settings.warmup_ratio * max_steps),
            reached_step=round(settings.ramp_end * max_steps),
            decided_step=round(settings.freeze_at * max_steps),
            start=start,
            end=end,
            end_penalty=settings.penalty,
        )

    def reset(self) -> None:
        """Starts over: scores of zero, nothing masked, nothing decided."""
        super().reset()
        self.mask.fill_(1.0)
        self.is_decided, self._final_mask = False, None

    def begin_step(self, step: int, schedule: MovementSchedule) -> None:
        """Makes the masks of one optimizer step; the same for all its micro-batches and ranks.

        Args:
            step: Counted from zero.
            schedule: Of the run.
        """
        self.steps.fill_(step + 1)
        self.is_idle, self._final_mask = False, None
        self.penalty_strength = schedule.penalty(step)
        if schedule.decided(step) or bool(self.decided):
            self.decide()
        elif schedule.is_open(step):
            self.mask.fill_(1.0)
        else:
            self.mask.copy_(self.mask_at(schedule.level(step)))

    def decide(self) -> None:
        """Fixes the masks, once: a choice that a checkpoint brought along stays."""
        if not self.decided:
            self.kept.copy_(self.final_mask())
            self.decided.fill_(True)
        self.mask.copy_(self.kept)
        self.is_decided, self.is_idle, self._final_mask = True, False, None

    @torch.no_grad()
    def mask_at(self, level: float) -> torch.Tensor:
        """Returns the masks at a threshold, or with a fraction kept: ones and zeros of shape `(num_scores,)`."""
        settings = self.settings
        scores = self._magnitudes() if settings.method == "magnitude" else self.scores
        if not settings.ranks:
            return masks.threshold_mask(
                scores,
                level,
                self.layout,
                sigmoid=settings.method == "sigmoid_threshold",
                min_kept=settings.min_kept,
            )
        if settings.scope == "matrix":
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
        return self.settings.penalty > 0

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
        grad = self.importance_bias.grad
        if grad is not None and self.penalty_strength > 0.0 and not self.is_decided:
            slope = masks.penalty_grad(self.scores, self.penalty_weights)
            grad.add_(slope, alpha=self.penalty_strength * loss_scale)

    def refresh(self) -> None:
        """Hands each masked module its part of the masks and scores of a forward pass."""
        factors, scores = self._factors()
        masks = factors.split(self._sizes)
        parts = [None] * len(masks) if scores is None else scores.split(self._sizes)
        for slot, tensor, mask, part in zip(self.slots, self.layout, masks, parts, strict=True):
            slot.mask = mask.view(tensor.shape)
            slot.scores = None if part is None else part.view(tensor.shape)

    def _factors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the masks of the next forward pass, and the scores where they are learned, `(num_scores,)` each."""
        if self.probe is not None:
            return self.probe.detach(), self.probe
        if not self.training:
            return self.kept if self.is_idle else self.final_mask(), None
        self._final_mask = None  # the scores may change before the next evaluation
        learns = not self.is_decided and self.settings.method != "magnitude" and torch.is_grad_enabled()
        return self.mask, self.scores if learns else None

    def attach(self, model: nn.Module) -> None:
        """Joins the base model as a submodule and masks its linear modules."""
        base = base_model(model)
        self.handles = BeforeEveryPass(self.refresh).attach(model)
        by_weights = self.settings.score_gradient == "weights"
        for tensor in self.layout:
            linears: Any = tuple(base.get_submodule(path) for path in tensor.paths)
            slot = MaskSlot(scores_closed=not by_weights)
            if not tensor.is_units:
                become_masked_(linears[0], BlockMaskedLinear, slot, masks_bias=self.settings.mask_bias)
            else:
                become_masked_(linears[-1], UnitMaskedLinear, slot)
                if by_weights:
                    self.handles.append(linears[0].register_forward_hook(UnitRowScores(slot)))
            self.slots.append(slot)
            self._linears.append(linears)
        base.add_module(BANK_NAME, self)
        self.train(model.training).to(next(model.parameters()).device)

    def detach(self, model: nn.Module) -> None:
        """Leaves the model's modules as they were before `attach`; the weights keep what they learned, unmasked."""
        for handle in self.handles:
            handle.remove()
        for linears in self._linears:
            become_plain_(linears[-1])
        self.handles, self.slots, self._linears = [], [], []
        delattr(base_model(model), BANK_NAME)

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Decides, writes the masks into the weights as zeros, in place, and detaches.

        In evaluation the model then computes what it computed with the bank. Units that were closed have a row, a bias
        and a column of zeros.
        """
        self.decide()
        for tensor, linears, part in zip(self.layout, self._linears, self.kept.split(self._sizes), strict=True):
            if tensor.is_units:
                close_units_(linears, part)
            else:
                close_blocks_(linears[0], part.view(tensor.shape), masks_bias=self.settings.mask_bias)
        self.detach(model)

    def _magnitudes(self) -> torch.Tensor:
        """Returns the mean of |W| over each block, or over all that belongs to each unit, `(num_scores,)`."""
        parts = []
        for tensor, linears in zip(self.layout, self._linears, strict=True):
            weights = [linear.weight.detach().abs() for linear in linears]
            if tensor.is_units:
                weights[-1] = weights[-1].T  # of an output projection the columns belong to the units
            sums = [block_sums(weight, torch.empty(_grid(tensor), device="meta")).flatten() for weight in weights]
            parts.append(torch.stack(sums).sum(0) * (tensor.numel / sum(weight.numel() for weight in weights)))
        return torch.cat(parts)

    @property
    def _sizes(self) -> list[int]:
        return [tensor.numel for tensor in self.layout]

    def _load_from_state_dict(self, *args: Any) -> None:
        self._final_mask = None
        super()._load_from_state_dict(*args)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ScoreBank:  # noqa: FBT001, FBT002 - signature of nn.Module
        self._final_mask = None
        return super()._apply(fn, recurse)


def _grid(tensor: ScoreTensor) -> tuple[int, int]:
    """Returns the rows and columns of blocks that a tensor's scores belong to; units are rows."""
    return (tensor.numel, 1) if len(tensor.shape) == 1 else (tensor.shape[0], tensor.shape[1])


def movement_quantities(bank: MovementBank) -> dict[str, float]:
    """Returns what a training log should show of the masks, as scalars.

    Keys: `density` (share of the cost that this step keeps), `final_density` (what evaluation uses), `penalty`, and
    `ffn_width/<site>` (units that evaluation uses).
    """
    final = bank.final_mask()
    quantities = {"density": bank.density(bank.mask), "final_density": bank.density(final), "penalty": bank.penalty()}
    return quantities | dict(_widths(bank, final))


def _widths(bank: MovementBank, mask: torch.Tensor) -> Iterator[tuple[str, float]]:
    for tensor, part in zip(bank.layout, mask.split([t.numel for t in bank.layout]), strict=True):
        if tensor.is_units:
            yield f"ffn_width/{tensor.name}", float(part.sum())
