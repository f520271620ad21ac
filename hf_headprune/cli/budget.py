"""What a model is to be pruned to: the one budget that the options of `headprune prune` give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune._checks import is_confidence
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.pipeline.budget import one_budget, second_order_of
from hf_headprune.pipeline.cost_path import CALIBRATION, examples_for
from hf_headprune.pipeline.holdout import DEFAULT_DROP
from hf_headprune.pipeline.ladder import falling
from hf_headprune.uniform import check_uniform

if TYPE_CHECKING:
    from hf_headprune.pipeline import PruningResult


@dataclass(frozen=True)
class Budget:
    """What was asked for.

    Attributes:
        name: "max_drop", "density", "speedup", "size_mb" or "kept_heads".
        value: Of it; several densities in a tuple.
        confidence: Level at which the drop must be certified; None for the library's.
        claimed_drop: Beside a size, the drop that is certified; None for one percentage point.
    """

    name: str
    value: Any
    confidence: float | None
    claimed_drop: float | None = None

    @classmethod
    def of(cls, given: dict[str, Any], confidence: float | None) -> Budget:
        """Returns the one budget that is given; a drop of one percentage point where none is.

        Args:
            given: All budgets by name. A drop beside a size is what is certified of it.
            confidence: Level of the certificate, or None.

        Raises:
            InvalidSettingError: There are several, or a number is out of range.
        """
        if confidence is not None and not is_confidence(confidence):
            raise InvalidSettingError(f"--confidence must be above 0.5 and below 1, received {confidence}. Pass 0.95.")
        if given["kept_heads"] is not None:
            given = {**given, "kept_heads": _heads(given["kept_heads"])}
        densities = () if given["density"] is None else _densities(given["density"])
        if densities:
            given = {**given, "density": densities[0]}
        drop = given["max_drop"]
        if drop is not None and not 0 < drop < 1:
            raise InvalidSettingError(f"--max-drop must be above 0 and below 1, received {drop}. A point is 0.01.")
        name = one_budget({kind: value for kind, value in given.items() if kind != "max_drop"}, where="prune")
        if name is None:
            return cls("max_drop", DEFAULT_DROP if drop is None else drop, confidence)
        return cls(name, densities if len(densities) > 1 else given[name], confidence, drop)

    @property
    def is_drop(self) -> bool:
        """Whether the smallest model is asked for, rather than one of a given size."""
        return self.name == "max_drop"

    @property
    def is_ladder(self) -> bool:
        """Whether several models are asked for."""
        return isinstance(self.value, tuple)

    @property
    def sizes(self) -> int:
        """How many models are asked for."""
        return len(self.value) if self.is_ladder else 1

    def looked_at(self, model: Any, *, trains_on: bool) -> int:
        """Returns how many training examples costs and refit look at.

        Args:
            model: To be pruned.
            trains_on: Whether the pruned model is trained on.
        """
        if self.is_drop:
            return CALIBRATION
        if self.is_ladder:
            density = min(self.value)
        else:
            density = second_order_of({self.name: self.value}, anatomy_of(model), model, where="prune").density
        return examples_for(density, trains_on=trains_on)

    def check(self, model: Any, *, uniform: bool) -> None:
        """Refuses a size that the model can't have.

        Args:
            model: To be pruned.
            uniform: Whether all layers are to keep equally many units.

        Raises:
            InvalidSettingError: It can't.
        """
        anatomy = anatomy_of(model)  # refuses other families
        if uniform and self.is_ladder:
            raise InvalidSettingError(
                "prune: --uniform is for one size. Pass one, and call the command again for the next."
            )
        if not self.is_drop and not self.is_ladder:
            second_order_of({self.name: self.value}, anatomy, model, where="prune", uniform=uniform)
        elif uniform:
            check_uniform(anatomy)

    def is_met(self, result: PruningResult) -> bool:
        """Tells whether a result is what was asked for."""
        if self.confidence is not None:
            return result.certificate is not None and result.certificate.verdict == "PASS"
        tested = () if result.search is not None else result.history[1:]  # the first is what they are compared with
        return not self.is_drop or result.plan != result.reference or any(it.passed for it in tested)


def _densities(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidSettingError(
            f"--density must be a number such as 0.5, or several with commas between them, received {text!r}."
        ) from error
    return falling(found, where="--density: densities") if len(found) > 1 else found


def _heads(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise InvalidSettingError(
            f"--kept-heads must be a number of heads, or a share such as 0.5, received {text!r}."
        ) from error
