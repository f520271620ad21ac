"""The parts of a run as the user asked for them, checked when they are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidSettingError
from hf_headprune.learn.density import budgets
from hf_headprune.learn.distillation import Distillation
from hf_headprune.learn.movement_settings import BlockMovement
from hf_headprune.learn.settings import SubsetGates
from hf_headprune.search.settings import AStarSearch

if TYPE_CHECKING:
    from hf_headprune.anatomy import Anatomy

DEFAULT_BUDGET = SubsetGates().kept_heads


@dataclass(frozen=True)
class Settings:
    """The parts of a run as the user asked for them; None switches a part off.

    Attributes:
        gates: How heads are chosen during training.
        movement: How blocks of weights and FFN units are chosen during training.
        density: Share of the weights of all attention and FFN matrices that is to stay.
        distillation: What the model learns from a teacher.
        search: How the search after training goes.

    Raises:
        InvalidSettingError: A part is of another type, two contradict each other, or all are switched off.
    """

    gates: SubsetGates | None
    movement: BlockMovement | None
    density: float | None
    distillation: Distillation | None
    search: AStarSearch | None

    def __post_init__(self) -> None:
        """Checks all that does not depend on the model."""
        kinds = {"gates": SubsetGates, "movement": BlockMovement, "distillation": Distillation, "search": AStarSearch}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise InvalidSettingError(
                    f"HeadPruneCallback({name}=...) takes {kind.__name__}(...) or None, received {value!r}."
                )
        if self.gates is None and self.movement is None and self.search is None:
            raise InvalidSettingError(
                "HeadPruneCallback(gates=None, search=None) would prune nothing. Leave one on, or pass movement."
            )
        self._check_density()
        self._check_movement()

    def _check_density(self) -> None:
        if self.density is None:
            return
        if self.gates is None or self.movement is not None or self.gates.kept_heads != DEFAULT_BUDGET:
            raise InvalidSettingError(
                f"HeadPruneCallback(density={self.density!r}) decides how many heads and FFN units stay, so it needs "
                "gates without a budget of their own, and no movement. Leave gates and movement out, or pass "
                "SubsetGates(kept_heads=...) and BlockMovement.ffn_units(...) in place of density."
            )

    def _check_movement(self) -> None:
        if self.movement is None:
            return
        if self.gates is not None and self.movement.attention_block is not None:
            raise InvalidSettingError(
                f"HeadPruneCallback(movement=...): its blocks (attention_block={self.movement.attention_block!r}) and "
                "the gates would both decide which heads stay. Pass gates=None, or BlockMovement.ffn_units(...)."
            )
        if self.trains_twice and self.search is not None:
            raise InvalidSettingError(
                f"HeadPruneCallback(movement=BlockMovement(fill={self.movement.fill})): the refilled model trains on, "
                "which changes all that a search has measured. Pass search=None; search_plan(...) searches afterwards."
            )

    @property
    def trains_twice(self) -> bool:
        """Whether a second training run, of the refilled model, follows the cut."""
        return self.movement is not None and self.movement.fill > 0

    def resolved(self, anatomy: Anatomy) -> Settings:
        """Returns the settings with the budgets that a density means for a model.

        Raises:
            InvalidSettingError: The density is out of range.
        """
        if self.density is None or self.gates is None:
            return self
        found = budgets(anatomy, self.density)
        gates = replace(self.gates, kept_heads=found.kept_heads)
        return replace(self, gates=gates, movement=BlockMovement.ffn_units(found.kept_ffn), density=None)
