"""The user's settings of the search, checked at construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, get_args

from hf_headprune._checks import is_number, is_whole
from hf_headprune.errors import InvalidSettingError

Objective = Literal["heads", "parameters", "macs", "latency"]
UnitKind = Literal["heads", "ffn", "layers"]
UNIT_KINDS: tuple[tuple[UnitKind, ...], ...] = (
    ("heads",),
    ("ffn",),
    ("heads", "ffn"),
    ("heads", "ffn", "layers"),
    ("layers",),
)
REPORT: Literal["report"] = "report"
CHUNK_STEP = 32  # widths that the matrix products of common hardware like


@dataclass(frozen=True)
class AStarSearch:
    """Settings of the search for the largest set of units whose removal costs at most `max_drop` of a metric.

    Attributes:
        max_drop: Largest loss of the metric that is allowed, absolute: 0.01 is one point of accuracy.
        objective: What to remove most of: "heads", "parameters", "macs" or "latency".
        units: What may be removed: "heads", "ffn" (chunks of FFN units), "layers" (whole ones; beside heads and chunks
            as one step that removes all of a layer's).
        ffn_chunk: FFN units per chunk, a multiple of 32. Chunks are formed in the order of importance.
        seq_len: For the objective "macs": tokens of a (source) sequence, by which heads compare with FFN units.
        target_len: For the objective "macs": tokens of the decoder's sequence; equal to `seq_len` when left out.
        latency_ms: For the objective "latency": for each searched site the ms measured with so many of its heads or FFN
            units kept, `{site: {kept: ms}}`, as `hf_headprune.measure_latency_table` returns it and JSON keeps it.
            Between the numbers measured the ms are interpolated. A search goes on from its journal with the same table
            only.
        metric: Name of the metric; None takes the first of the task: "accuracy" of classes or of tokens, "f1" of spans,
            "likelihood" of references. In the callback any name that an evaluation returns, "loss" among them.
        greater_is_better: For `HeadPruneCallback`, whether a metric of the Trainer's is better when it is higher. None
            asks `TrainingArguments.greater_is_better` where the metric is `metric_for_best_model`, takes names that end
            in "loss" for errors, refuses other names of errors ("mse", "perplexity", "wer"), and takes the rest for
            scores.
        max_evaluations: Sets that may be evaluated, the reference included. None goes on until the optimum is proved,
            which is possible for few units only.
        weights: Falling weights w of the anytime search. A large one dives, 1 makes the estimate admissible.
        children_per_step: Sets evaluated each time a set is expanded, the most promising ones first.
        random_children: Sets evaluated beside those at random: they audit the order.
        slack: How far below the constraint a set may be and still be expanded. Removing a unit from a set that misses
            the constraint can meet it again, so a little slack finds more.
        seed: Of all random choices.
        max_open: Sets that wait for expansion, of those that meet the constraint and of those that miss it within the
            slack each; the least promising are dropped where they become twice as many. It bounds the search's own
            memory: a waiting set holds 4 bytes per example, any other evaluated set none.
        cache_mib: Memory for hidden states that plans share, in MiB. The result does not depend on it.
        half_precision: Whether a copy of the model in bf16 may answer where its rounding can't decide: near ties, the
            model answers in its own precision. None leaves it to the hardware and to the size of the model.
        refit: Whether the output projections of attention are refitted to the heads that stay, by least squares
            on the inputs that the search evaluates, without training; see `hf_headprune.refit`. The model must
            then be cut with `PlanSearchResult.refit`, too. None: `HeadPruneCallback` does all that, and
            `search_plan` does not.
        confidence: For `HeadPruneCallback`, about the drop on unseen data. Half of `eval_dataset` is held
            back from the search for it, unless there is a `certification_dataset`. A level, such as 0.95: only what is
            certified at it to lose less than `max_drop` is cut. "report": the last plan on the way to what the search
            found is cut that loses no more than `max_drop` on those examples, and the certificate says what they show
            about it, at 95 %, whether it is `max_drop` or not. None holds nothing back and certifies nothing: what the
            search found is cut.

    Raises:
        InvalidSettingError: A setting is out of range.

    Source:
        Weighted anytime search in the manner of ARA* (Likhachev, Gordon and Thrun, NIPS 2003). Parnami, Singh and
        Joshi (arXiv 2110.15225) were the first to prune attention heads with A*.
    """

    max_drop: float = 0.01
    objective: Objective = "heads"
    metric: str | None = None
    greater_is_better: bool | None = None
    max_evaluations: int | None = 150
    weights: tuple[float, ...] = (3.0, 2.0, 1.5, 1.0)
    children_per_step: int = 6
    random_children: int = 1
    slack: float = 0.01
    seed: int = 0
    max_open: int = 1000
    units: tuple[UnitKind, ...] = ("heads",)
    ffn_chunk: int = 128
    seq_len: int = 128
    target_len: int | None = None
    latency_ms: Mapping[str, Mapping[int, float]] | None = field(default=None, hash=False)
    cache_mib: float = 1024
    half_precision: bool | None = None
    refit: bool | None = None
    confidence: float | Literal["report"] | None = REPORT

    def __post_init__(self) -> None:
        """Checks every setting."""
        if _is_table(self.latency_ms):
            table = {
                site: {int(kept): float(ms) for kept, ms in sorted(measured.items(), key=lambda entry: int(entry[0]))}
                for site, measured in self.latency_ms.items()
            }
            object.__setattr__(self, "latency_ms", table)
        for name, (holds, rule) in self._rules().items():
            if not holds:
                raise InvalidSettingError(
                    f"AStarSearch: {name} must be {rule}, received {getattr(self, name)!r}. Change {name}, or leave it "
                    f"out for its default {type(self).__dataclass_fields__[name].default!r}."
                )

    def _rules(self) -> dict[str, tuple[bool, str]]:
        """Returns for each setting whether its rule holds, and the rule in words."""
        drop_rule = "a finite number of at least 0 (absolute: 0.01 is one point of accuracy)"
        weights = self.weights
        falling = isinstance(weights, tuple) and len(weights) > 0 and all(map(is_number, weights))
        falling = falling and weights[-1] == 1 and list(weights) == sorted(weights, reverse=True)
        rules = {
            "max_drop": (is_number(self.max_drop) and self.max_drop >= 0, drop_rule),
            "objective": (self.objective in get_args(Objective), f"one of {', '.join(get_args(Objective))}"),
            "metric": (self.metric is None or isinstance(self.metric, str), "a name, or None"),
            "max_evaluations": (
                self.max_evaluations is None or is_whole(self.max_evaluations, at_least=1),
                "an integer of at least 1 (the first evaluation is that of the reference), or None",
            ),
            "weights": (falling, "a tuple of falling numbers that ends with 1.0, which makes the estimate admissible"),
            "slack": (is_number(self.slack) and self.slack >= 0, drop_rule),
        }
        countable = self.objective != "heads" or self.units == ("heads",)
        needs_table, counts_macs = self.objective == "latency", self.objective == "macs"
        defaults = type(self).__dataclass_fields__
        rules |= {
            "units": (
                self.units in UNIT_KINDS and countable,
                f"one of {', '.join(map(str, UNIT_KINDS))}, and with the objective 'heads' the first one",
            ),
            "ffn_chunk": (
                is_whole(self.ffn_chunk, at_least=1) and self.ffn_chunk % CHUNK_STEP == 0,
                f"a positive multiple of {CHUNK_STEP}",
            ),
            "seq_len": (
                is_whole(self.seq_len, at_least=1) and (counts_macs or self.seq_len == defaults["seq_len"].default),
                f"an integer of at least 1, and {defaults['seq_len'].default} with any other objective than 'macs'",
            ),
            "target_len": (
                self.target_len is None or (counts_macs and is_whole(self.target_len, at_least=1)),
                "None, or with the objective 'macs' an integer of at least 1",
            ),
            "latency_ms": (
                _is_table(self.latency_ms) if needs_table else self.latency_ms is None,
                "{site: {kept: ms}} with finite ms, as measure_latency_table returns it, with the objective 'latency' "
                "and no other",
            ),
            "confidence": (
                self.confidence in (None, REPORT)
                or (is_number(self.confidence) and 0.5 < self.confidence < 1 and self.max_drop > 0),  # noqa: PLR2004
                "'report', None, or above 0.5 and below 1 with a max_drop above 0",
            ),
            "greater_is_better": (self.greater_is_better in (None, True, False), "True, False, or None"),
            "refit": (self.refit in (None, True, False), "True, False, or None"),
            "half_precision": (self.half_precision in (None, True, False), "True, False, or None"),
            "cache_mib": (is_number(self.cache_mib) and self.cache_mib >= 0, "a finite number of at least 0"),
        }
        for name, least in (("children_per_step", 1), ("random_children", 0), ("seed", 0), ("max_open", 1)):
            holds = is_whole(getattr(self, name), at_least=least)
            rules[name] = (holds, f"an integer of at least {least}")
        return rules


def _is_table(table: Any) -> TypeGuard[Mapping[str, Mapping[int, float]]]:
    return isinstance(table, Mapping) and all(
        isinstance(measured, Mapping)
        and all((_is_decimal(kept) or is_whole(kept, at_least=0)) and is_number(ms) for kept, ms in measured.items())
        for measured in table.values()
    )


def _is_decimal(key: Any) -> bool:
    """Tells whether a key is a whole number as JSON writes it."""
    return isinstance(key, str) and key.isascii() and key.isdecimal()
