"""SecondOrder: the settings of removal by second-order costs, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hf_headprune._checks import check, is_above, is_number, is_ratio, is_rising, is_whole, with_tuning
from hf_headprune.budgets import Budget, budget_rules, density_at
from hf_headprune.cost import LATENCY_TABLE_RULE, LatencyTable, latency_table

AUTO = "auto"
DEEP = 1 / 3  # density from which on healing needs more steps, and a higher rate, than the end of a schedule has
Counts = Literal["parameters", "macs", "bytes", "latency"]


@dataclass(frozen=True)
class SecondOrderTuning:
    """What few runs need to change of `SecondOrder`.

    Attributes:
        start_at: Fraction of the run at which the first of several rounds takes place; when left out, `freeze_at`
            divided by the rounds, which spreads them evenly.
        scoring_examples: Training examples that each round looks at.
        width_multiple: FFN widths remain multiples of this.
        whole_groups: Where query heads share keys and values by groups, whether only whole groups are removed. When
            False, a density also removes query heads inside groups, equally many of each that remains. A budget of
            heads always counts, and removes, whole groups.
        seq_len: Tokens of a (source) sequence, for "macs".
        target_len: Tokens of the decoder's sequence, for "macs"; equal to `seq_len` when left out.
        latency_ms: For "latency": the ms of each block by the number of its units kept, as `measure_latency_table`
            returns them; interpolated between the numbers measured.
        uniform: Whether all layers keep equally many heads and FFN units, so that `export_model(mode="plain")` can
            write the model for unmodified Transformers. Kinds of units whose number the family's configuration can't
            change are all kept.
        rewind: After the last round the learning rate's schedule starts over, in the steps that are left, and rises to
            this multiple of the highest rate before (learning-rate rewinding: Renda, Frankle and Carbin 2020, arXiv
            2003.02389, with 1.0). None leaves the schedule alone; "auto" is 2.0 for a density of at most a third, and
            else None. A scheduler that you pass to the Trainer yourself, or one that looks at a metric, is always left
            alone.
        seed: Of the choice of examples; the Trainer's seed when left out.

    Raises:
        InvalidSettingError: A value is out of range.
    """

    start_at: float | None = None
    scoring_examples: int = 512
    width_multiple: int = 32
    whole_groups: bool = False
    seq_len: int = 128
    target_len: int | None = None
    latency_ms: LatencyTable | None = field(default=None, hash=False)
    uniform: bool = False
    rewind: float | Literal["auto"] | None = "auto"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks every value on its own."""
        table = latency_table(self.latency_ms)
        if table is not None:
            object.__setattr__(self, "latency_ms", table)
        rules = {
            "start_at must be from 0 to 1, or None": self.start_at is None or is_rising(0, self.start_at, 1),
            "scoring_examples must be a whole number >= 1": is_whole(self.scoring_examples, at_least=1),
            "width_multiple must be a whole number >= 1": is_whole(self.width_multiple, at_least=1),
            "whole_groups must be True or False": isinstance(self.whole_groups, bool),
            "seq_len must be a whole number >= 1": is_whole(self.seq_len, at_least=1),
            "target_len must be a whole number >= 1, or None": self.target_len is None
            or is_whole(self.target_len, at_least=1),
            f"latency_ms must be {LATENCY_TABLE_RULE}": self.latency_ms is None or table is not None,
            "uniform must be True or False": self.uniform in (True, False),
            "rewind must be a number above 0, 'auto' or None": self.rewind in (None, AUTO) or is_above(self.rewind, 0),
            "seed must be a whole number >= 0, or None": self.seed is None or is_whole(self.seed, at_least=0),
        }
        check(self, rules)


@dataclass(frozen=True)
class SecondOrder:
    """Removal of heads and FFN units by a second-order estimate of what it costs (Optimal Brain Surgeon).

    The model trains whole at first. Then, in one or several rounds, the units that cost least are removed, after the
    output projections are refitted to the others, by least squares on training examples; and a plain smaller model
    trains on. Nothing but weights is trained.

    Attributes:
        density: Share of all attention and FFN blocks that is kept; heads and FFN units compete for it. It is met to
            the nearest step, and never exceeded by "macs", "bytes" and "latency".
        counts: What the density counts: "parameters" (entries of the weight matrices, biases aside), "macs"
            (multiply-accumulates, as `hf_headprune.cost` counts them), "bytes" (of the saved file, at the present
            dtype; what is no attention or FFN block, such as embeddings, is not counted) or "latency" (the ms of all
            blocks by `tuning.latency_ms`; of all plans that meet it, the one whose removals cost least).
        kept_heads: In its place, how many heads are kept, as in `SubsetGates`; FFNs remain whole. Where query heads
            share keys and values, it counts groups of them, which are removed whole.
        freeze_at: Fraction of the run's optimizer steps at which the last, or only, round takes place. When left out,
            0.6; and 0.5 for a density of at most a third, after which there is more to heal.
        rounds: In how many steps of equal size the budget is reached.
        tuning: What few runs need to change.

    Raises:
        InvalidSettingError: A value is out of range, or not exactly one budget is given.
    """

    density: float | None = None
    counts: Counts = "parameters"
    kept_heads: Budget | None = field(default=None, hash=False)
    freeze_at: float | None = None
    rounds: int = 1
    tuning: SecondOrderTuning = field(default_factory=SecondOrderTuning)

    def __post_init__(self) -> None:
        """Checks every value that does not depend on the model."""
        if isinstance(self.kept_heads, Mapping):
            object.__setattr__(self, "kept_heads", dict(self.kept_heads))
        is_tuned = isinstance(self.tuning, SecondOrderTuning)
        first = self.tuning.start_at if is_tuned and self.tuning.start_at is not None else self.last_round_at
        has_first = is_tuned and self.tuning.start_at is not None
        rules = {
            "either density or kept_heads must be given": (self.density is None) != (self.kept_heads is None),
            "density must be above 0 and at most 1": self.density is None or is_ratio(self.density),
            f"counts must be one of {get_args(Counts)}": self.counts in get_args(Counts),
            "counts is for a density": self.counts == "parameters" or self.density is not None,
            "tuning.latency_ms is for counts='latency', which needs it": not is_tuned
            or (self.counts == "latency") == (self.tuning.latency_ms is not None),
            "rounds must be a whole number >= 1": is_whole(self.rounds, at_least=1),
            "0 <= tuning.start_at <= freeze_at <= 1 must hold": is_rising(0, first, self.last_round_at, 1),
            "tuning.start_at needs rounds above 1": not has_first or self.rounds != 1,
            "tuning must be SecondOrderTuning(...)": is_tuned,
            **({} if self.kept_heads is None else budget_rules(self.kept_heads)),
        }
        check(self, rules)

    @classmethod
    def to_speedup(cls, factor: float, **changes: Any) -> SecondOrder:
        """Returns removal down to a share of the multiply-accumulates, or of the measured ms.

        Args:
            factor: Of all attention and FFN blocks, MACs before over those after; above 1. With `latency_ms`, ms before
                over those after.
            **changes: Any other setting, of `SecondOrderTuning` too, such as `seq_len` or `latency_ms`.

        Raises:
            InvalidSettingError: The factor is not above 1.
        """
        density = density_at(factor, where="SecondOrder.to_speedup")
        counts: Counts = "macs" if changes.get("latency_ms") is None else "latency"
        return cls(density=density, counts=counts, **with_tuning(changes, SecondOrderTuning))

    @property
    def _is_deep(self) -> bool:
        return is_number(self.density) and self.density <= DEEP  # type: ignore[operator] # a number

    @property
    def last_round_at(self) -> float:
        """Fraction of the run at which the last round takes place."""
        if self.freeze_at is None:
            return 0.5 if self._is_deep else 0.6
        return self.freeze_at

    @property
    def rewinds_to(self) -> float | None:
        """Multiple of the highest learning rate to which its schedule rises after the last round; None: it goes on."""
        if self.tuning.rewind != AUTO:
            return self.tuning.rewind  # type: ignore[return-value] # a number or None
        return 2.0 if self._is_deep else None

    def rounds_due(self, step: int, max_steps: int) -> int:
        """Returns how many rounds have taken place once an optimizer step, counted from zero, begins."""
        last = self.last_round_at
        first = last / self.rounds if self.tuning.start_at is None else self.tuning.start_at
        span = (last - first) / max(self.rounds - 1, 1)
        return sum(step >= round((last - before * span) * max_steps) for before in range(self.rounds))
