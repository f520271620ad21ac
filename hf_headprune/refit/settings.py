"""SecondOrder: the settings of removal by second-order costs, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_headprune._checks import is_above, is_rising, is_whole
from hf_headprune.budgets import budget_rules, density_at
from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from hf_headprune.budgets import Budget


@dataclass(frozen=True)
class SecondOrder:
    """Removal of heads and FFN units by a second-order estimate of what it costs (Optimal Brain Surgeon).

    The model trains whole at first. Then, in one or several rounds, the units that cost least leave, after the output
    projections are refitted to those that stay, by least squares on training examples; and a plain smaller model trains
    on. Nothing but weights is trained.

    Attributes:
        density: Share of all attention and FFN blocks that stays; heads and FFN units compete for it. It is met to the
            nearest unit.
        counts: What the density counts: "parameters" (entries of the weight matrices, biases aside) or "macs"
            (multiply-accumulates, as `hf_headprune.cost` counts them).
        kept_heads: In its place, how many heads stay, as in `SubsetGates`; FFNs stay whole.
        freeze_at: Fraction of the run's optimizer steps at which the last, or only, round takes place.
        rounds: In how many steps of equal size the budget is reached.
        start_at: Fraction of the run at which the first of several rounds takes place.
        scoring_examples: Training examples that each round looks at.
        width_multiple: FFN widths stay multiples of this.
        seq_len: Tokens of a (source) sequence, for "macs".
        target_len: Tokens of the decoder's sequence, for "macs"; equal to `seq_len` when left out.
        seed: Of the choice of examples; the Trainer's seed when left out.

    Raises:
        InvalidSettingError: A value is out of range, or not exactly one budget is given.
    """

    density: float | None = None
    counts: Literal["parameters", "macs", "bytes"] = "parameters"
    kept_heads: Budget | None = None
    freeze_at: float = 0.6
    rounds: int = 1
    start_at: float | None = None
    scoring_examples: int = 512
    width_multiple: int = 32
    seq_len: int = 128
    target_len: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks every value that does not depend on the model."""
        first = self.freeze_at if self.start_at is None else self.start_at
        rules = {
            "either density or kept_heads must be given": (self.density is None) != (self.kept_heads is None),
            "density must be above 0 and at most 1": self.density is None
            or (is_above(self.density, 0) and is_rising(self.density, 1)),
            'counts must be "parameters", "macs" or "bytes"': self.counts in ("parameters", "macs", "bytes"),
            'counts="macs" needs a density': self.counts == "parameters" or self.density is not None,
            "seq_len and target_len must be whole numbers >= 1": is_whole(self.seq_len, at_least=1)
            and (self.target_len is None or is_whole(self.target_len, at_least=1)),
            "rounds must be a whole number >= 1": is_whole(self.rounds, at_least=1),
            "0 <= start_at <= freeze_at <= 1 must hold": is_rising(0, first, self.freeze_at, 1),
            "start_at must be given for several rounds, and only then": is_above(self.rounds, 1)
            == (self.start_at is not None),
            "scoring_examples must be a whole number >= 1": is_whole(self.scoring_examples, at_least=1),
            "width_multiple must be a whole number >= 1": is_whole(self.width_multiple, at_least=1),
            "seed must be a whole number >= 0, or None": self.seed is None or is_whole(self.seed, at_least=0),
            **({} if self.kept_heads is None else budget_rules(self.kept_heads)),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise InvalidSettingError(f"SecondOrder: {'; '.join(broken)}. Received {self!r}.")

    @classmethod
    def to_speedup(cls, factor: float, **changes: Any) -> SecondOrder:
        """Returns removal until so many MACs are left.

        Args:
            factor: MACs of all attention and FFN blocks before, over those after; above 1. What a machine makes of it
                is to be measured.
            **changes: Any other setting, such as `seq_len`.

        Raises:
            InvalidSettingError: The factor is not above 1.
        """
        return cls(density=density_at(factor, where="SecondOrder.to_speedup"), counts="macs", **changes)

    def rounds_due(self, step: int, max_steps: int) -> int:
        """Returns how many rounds have taken place once an optimizer step, counted from zero, begins."""
        span = 0.0 if self.start_at is None else (self.freeze_at - self.start_at) / (self.rounds - 1)
        return sum(step >= round((self.freeze_at - before * span) * max_steps) for before in range(self.rounds))
