"""BlockMovement: the settings of learned block scores, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, get_args

from hf_headprune._checks import check, is_above, is_block, is_number, is_rising, is_whole, with_tuning
from hf_headprune.budgets import density_at
from hf_headprune.errors import InvalidSettingError, shown

if TYPE_CHECKING:
    from hf_headprune.anatomy import Site

Block = tuple[int, int]
Method = Literal["sigmoid_threshold", "threshold", "top_k", "magnitude"]
Counts = Literal["scores", "parameters", "macs"]
Ranking = Literal["global", "per_matrix"]
ScoreGradient = Literal["weights", "unit"]
THRESHOLDS = {"sigmoid_threshold": (0.0, 0.1), "threshold": (-1.0, 0.0)}
DEFAULT_DENSITY = 0.5
# The published runs on SQuAD: 110 660 steps, of which the first 5 400 and the last 54 000 hold the threshold still.
_PAPER_OPEN = 5_400 / 110_660
_PAPER_REACHED = 1.0 - 54_000 / 110_660


@dataclass(frozen=True)
class MovementTuning:
    """What few runs need to change of `BlockMovement`.

    Attributes:
        blocks: Of some sites other shapes, or None to leave them whole, by patterns of their names such as
            `{"encoder.layer.0.*": None, "*.crossattention": (16, 16)}`; of patterns that match one site the last holds.
            What `attention_block` or `ffn_block` leaves out stays out.
        threshold: First and last threshold of the methods that have one. None: from 0 to 0.1 of a sigmoid, as
            published, and of the scores themselves, which start at 0 and fall where weights shrink, from -1 to 0.
        counts: What a density counts: "scores" (blocks and units), or what the pruned model keeps of the scored sites:
            "parameters" (entries of their matrices, biases aside) or "macs" (with the attention products, as
            `hf_headprune.cost` counts them). The cut takes whole heads and FFN units, so with blocks, attention's share
            of these two is spent on the heads whose blocks score best; masked blocks inside them remain as zeros.
        kept: In place of a density that counts "scores": the number of blocks and units that are kept.
        ranking: "global" ranks over the whole model; "per_matrix" keeps the same fraction of each matrix.
        min_kept: Fraction of each score tensor that a threshold leaves in any case, as the paper's code does.
        mask_bias: Whether the bias of an attention row (or of a row of FFN blocks) without an open block is dropped.
        score_gradient: For units. "weights" is the paper's: the sum over both FFN matrices, which leaves closed units
            without gradient. "unit" is the derivative by a factor on what the unit hands to the output projection:
            closed units can return.
        width_multiple: FFN units are kept in multiples of this in each layer; a threshold's choice is rounded up. What
            blocks of the FFN leave is rounded where the density counts "parameters" or "macs", and otherwise not.
        score_learning_rate: Peak learning rate of the scores; it follows the run's own schedule.
        penalty: Last strength of the penalty on the scores.
        attention_penalty: Factor of the penalty on the scores of attention.
        ffn_penalty: Factor of the penalty on the scores of the FFN.
        ramp_end: Fraction of the run at which the last threshold, or the density, is reached; `freeze_at` when left
            out.
        seq_len: Tokens of a (source) sequence, for "macs".
        target_len: Tokens of the decoder's sequence, for "macs"; equal to `seq_len` when left out.

    Raises:
        InvalidSettingError: A value is out of range.
    """

    blocks: Mapping[str, Block | Literal["head", "unit"] | None] | None = field(default=None, hash=False)
    threshold: tuple[float, float] | None = None
    counts: Counts = "parameters"
    kept: int | None = None
    ranking: Ranking = "global"
    min_kept: float = 0.0
    mask_bias: bool = True
    score_gradient: ScoreGradient = "unit"
    width_multiple: int = 32
    score_learning_rate: float = 1e-2
    penalty: float = 0.0
    attention_penalty: float = 1.0
    ffn_penalty: float = 1.0
    ramp_end: float | None = None
    seq_len: int = 128
    target_len: int | None = None

    def __post_init__(self) -> None:
        """Checks every value on its own."""
        if isinstance(self.blocks, Mapping):
            object.__setattr__(self, "blocks", dict(self.blocks))
        options = {"counts": Counts, "ranking": Ranking, "score_gradient": ScoreGradient}
        rules = {
            'blocks must map patterns of sites to (rows, columns) >= 1, "head", "unit" or None': self.blocks is None
            or _is_pattern(self.blocks),
            "threshold must be two numbers, or None": self.threshold is None or _is_pair(self.threshold),
            **{
                f"{name} must be one of {get_args(o)}": getattr(self, name) in get_args(o)
                for name, o in options.items()
            },
            "kept must be a whole number >= 0, or None": self.kept is None or is_whole(self.kept, at_least=0),
            "min_kept must be from 0 to below 1": is_rising(0, self.min_kept) and self.min_kept < 1,
            "mask_bias must be True or False": isinstance(self.mask_bias, bool),
            "width_multiple must be a whole number >= 1": is_whole(self.width_multiple, at_least=1),
            "score_learning_rate must be a number above 0": is_above(self.score_learning_rate, 0),
            "penalty must be a number >= 0": is_rising(0, self.penalty),
            "attention_penalty must be a number >= 0": is_rising(0, self.attention_penalty),
            "ffn_penalty must be a number >= 0": is_rising(0, self.ffn_penalty),
            "ramp_end must be from 0 to 1, or None": self.ramp_end is None or is_rising(0, self.ramp_end, 1),
            "seq_len must be a whole number >= 1": is_whole(self.seq_len, at_least=1),
            "target_len must be a whole number >= 1, or None": self.target_len is None
            or is_whole(self.target_len, at_least=1),
        }
        check(self, rules)


@dataclass(frozen=True)
class BlockMovement:
    """Learned scores of blocks of weight matrices and of FFN units (block movement pruning).

    A block's score grows while training moves its weights away from zero, and the blocks with low scores are masked.
    Fractions of the run are fractions of its optimizer steps.

    Attributes:
        attention_block: Shape, (rows, columns), of the blocks of query, key and value; the output projection has it
            transposed. "head" is (head_dim, hidden_size): one score per head and matrix. "unit" gives each head one
            score, shared by its four parts. None scores no attention.
        ffn_block: "unit" gives each FFN unit one score, shared by its row of the first matrix and its column of the
            second. A shape cuts both matrices into blocks, the second into transposed ones. None scores no FFN.
        density: Share of the scored weights that the pruned model keeps, from 0 to 1, met to less than a head and a
            chunk of FFN units; 0.5 when left out. `tuning.counts` makes it a share of something else.
        method: "top_k" keeps exactly the density; "magnitude" does too, by the mean of |W| instead of learned scores;
            "sigmoid_threshold" and "threshold" keep what is above a threshold, so that the penalty alone decides how
            much is kept.
        warmup_ratio: Fraction of the run in which nothing is masked; scores learn already.
        freeze_at: Fraction of the run at which the masks are fixed.
        refill_ratio: Optimizer steps of a second training run over those of the first; 0 trains once. The second is of
            the pruned model: the zeros that blocks left inside it are refilled and it trains on without masks.
        tuning: What few runs need to change.

    Raises:
        InvalidSettingError: A value is out of range, or two contradict each other.

    Source: Lagunas et al. 2021, arXiv 2109.04838.
    """

    attention_block: Block | Literal["head", "unit"] | None = (32, 32)
    ffn_block: Block | Literal["unit"] | None = "unit"
    density: float | None = None
    method: Method = "top_k"
    warmup_ratio: float = 0.1
    freeze_at: float = 0.65
    refill_ratio: float = 0.0
    tuning: MovementTuning = field(default_factory=MovementTuning)

    def __post_init__(self) -> None:
        """Checks every value that does not depend on the model."""
        check(self, {"tuning must be MovementTuning(...)": isinstance(self.tuning, MovementTuning)} | self._own_rules())
        check(self, {**self._budget_rules(), **self._method_rules()})

    def _own_rules(self) -> dict[str, bool]:
        attention, ffn = self.attention_block, self.ffn_block
        return {
            'attention_block must be (rows, columns) >= 1, "head", "unit" or None': attention in ("head", "unit", None)
            or is_block(attention),
            'ffn_block must be (rows, columns) >= 1, "unit" or None': ffn in ("unit", None) or is_block(ffn),
            "attention_block and ffn_block must not both be None": attention is not None or ffn is not None,
            "density must be a number from 0 to 1, or None": self.density is None or is_rising(0, self.density, 1),
            f"method must be one of {get_args(Method)}": self.method in get_args(Method),
            "0 <= warmup_ratio <= freeze_at <= 1 must hold": is_rising(0, self.warmup_ratio, self.freeze_at, 1),
            "refill_ratio must be a number >= 0": is_rising(0, self.refill_ratio),
        }

    def _budget_rules(self) -> dict[str, bool]:
        tuning, counts_chunks = self.tuning, self.ffn_block == "unit" and self.attention_block is None
        kept, counts_scores = tuning.kept, tuning.counts == "scores"
        return {
            "density and tuning.kept must not both be given": self.density is None or kept is None,
            'tuning.kept needs counts="scores" and ranking="global"': kept is None
            or (counts_scores and tuning.ranking == "global"),
            "tuning.kept must be a multiple of width_multiple": kept is None
            or not counts_chunks
            or kept % tuning.width_multiple == 0,
            f"{self.method} keeps what its threshold says, so density and tuning.kept must be left out": self.ranks
            or (self.density is None and kept is None),
            'tuning.ranking="per_matrix" needs counts="scores", since it keeps the same fraction of each': counts_scores
            or tuning.ranking == "global",
        }

    def _method_rules(self) -> dict[str, bool]:
        tuning = self.tuning
        range_ = tuning.threshold
        return {
            'attention_block="unit" needs tuning.score_gradient="unit"': self.attention_block != "unit"
            or tuning.score_gradient == "unit",
            "tuning.threshold of a sigmoid must be from 0 to below 1": range_ is None
            or self.method != "sigmoid_threshold"
            or all(0 <= value < 1 for value in range_),
            f"{self.method} has no threshold, so tuning.threshold and tuning.min_kept must be left out": not self.ranks
            or (range_ is None and tuning.min_kept == 0),
            "magnitude learns no scores, so tuning.penalty must be left out": self.method != "magnitude"
            or tuning.penalty == 0,
            "warmup_ratio <= tuning.ramp_end <= freeze_at must hold": is_rising(
                self.warmup_ratio, self.ramp_end, self.freeze_at
            ),
        }

    def block_of(self, site: Site) -> Block | str | None:
        """Returns what is scored of a site: a shape, "head" or "unit", or None."""
        usual: Block | str | None = self.attention_block if site.is_attention else self.ffn_block
        matching = [shape for pattern, shape in (self.tuning.blocks or {}).items() if fnmatchcase(site.name, pattern)]
        return usual if usual is None or not matching else matching[-1]

    @property
    def ranks(self) -> bool:
        """Whether an exact amount is kept, rather than what a threshold leaves."""
        return self.method not in tuple(THRESHOLDS)

    @property
    def kept(self) -> int | float:
        """What is kept of what `tuning.counts` counts: a whole number of scores, or a fraction."""
        if self.tuning.kept is not None:
            return int(self.tuning.kept)
        return DEFAULT_DENSITY if self.density is None else float(self.density)

    @property
    def ramp_end(self) -> float:
        """Fraction of the run at which the last threshold, or the density, is reached."""
        return self.freeze_at if self.tuning.ramp_end is None else self.tuning.ramp_end

    @property
    def levels(self) -> tuple[float, float]:
        """First and last threshold, or fraction of what is ranked that is kept."""
        if self.ranks:
            return 1.0, float(self.kept)
        return self.tuning.threshold or THRESHOLDS[self.method]

    @property
    def counts_cut(self) -> bool:
        """Whether the density counts what the pruned model keeps, rather than scores."""
        return self.ranks and self.tuning.counts != "scores"

    @property
    def penalty_strengths(self) -> Mapping[str, float]:
        """Factor of the penalty on each kind of scores."""
        return {"attention": self.tuning.attention_penalty, "ffn": self.tuning.ffn_penalty}

    @classmethod
    def hybrid(cls, penalty: float | None = None, *, density: float | None = None, **changes: Any) -> BlockMovement:
        """Returns the paper's hybrid: 32 x 32 blocks of attention, units of the FFN, a sigmoid threshold.

        The default penalties are those of the published BERT-base on SQuAD that is 2.44 times faster (26 % of the
        linear weights are kept); train 20 epochs at batch 16 with learning rate 3e-5 and a teacher. FFN widths are
        rounded to multiples of 32; `width_multiple=1` leaves them as published.

        Args:
            penalty: Decides how much is pruned; published are 5, 20 (the default) and 40.
            density: In place of the penalty, a share of the scored weights that the pruned model keeps, met to less
                than a head: what scores highest is kept, and there is no threshold.
            **changes: Any other setting, of `MovementTuning` too.

        Source: Lagunas et al. 2021, arXiv 2109.04838, and the settings of its published models.
        """
        return cls._paper(penalty, 20.0, density, {"ffn_penalty": 0.25} | changes)

    @classmethod
    def hybrid_filled(
        cls, penalty: float | None = None, *, density: float | None = None, **changes: Any
    ) -> BlockMovement:
        """Returns `hybrid`, followed by a second run of the pruned model whose inner zeros are refilled.

        Source: Lagunas et al. 2021, arXiv 2109.04838, section 4: 20 epochs, then 4 to 10.
        """
        return cls.hybrid(penalty, density=density, **({"refill_ratio": 0.25} | changes))

    @classmethod
    def struct(cls, penalty: float | None = None, *, density: float | None = None, **changes: Any) -> BlockMovement:
        """Returns the paper's structured variant: one score per head and attention matrix, biases kept, not filled.

        Source: Lagunas et al. 2021, arXiv 2109.04838, and the settings of its published model (3.64 times faster).
        """
        defaults = {"attention_block": "head", "mask_bias": False, "attention_penalty": 0.05}
        return cls._paper(penalty, 15.0, density, defaults | changes)

    @classmethod
    def to_speedup(cls, factor: float, **changes: Any) -> BlockMovement:
        """Returns scores of heads and FFN units that are kept down to a share of the MACs.

        Args:
            factor: MACs of all attention and FFN blocks before, over those after; above 1. What a machine makes of it
                is to be measured.
            **changes: Any other setting, of `MovementTuning` too, such as `seq_len`.

        Raises:
            InvalidSettingError: The factor is not above 1, or another budget is passed, too.
        """
        _refuse("a factor", {"density", "kept", "counts"} & set(changes))
        density = density_at(factor, where="BlockMovement.to_speedup")
        return cls._with({"attention_block": "unit", "density": density, "counts": "macs"} | changes)

    @classmethod
    def ffn_units(cls, kept: float, **changes: Any) -> BlockMovement:
        """Returns scores of FFN units alone, with an exact budget.

        Args:
            kept: Units that are kept over the whole model, a multiple of `width_multiple`; or a fraction of all units.
            **changes: Any other setting, of `MovementTuning` too.
        """
        _refuse("ffn_units(kept)", {"density", "kept", "counts"} & set(changes))
        budget = {"kept" if is_whole(kept) else "density": kept}
        if kept is None or not (is_whole(kept, at_least=0) or is_rising(0, kept, 1)):
            raise InvalidSettingError(
                "BlockMovement.ffn_units: kept must be a whole number of units >= 0, or a fraction from 0.0 to 1.0, "
                f"received {shown(kept)}. Pass 0.5 for half of all units."
            )
        return cls._with({"attention_block": None, "counts": "scores"} | budget | changes)

    @classmethod
    def _with(cls, settings: Mapping[str, Any]) -> BlockMovement:
        """Makes settings of those of the class and of its tuning, by name."""
        return cls(**with_tuning(settings, MovementTuning))

    @classmethod
    def _paper(
        cls, penalty: float | None, published: float, density: float | None, changes: Mapping[str, Any]
    ) -> BlockMovement:
        if density is not None:
            _refuse("density", {"kept"} & set(changes))
        if density is not None and (penalty is not None or not (is_above(density, 0) and density <= 1)):
            raise InvalidSettingError(
                "BlockMovement: density is a share above 0.0 and at most 1.0, in place of the penalty; received "
                f"density={shown(density)} and penalty={shown(penalty)}. Leave one of the two out."
            )
        by_threshold = {"method": "sigmoid_threshold", "penalty": published if penalty is None else penalty}
        by_density = {"method": "top_k", "density": density}
        defaults = {
            **(by_threshold if density is None else by_density),
            "score_gradient": "weights",
            "warmup_ratio": _PAPER_OPEN,
            "ramp_end": _PAPER_REACHED,
            "freeze_at": 1.0,
        }
        return cls._with({**defaults, **changes})


def _refuse(target: str, names: set[str]) -> None:
    if names:
        raise InvalidSettingError(
            f"BlockMovement: {target} says how much is kept, and so would {sorted(names)}. Leave one of the two out."
        )


def _is_pattern(blocks: Any) -> bool:
    is_filled = isinstance(blocks, Mapping) and len(blocks) > 0 and all(isinstance(pattern, str) for pattern in blocks)
    return is_filled and all(shape in ("head", "unit", None) or is_block(shape) for shape in blocks.values())


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))  # noqa: PLR2004 - first, last
