"""BlockMovement: the settings of learned block scores, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, get_args

from hf_headprune._checks import is_above, is_number, is_rising, is_whole
from hf_headprune.budgets import density_at
from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from hf_headprune.anatomy import Site

Block = tuple[int, int]
Method = Literal["sigmoid_threshold", "threshold", "top_k", "magnitude"]
KeptOf = Literal["scores", "parameters", "macs"]
Scope = Literal["model", "matrix"]
ScoreGradient = Literal["weights", "unit"]
THRESHOLDS = {"sigmoid_threshold": (0.0, 0.1), "threshold": (-1.0, 0.0)}
_DEFAULT_KEPT = 0.5
# The published runs on SQuAD: 110 660 steps, of which the first 5 400 and the last 54 000 hold the threshold still.
_PAPER_OPEN = 5_400 / 110_660
_PAPER_REACHED = 1.0 - 54_000 / 110_660


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
        blocks: Of some sites other shapes, or None to leave them whole, by patterns of their names such as
            `{"encoder.layer.0.*": None, "*.crossattention": (16, 16)}`; of patterns that match one site the last holds.
            What `attention_block` or `ffn_block` leaves out stays out.
        method: "sigmoid_threshold" and "threshold" keep what is above a threshold, so that the penalty alone decides
            how much stays; "top_k" keeps exactly as much as `kept` says; "magnitude" does too, by the mean of |W|
            instead of learned scores.
        threshold: First and last threshold of the first two methods. None: from 0 to 0.1 of a sigmoid, as published,
            and of the scores themselves, which start at 0 and fall where weights shrink, from -1 to 0.
        kept: What stays at the end of the last two methods: a fraction, or, of "scores", a number.
        counts: What `kept` counts: "scores" (blocks and units), or what the cut model keeps of the scored sites:
            "parameters" (entries of their matrices, biases aside) or "macs" (with the attention products, as
            `hf_headprune.cost` counts them). The cut takes whole heads and FFN units, so with blocks, attention's share
            of these two is spent on the heads whose blocks score best; masked blocks inside them remain as zeros.
        scope: "model" ranks over the whole model; "matrix" keeps the same fraction of each matrix.
        min_kept: Fraction of each score tensor that a threshold leaves in any case, as the paper's code does.
        mask_bias: Whether the bias of an attention row (or of a row of FFN blocks) without a living block is dropped.
        score_gradient: For units. "weights" is the paper's: the sum over both FFN matrices, which leaves closed units
            without gradient. "unit" is the derivative by a factor on what the unit hands to the output projection:
            closed units can return.
        width_multiple: FFN units stay in multiples of this in each layer; a threshold's choice is rounded up. What
            blocks of the FFN leave is rounded where `kept` counts "parameters" or "macs", and else stays as it falls.
        score_learning_rate: Peak learning rate of the scores; it follows the run's own schedule.
        penalty: Last strength of the penalty on the scores.
        attention_penalty: Factor of the penalty on the scores of attention.
        ffn_penalty: Factor of the penalty on the scores of the FFN.
        warmup_ratio: Fraction of the run in which nothing is masked; scores learn already.
        ramp_end: Fraction of the run at which the last threshold, or what `kept` says, is reached.
        freeze_at: Fraction of the run at which the masks are fixed.
        refill_ratio: Optimizer steps of a second training run over those of the first; 0 trains once. The second is of
            the cut model: the zeros that blocks left inside it are refilled and it trains on without masks.
        seq_len: Tokens of a (source) sequence, for "macs".
        target_len: Tokens of the decoder's sequence, for "macs"; equal to `seq_len` when left out.

    Raises:
        InvalidSettingError: A value is out of range, or two contradict each other.

    Source: Lagunas et al. 2021, arXiv 2109.04838.
    """

    attention_block: Block | Literal["head", "unit"] | None = (32, 32)
    ffn_block: Block | Literal["unit"] | None = "unit"
    blocks: Mapping[str, Block | Literal["head", "unit"] | None] | None = field(default=None, hash=False)
    method: Method = "top_k"
    threshold: tuple[float, float] | None = None
    kept: int | float = _DEFAULT_KEPT
    counts: KeptOf = "parameters"
    scope: Scope = "model"
    min_kept: float = 0.0
    mask_bias: bool = True
    score_gradient: ScoreGradient = "unit"
    width_multiple: int = 32
    score_learning_rate: float = 1e-2
    penalty: float = 0.0
    attention_penalty: float = 1.0
    ffn_penalty: float = 1.0
    warmup_ratio: float = 0.1
    ramp_end: float = 0.65
    freeze_at: float = 0.65
    refill_ratio: float = 0.0
    seq_len: int = 128
    target_len: int | None = None

    def __post_init__(self) -> None:
        """Checks every value that does not depend on the model."""
        if isinstance(self.blocks, Mapping):
            object.__setattr__(self, "blocks", dict(self.blocks))
        rules = {**self._choice_rules(), **self._range_rules(), **self._budget_rules()}
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise InvalidSettingError(f"BlockMovement: {'; '.join(broken)}. Received {self!r}.")

    def _choice_rules(self) -> dict[str, bool]:
        attention, ffn = self.attention_block, self.ffn_block
        return {
            'attention_block must be (rows, columns) >= 1, "head", "unit" or None': attention in ("head", "unit", None)
            or _is_block(attention),
            'ffn_block must be (rows, columns) >= 1, "unit" or None': ffn in ("unit", None) or _is_block(ffn),
            "mask_bias must be True or False": isinstance(self.mask_bias, bool),
            'blocks must map patterns of sites to (rows, columns) >= 1, "head", "unit" or None': self.blocks is None
            or (
                isinstance(self.blocks, Mapping)
                and len(self.blocks) > 0
                and all(isinstance(pattern, str) for pattern in self.blocks)
                and all(shape in ("head", "unit", None) or _is_block(shape) for shape in self.blocks.values())
            ),
            "attention_block and ffn_block must not both be None": attention is not None or ffn is not None,
            'attention_block="unit" needs score_gradient="unit"': attention != "unit" or self.score_gradient == "unit",
            **{
                f"{name} must be one of {get_args(options)}": getattr(self, name) in get_args(options)
                for name, options in (
                    ("method", Method),
                    ("counts", KeptOf),
                    ("scope", Scope),
                    ("score_gradient", ScoreGradient),
                )
            },
        }

    def _range_rules(self) -> dict[str, bool]:
        return {
            "threshold must be two numbers, and of a sigmoid from 0 to below 1, or None": self.threshold is None
            or (
                _is_range(self.threshold)
                and (self.method != "sigmoid_threshold" or all(0 <= value < 1 for value in self.threshold))
            ),
            "min_kept must be from 0 to below 1": is_rising(0, self.min_kept) and self.min_kept < 1,
            "width_multiple must be a whole number >= 1": is_whole(self.width_multiple, at_least=1),
            "score_learning_rate must be a number above 0": is_above(self.score_learning_rate, 0),
            "refill_ratio must be a number >= 0": is_rising(0, self.refill_ratio),
            "penalty, attention_penalty and ffn_penalty must be numbers >= 0": all(
                is_rising(0, value) for value in (self.penalty, self.attention_penalty, self.ffn_penalty)
            ),
            "0 <= warmup_ratio <= ramp_end <= freeze_at <= 1 must hold": is_rising(
                0, self.warmup_ratio, self.ramp_end, self.freeze_at, 1
            ),
            "seq_len and target_len must be whole numbers >= 1": is_whole(self.seq_len, at_least=1)
            and (self.target_len is None or is_whole(self.target_len, at_least=1)),
        }

    def _budget_rules(self) -> dict[str, bool]:
        is_count = isinstance(self.kept, int) and not isinstance(self.kept, bool)
        in_chunks = self.ffn_block == "unit" and self.attention_block is None
        return {
            "kept must be a fraction from 0.0 to 1.0, or a whole number >= 0": self.kept >= 0
            if is_count
            else isinstance(self.kept, float) and 0.0 <= self.kept <= 1.0,
            'a whole number in kept needs counts="scores" and scope="model"': not is_count
            or (self.counts == "scores" and self.scope == "model"),
            "kept must be a multiple of width_multiple": not (is_count and in_chunks)
            or (is_whole(self.width_multiple, at_least=1) and self.kept % self.width_multiple == 0),
            f"{self.method} leaves what its threshold says, so kept must be left out": self.ranks
            or self.kept == _DEFAULT_KEPT,
            f"{self.method} has no threshold, so threshold and min_kept must be left out": not self.ranks
            or (self.threshold is None and self.min_kept == 0),
            "magnitude learns no scores, so penalty must be left out": self.method != "magnitude" or self.penalty == 0,
            'scope="matrix" needs counts="scores", since it keeps the same fraction of each': self.scope == "model"
            or self.counts == "scores",
        }

    def block_of(self, site: Site) -> Block | str | None:
        """Returns what is scored of a site: a shape, "head" or "unit", or None."""
        usual: Block | str | None = self.attention_block if site.is_attention else self.ffn_block
        matching = [shape for pattern, shape in (self.blocks or {}).items() if fnmatchcase(site.name, pattern)]
        return usual if usual is None or not matching else matching[-1]

    @property
    def ranks(self) -> bool:
        """Whether an exact amount is kept, rather than what a threshold leaves."""
        return self.method not in tuple(THRESHOLDS)

    @property
    def levels(self) -> tuple[float, float]:
        """First and last threshold, or fraction of what is ranked that stays."""
        if self.ranks:
            return 1.0, float(self.kept)
        return self.threshold or THRESHOLDS[self.method]

    @property
    def counts_cut(self) -> bool:
        """Whether `kept` counts what the cut model keeps, rather than scores."""
        return self.ranks and self.counts != "scores"

    @property
    def penalty_strengths(self) -> Mapping[str, float]:
        """Factor of the penalty on each kind of scores."""
        return {"attention": self.attention_penalty, "ffn": self.ffn_penalty}

    @classmethod
    def hybrid(cls, penalty: float | None = None, *, density: float | None = None, **changes: Any) -> BlockMovement:
        """Returns the paper's hybrid: 32 x 32 blocks of attention, units of the FFN, a sigmoid threshold.

        The default penalties are those of the published BERT-base on SQuAD that is 2.44 times faster (26 % of the
        linear weights stay); train 20 epochs at batch 16 with learning rate 3e-5 and a teacher. FFN widths are rounded
        to multiples of 32; `width_multiple=1` leaves them as published.

        Args:
            penalty: Decides how much goes; published are 5, 20 (the default) and 40.
            density: In place of the penalty, a share of the scored weights that the cut model keeps, met to less than a
                head: what scores highest stays, and the threshold goes.
            **changes: Any other setting.

        Source: Lagunas et al. 2021, arXiv 2109.04838, and the settings of its published models.
        """
        return cls._paper(penalty, 20.0, density, {"ffn_penalty": 0.25} | changes)

    @classmethod
    def hybrid_filled(
        cls, penalty: float | None = None, *, density: float | None = None, **changes: Any
    ) -> BlockMovement:
        """Returns `hybrid`, followed by a second run of the cut model whose inner zeros are refilled.

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
        """Returns scores of heads and FFN units that stay until so many MACs are left.

        Args:
            factor: MACs of all attention and FFN blocks before, over those after; above 1. What a machine makes of it
                is to be measured.
            **changes: Any other setting, such as `seq_len`.

        Raises:
            InvalidSettingError: The factor is not above 1, or `kept` or `counts` is passed, too.
        """
        _refuse("a factor", {"kept", "counts"} & set(changes))
        kept = density_at(factor, where="BlockMovement.to_speedup")
        defaults: dict[str, Any] = {"attention_block": "unit", "kept": kept, "counts": "macs"}
        return cls(**(defaults | changes))

    @classmethod
    def ffn_units(cls, kept: float, **changes: Any) -> BlockMovement:
        """Returns scores of FFN units alone, with an exact budget: the FFN's half of the default hybrid.

        Args:
            kept: Units that stay over the whole model, a multiple of `width_multiple`; or a fraction of all units.
            **changes: Any other setting.
        """
        return cls(**({"attention_block": None, "kept": kept, "counts": "scores"} | changes))

    @classmethod
    def _paper(
        cls, penalty: float | None, published: float, density: float | None, changes: Mapping[str, Any]
    ) -> BlockMovement:
        if density is not None:
            _refuse("density", {"kept"} & set(changes))
        is_share = density is not None and is_above(density, 0) and density <= 1
        if density is not None and (penalty is not None or not is_share):
            raise InvalidSettingError(
                "BlockMovement: density is a share above 0.0 and at most 1.0, in place of the penalty; received "
                f"density={density!r} and penalty={penalty!r}. Leave one of the two out."
            )
        by_threshold = {"method": "sigmoid_threshold", "penalty": published if penalty is None else penalty}
        by_density = {
            "method": "top_k",
            "kept": density if density is None else float(density),
            "counts": "parameters",
        }
        defaults = {
            **(by_threshold if density is None else by_density),
            "score_gradient": "weights",
            "warmup_ratio": _PAPER_OPEN,
            "ramp_end": _PAPER_REACHED,
            "freeze_at": 1.0,
        }
        return cls(**{**defaults, **changes})


def _refuse(target: str, names: set[str]) -> None:
    if names:
        raise InvalidSettingError(
            f"BlockMovement: {target} says what stays, and so would {sorted(names)}. Leave one of the two out."
        )


def _is_block(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_whole(side, at_least=1) for side in value)  # noqa: PLR2004 - rows, columns


def _is_range(value: object) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2  # noqa: PLR2004 - first, last
    return is_pair and all(map(is_number, value))  # type: ignore[call-overload]
