"""The parts of a run as the user asked for them, checked when they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_headprune._checks import is_above
from hf_headprune.budgets import budgets
from hf_headprune.errors import InvalidSettingError
from hf_headprune.latency import LatencySettings
from hf_headprune.learn.distillation.distiller import Distillation
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.search.settings import AStarSearch

if TYPE_CHECKING:
    from hf_headprune.anatomy import Anatomy

WIDTH_MULTIPLE = 32
DEFAULT_GATES = SubsetGates()  # this very object: whoever passes gates of their own wants gates
DEFAULT_SEARCH = AStarSearch()  # likewise


@dataclass(frozen=True)
class Settings:
    """The parts of a run as the user asked for them; None switches a part off.

    Attributes:
        gates: How heads are chosen during training.
        movement: How blocks of weights and FFN units are chosen during training.
        second_order: How heads and FFN units are chosen during training without learned scores, in place of both.
        density: Share of the weights of all attention and FFN matrices that is to stay, where gates and movement scores
            are to share it.
        distillation: What the model learns from a teacher.
        search: How the search after training goes.
        latency: At what latency is measured before and after the cut.

    Raises:
        InvalidSettingError: A part is of another type, two contradict each other, or all are switched off.
    """

    gates: SubsetGates | None
    movement: BlockMovement | None
    second_order: SecondOrder | None
    density: float | None
    distillation: Distillation | None
    search: AStarSearch | None
    latency: LatencySettings | None

    @classmethod
    def of(
        cls,
        gates: SubsetGates | None,
        movement: BlockMovement | None,
        second_order: SecondOrder | None,
        density: float | None,
        **others: Any,
    ) -> Settings:
        """Decides who chooses: second-order costs where they, or a density without gates, are asked for.

        Gates and search that nobody asked for give way to what says otherwise which heads stay.

        Args:
            gates: `DEFAULT_GATES` where the user gave none.
            movement: See the class.
            second_order: See the class.
            density: Share of the weights that is to stay.
            **others: The other attributes.

        Raises:
            InvalidSettingError: See the class; or the density is no share.
        """
        if density is not None and not (is_above(density, 0) and density <= 1):
            raise InvalidSettingError(
                f"HeadPruneCallback(density={density!r}): the density must be above 0 and at most 1, the share of the "
                "weights that stays. Pass a number such as 0.4."
            )
        no_other = second_order is None and movement is None and (gates is None or gates is DEFAULT_GATES)
        if density is not None and no_other:
            second_order, density = SecondOrder(density=density), None
        blocks = movement if isinstance(movement, BlockMovement) else None  # anything else is refused below
        chooses_heads = second_order is not None or (blocks is not None and blocks.attention_block is not None)
        fills = blocks is not None and blocks.refill_ratio > 0
        if gates is DEFAULT_GATES and chooses_heads:
            gates = None
        if others["search"] is DEFAULT_SEARCH and (density is not None or chooses_heads or fills):
            others["search"] = None
        return cls(gates, movement, second_order, density, **others)

    def __post_init__(self) -> None:
        """Checks all that does not depend on the model."""
        kinds = {
            "gates": SubsetGates,
            "movement": BlockMovement,
            "second_order": SecondOrder,
            "distillation": Distillation,
            "search": AStarSearch,
            "latency": LatencySettings,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise InvalidSettingError(
                    f"HeadPruneCallback({name}=...) takes {kind.__name__}(...) or None, received {value!r}."
                )
        if all(part is None for part in (self.gates, self.movement, self.second_order, self.search)):
            raise InvalidSettingError(
                "HeadPruneCallback(gates=None, search=None) would prune nothing. Leave one on, or pass movement, "
                "second_order or density."
            )
        self._check_density()
        self._check_movement()
        self._check_layers()

    def _check_density(self) -> None:
        others = {"gates": self.gates, "movement": self.movement, "density": self.density}
        given = [name for name, value in others.items() if value is not None]
        if self.second_order is not None and given:
            raise InvalidSettingError(
                f"HeadPruneCallback(second_order=...): its costs decide which heads and FFN units stay, and so would "
                f"{', '.join(given)}. Leave one side out."
            )
        if self.density is None:
            return
        if self.gates is None or self.movement is not None or self.gates.kept_heads is not None:
            raise InvalidSettingError(
                f"HeadPruneCallback(density={self.density!r}) decides how many heads and FFN units stay, so gates must "
                "have no budget of their own, and there can be no movement. Leave gates and movement out, or pass "
                "SubsetGates(kept_heads=...) and BlockMovement.ffn_units(...) in place of density."
            )

    def _check_movement(self) -> None:
        if self.movement is None:
            return
        if self.gates is not None and self.movement.attention_block is not None:
            raise InvalidSettingError(
                f"HeadPruneCallback(movement=...): its blocks (attention_block={self.movement.attention_block!r}) and "
                "the gates would both decide which heads stay. Leave gates out, or pass BlockMovement.ffn_units(...)."
            )
        if self.trains_twice and self.search is not None:
            raise InvalidSettingError(
                f"HeadPruneCallback(movement=BlockMovement(refill_ratio={self.movement.refill_ratio})): the refilled "
                "model trains on, which changes all that a search has measured. Leave search out; search_plan(...) "
                "searches afterwards."
            )

    def _check_layers(self) -> None:
        if self.search is None or self.search.units != ("layers",):
            return
        if self.gates is not None or self.second_order is not None:
            raise InvalidSettingError(
                "HeadPruneCallback(search=AStarSearch(units=('layers',))): a search of whole layers alone can't begin "
                f"with layers that {'gates' if self.second_order is None else 'second-order costs'} have closed in "
                "part. Pass units=('heads', 'ffn', 'layers'), or gates=None without a density."
            )

    @property
    def trains_twice(self) -> bool:
        """Whether a second training run, of the refilled model, follows the cut."""
        return self.movement is not None and self.movement.refill_ratio > 0

    def resolved(self, anatomy: Anatomy) -> Settings:
        """Returns the settings with the budgets that a density means for a model, and one schedule for both parts.

        FFN widths stay multiples of 32, or, where those of the model are none, of the largest divisor that they share.

        Raises:
            InvalidSettingError: The density is out of range.
        """
        if self.density is None or self.gates is None:
            return self
        multiple = math.gcd(WIDTH_MULTIPLE, *(site.units for site in anatomy.ffn_sites))
        found = budgets(anatomy, self.density, width_multiple=multiple)
        opens, cools, decides = self.gates.fractions
        ffn = BlockMovement.ffn_units(
            found.kept_ffn, width_multiple=multiple, warmup_ratio=opens, ramp_end=cools, freeze_at=decides
        )
        return replace(self, gates=replace(self.gates, kept_heads=found.kept_heads), movement=ffn, density=None)
