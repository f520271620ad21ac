"""What a run is asked to do: one budget, the methods that choose, and the search; checked when they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_headprune._checks import is_above, is_confidence, is_number
from hf_headprune.budgets import budgets
from hf_headprune.errors import InvalidSettingError
from hf_headprune.latency import LatencySettings
from hf_headprune.learn.distillation.settings import Distillation
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.pipeline.budget import one_budget, second_order_of
from hf_headprune.pipeline.holdout import DECIDING, DEFAULT_DROP, REPORTING
from hf_headprune.pipeline.run import BY_COSTS, IN_ORDER, asked_in_words, searched_in_words
from hf_headprune.refit.settings import SecondOrder
from hf_headprune.search.settings import AStarSearch
from hf_headprune.uniform import check_uniform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from hf_headprune.anatomy import Anatomy

WIDTH_MULTIPLE = 32
AUTO: Literal["auto"] = "auto"
_KINDS = {
    "gates": SubsetGates,
    "movement": BlockMovement,
    "second_order": SecondOrder,
    "distillation": Distillation,
    "search": AStarSearch,
    "latency": LatencySettings,
}


@dataclass(frozen=True)
class Settings:
    """The parts of a run; None switches a part off.

    Attributes:
        gates: How heads are chosen during training.
        movement: How blocks of weights and FFN units are chosen during training.
        second_order: How heads and FFN units are chosen during training by removal costs, in place of both.
        size: The budgets "density", "speedup", "size_mb" and "kept_heads" as they were passed; at most one is not None.
        recover_epochs: For which the pruned model trains on; None prunes for good.
        distillation: What the model learns from a teacher.
        max_drop: Drop of the metric that is allowed to the plans tried after training, in the order of removal costs.
        claimed_drop: Drop that the certificate of a size is about; None for one percentage point.
        is_one_point: Whether that drop is the default: one percentage point, whatever numbers the metric runs over.
        search: In their place, an A* search after training.
        uniform: Whether all layers keep equally many heads and FFN units.
        confidence: Of the certificate; None certifies nothing.
        latency: At what latency is measured before and after pruning.
        asked: The budget as it was passed, in words.

    Raises:
        InvalidSettingError: A part is of another type, two contradict each other, or nothing would be pruned.
    """

    gates: SubsetGates | None = None
    movement: BlockMovement | None = None
    second_order: SecondOrder | None = None
    size: Mapping[str, Any] = field(default_factory=dict)
    recover_epochs: float | None = None
    distillation: Distillation | None = None
    max_drop: float | None = None
    claimed_drop: float | None = None
    is_one_point: bool = False
    search: AStarSearch | None = None
    uniform: bool = False
    confidence: float | None = DECIDING
    latency: LatencySettings | None = None
    asked: str = ""

    @classmethod
    def of(cls, max_drop: float | None, size: dict[str, Any], **others: Any) -> Settings:
        """Decides what follows training: a drop is allowed where the user says so, or nothing else says what to prune.

        Args:
            max_drop: Drop of the metric that is allowed, or None; beside a size, what the certificate is about.
            size: The budgets that state a size.
            **others: The other attributes; "auto" for `confidence` and `latency` takes the defaults.

        Raises:
            InvalidSettingError: See the class; or two budgets are given.
        """
        name = one_budget(size, where="HeadPruneCallback")
        search = others.get("search")
        if max_drop is not None and search is not None:
            raise InvalidSettingError(
                f"HeadPruneCallback(max_drop={max_drop!r}, search=...): the search has a max_drop of its own. Pass "
                "search=AStarSearch(max_drop=...) alone."
            )
        claimed, max_drop = (None, max_drop) if name is None else (max_drop, None)
        methods = [others.get(part) for part in ("gates", "movement", "second_order")]
        if max_drop is None and name is None and search is None and all(method is None for method in methods):
            max_drop, others["is_one_point"] = DEFAULT_DROP, True
        decides = max_drop is not None or search is not None
        if others["confidence"] == AUTO:
            others["confidence"] = DECIDING if decides else REPORTING
        if others["latency"] == AUTO:
            others["latency"] = LatencySettings()
        asked = asked_in_words(
            {**size, "max_drop": getattr(search, "max_drop", max_drop)}, uniform=others.get("uniform", False)
        )
        return cls(size=size, max_drop=max_drop, claimed_drop=claimed, **others, asked=asked)

    def __post_init__(self) -> None:
        """Checks all that does not depend on the model."""
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise InvalidSettingError(
                    f"HeadPruneCallback({name}=...) takes {kind.__name__}(...) or None, received {value!r}."
                )
        if self.confidence is not None and not is_confidence(self.confidence):
            raise InvalidSettingError(
                f"HeadPruneCallback(confidence={self.confidence!r}) must be None, or a number above 0.5 and below 1. "
                "Pass 0.95 to prune only what is certified at 95 %."
            )
        drop = self.max_drop if self.claimed_drop is None else self.claimed_drop
        if drop is not None and not (is_number(drop) and drop >= 0):
            raise InvalidSettingError(
                f"HeadPruneCallback: max_drop must be a number of at least 0, received {drop!r}. 0.01 is one "
                "percentage point of a metric that runs from 0 to 1."
            )
        if self.claimed_drop is not None and self.confidence is None:
            raise InvalidSettingError(
                f"HeadPruneCallback({self.size_name}=..., max_drop={self.claimed_drop!r}, confidence=None): beside a "
                "size, max_drop is what the certificate is about, and there is to be none. Leave one of the two out."
            )
        self._check_sides()
        self._check_recovery()
        self._check_movement()
        self._check_layers()
        self._check_uniform()

    @property
    def size_name(self) -> str | None:
        """Name of the budget that states a size, or None."""
        return next((name for name, value in self.size.items() if value is not None), None)

    @property
    def _methods(self) -> list[str]:
        return [name for name in ("gates", "movement", "second_order") if getattr(self, name) is not None]

    @property
    def prunes_by_costs(self) -> bool:
        """Whether second-order costs choose during training, by settings of their own or by a budget alone."""
        return self.second_order is not None or (
            self.size_name is not None and self.gates is None and not self.cuts_to_size
        )

    @property
    def prunes_in_training(self) -> bool:
        """Whether units are chosen and removed while the model trains."""
        return bool(self._methods) or (self.size_name is not None and not self.cuts_to_size)

    @property
    def recovers(self) -> bool:
        """Whether the pruned model trains on after the cut."""
        return self.recover_epochs is not None

    @property
    def cuts_to_size(self) -> bool:
        """Whether the model is pruned to a size when training has ended, since it trains on afterwards."""
        return self.recovers and self.size_name is not None

    @property
    def allowed_drop(self) -> float | None:
        """Drop of the metric that is allowed after training, by a search or without; None where nothing follows."""
        return self.max_drop if self.search is None else self.search.max_drop

    @property
    def certified_drop(self) -> float:
        """Drop that the certificate is about: what is allowed, or what was passed beside a size."""
        named = self.claimed_drop if self.allowed_drop is None else self.allowed_drop
        return DEFAULT_DROP if named is None else named

    @property
    def method(self) -> str:
        """What chooses heads and FFN units, in words."""
        words = {
            "gates": "gates of heads were learned in training",
            "movement": "blocks of weights were chosen by movement in training",
            "second_order": "second-order removal costs; the cheapest heads and FFN units were removed during training",
        }
        parts = [words[name] for name in self._methods]
        if self.cuts_to_size:
            parts.append(BY_COSTS)
        if self.follows:
            parts.append(IN_ORDER if self.search is None else searched_in_words(self.search))
        if self.distillation is not None:
            parts.append("a teacher taught the model")
        return "; then ".join(parts)

    @property
    def measured(self) -> AStarSearch:
        """How plans are measured after training: the settings of the search, or as many as there are without one."""
        return self.search or AStarSearch(max_drop=self.max_drop or 0.0)

    @property
    def follows(self) -> bool:
        """Whether training is followed by plans that are measured."""
        return self.allowed_drop is not None

    def _check_sides(self) -> None:
        others = [name for name in self._methods if name != "second_order"]
        if self.second_order is not None and others:
            raise InvalidSettingError(
                f"HeadPruneCallback: second_order and {' and '.join(others)} both select what to prune. Pass only one."
            )
        if self.size_name is None:
            return
        owners = [name for name in self._methods if name != "gates" or self.size_name != "density"]
        if owners or (self.gates is not None and self.gates.kept_heads is not None):
            raise InvalidSettingError(
                f"HeadPruneCallback({self.size_name}={self.size[self.size_name]!r}): "
                f"{' and '.join(owners) or 'gates'} state a budget, too. Leave one of the two out."
            )

    def _check_recovery(self) -> None:
        if self.recover_epochs is None:
            return
        if not is_above(self.recover_epochs, 0):
            raise InvalidSettingError(
                f"HeadPruneCallback(recover_epochs={self.recover_epochs!r}) must be a number of epochs above 0, or "
                "None."
            )
        others = [*self._methods, *(["search"] if self.search is not None else [])]
        if others:
            raise InvalidSettingError(
                f"HeadPruneCallback(recover_epochs={self.recover_epochs!r}): removal costs choose when training has "
                f"ended, and then the pruned model trains on; {' and '.join(others)} would choose in another way. Pass "
                "density=, speedup=, size_mb=, kept_heads= or max_drop= alone."
            )

    def _check_movement(self) -> None:
        if self.movement is None:
            return
        if self.gates is not None and self.movement.attention_block is not None:
            raise InvalidSettingError(
                f"HeadPruneCallback(movement=...): its blocks (attention_block={self.movement.attention_block!r}) and "
                "the gates both select heads. Leave gates out, or pass BlockMovement.ffn_units(...)."
            )
        if self.trains_twice and self.follows:
            raise InvalidSettingError(
                f"HeadPruneCallback(movement=BlockMovement(refill_ratio={self.movement.refill_ratio})): the refilled "
                "model trains on, which changes all that a search has measured. Leave search and max_drop out; "
                "search_plan(...) searches afterwards."
            )

    def _check_layers(self) -> None:
        if self.search is None or self.search.units != ("layers",):
            return
        if self.gates is not None or self.prunes_by_costs:
            raise InvalidSettingError(
                "HeadPruneCallback(search=AStarSearch(units=('layers',))): a search of whole layers alone can't start "
                f"with layers that {'second-order costs' if self.prunes_by_costs else 'gates'} have closed in part. "
                "Pass units=('heads', 'ffn', 'layers'), or leave the budget out."
            )

    def _check_uniform(self) -> None:
        learned = [name for name in ("gates", "movement") if getattr(self, name) is not None]
        if self.uniform and learned:
            raise InvalidSettingError(
                f"HeadPruneCallback(uniform=True): {' and '.join(learned)} select units in each layer alone. Leave "
                f"{'them' if len(learned) > 1 else 'it'} out: removal costs and a search keep equal numbers."
            )

    @property
    def trains_twice(self) -> bool:
        """Whether a second training run, of the refilled model, follows."""
        return self.movement is not None and self.movement.refill_ratio > 0

    def resolved(self, anatomy: Anatomy, model: nn.Module) -> Settings:
        """Returns the settings with what a budget means for a model, and one schedule for gates and FFN units.

        FFN widths stay multiples of 32, or, if those of the model are not, of the largest divisor that they share.

        Raises:
            InvalidSettingError: The budget is out of range, or the model can't be uniform.
        """
        if self.uniform:
            check_uniform(anatomy)
        if self.size_name is None and self.second_order is None:
            return self
        if self.gates is None:
            found = self.cut_of(anatomy, model)
            return self if self.cuts_to_size else replace(self, second_order=found, size={})
        multiple = math.gcd(WIDTH_MULTIPLE, *(site.units for site in anatomy.ffn_sites))
        shares = budgets(anatomy, self.size["density"], width_multiple=multiple)
        opens, cools, decides = self.gates.fractions
        ffn = BlockMovement.ffn_units(
            shares.kept_ffn, width_multiple=multiple, warmup_ratio=opens, ramp_end=cools, freeze_at=decides
        )
        return replace(self, gates=replace(self.gates, kept_heads=shares.kept_heads), movement=ffn, size={})

    def cut_of(self, anatomy: Anatomy, model: nn.Module) -> SecondOrder:
        """Returns what the budget of a size means for a model.

        Raises:
            InvalidSettingError: It is out of range.
        """
        found = self.second_order or second_order_of(
            dict(self.size), anatomy, model, where="HeadPruneCallback", uniform=self.uniform
        )
        return replace(found, tuning=replace(found.tuning, uniform=True)) if self.uniform else found
