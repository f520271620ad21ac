"""The user's settings of the search, checked at construction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_headprune._checks import check, is_above, is_number, is_rising, is_whole
from hf_headprune.cost import LATENCY_TABLE_RULE, LatencyTable, latency_table

Objective = Literal["heads", "parameters", "macs", "latency"]
UnitKind = Literal["heads", "ffn", "layers"]
UNIT_KINDS: tuple[tuple[UnitKind, ...], ...] = (
    ("heads",),
    ("ffn",),
    ("heads", "ffn"),
    ("heads", "ffn", "layers"),
    ("layers",),
)
CHUNK_STEP = 32  # widths that the matrix products of common hardware like
SEQ_LEN = 128
_DROP_RULE = "a number of at least 0 (absolute: 0.01 is one percentage point of accuracy)"


@dataclass(frozen=True)
class SearchTuning:
    """Settings of the search that are best left alone, unless you measure what they change.

    Attributes:
        ffn_chunk: FFN units per chunk, a multiple of 32; those that cost least to remove together form a chunk.
        constraint_slack: How far below the constraint a set may be and still be expanded. Removing a unit from a set
            that misses the constraint can meet it again, so a little slack finds more.
        heuristic_weights: Falling weights w of the anytime search. A large one dives, 1 makes the estimate admissible.
        max_open: Sets that wait for expansion, of those that meet the constraint and of those that miss it within the
            slack each; the least promising are dropped where they become twice as many. It bounds the search's own
            memory: a waiting set holds 4 bytes per example, any other evaluated set none.
        seq_len: For the objective "macs": tokens of a (source) sequence, by which heads compare with FFN units.
        target_len: For the objective "macs": tokens of the decoder's sequence; equal to `seq_len` when left out.
        latency_ms: For the objective "latency": for each searched site the ms with each number of its heads or FFN
            units kept, `{site: {kept: ms}}`, as `hf_headprune.measure_latency_table` returns it and JSON keeps it.
            Between the numbers measured the ms are interpolated. A search continues from its journal with the same
            table only.
        refit: Whether output projections are refitted to the units that are kept, by least squares, without training;
            see `hf_headprune.refit`.
        greater_is_better: For `HeadPruneCallback`, whether a metric of the Trainer's is better when it is higher. None
            asks `TrainingArguments.greater_is_better` where the metric is `metric_for_best_model`, takes names that end
            in "loss" for errors, refuses other names of errors ("mse", "perplexity", "wer"), and takes the rest for
            scores.

    Raises:
        InvalidSettingError: A setting is out of range.
    """

    ffn_chunk: int = 128
    constraint_slack: float = 0.01
    heuristic_weights: tuple[float, ...] = (3.0, 2.0, 1.5, 1.0)
    max_open: int = 1000
    seq_len: int = SEQ_LEN
    target_len: int | None = None
    latency_ms: LatencyTable | None = field(default=None, hash=False)
    refit: bool = True
    greater_is_better: bool | None = None

    def __post_init__(self) -> None:
        """Checks every setting."""
        table = latency_table(self.latency_ms)
        if table is not None:
            object.__setattr__(self, "latency_ms", table)
        weights = self.heuristic_weights
        falling = isinstance(weights, tuple) and len(weights) > 0 and all(map(is_number, weights))
        falling = falling and weights[-1] == 1 and list(weights) == sorted(weights, reverse=True)
        rules = {
            f"ffn_chunk must be a positive multiple of {CHUNK_STEP}": is_whole(self.ffn_chunk, at_least=1)
            and self.ffn_chunk % CHUNK_STEP == 0,
            f"constraint_slack must be {_DROP_RULE}": is_rising(0, self.constraint_slack),
            "heuristic_weights must be a tuple of falling numbers that ends with 1.0": falling,
            "target_len must be an integer of at least 1, or None": self.target_len is None
            or is_whole(self.target_len, at_least=1),
            f"latency_ms must be {LATENCY_TABLE_RULE}": self.latency_ms is None or table is not None,
            "refit must be True or False": self.refit in (True, False),
            "greater_is_better must be True, False, or None": self.greater_is_better in (True, False, None),
        }
        for name, least in (("max_open", 1), ("seq_len", 1)):
            rules[f"{name} must be an integer of at least {least}"] = is_whole(getattr(self, name), at_least=least)
        check(self, rules)


@dataclass(frozen=True)
class AStarSearch:
    """Settings of the search for the smallest model whose metric drops by at most `max_drop`.

    Attributes:
        max_drop: Largest drop of the metric that is allowed, absolute: 0.01 is one percentage point of accuracy.
        objective: What to remove most of: "heads", "parameters", "macs" or "latency".
        units: What may be removed: "heads" (where they share keys and values, a group of them, or one of each group),
            "ffn" (chunks of FFN units), "layers" (whole ones; beside heads and chunks as one step that removes all of a
            layer's).
        metric: Name of the metric; None takes the first of the task: "accuracy" of classes or of tokens, "jaccard" of
            several labels, "f1" of spans, "likelihood" of references. In the callback any name that an evaluation
            returns, "loss" among them.
        max_evaluations: Sets that may be evaluated, the reference included. None goes on until the optimum is proved,
            which is possible for few units only.
        max_seconds: Wall time after which no further set is evaluated; a search that continues from its journal counts
            its own time. None for no limit.
        seed: Of all random choices.
        tuning: All other settings.

    Raises:
        InvalidSettingError: A setting is out of range.

    Source:
        Weighted anytime search in the manner of ARA* (Likhachev, Gordon and Thrun, NIPS 2003). Parnami, Singh and
        Joshi (arXiv 2110.15225) were the first to prune attention heads with A*.
    """

    max_drop: float = 0.01
    objective: Objective = "parameters"
    units: tuple[UnitKind, ...] = ("heads", "ffn")
    metric: str | None = None
    max_evaluations: int | None = 150
    max_seconds: float | None = None
    seed: int = 0
    tuning: SearchTuning = SearchTuning()

    def __post_init__(self) -> None:
        """Checks every setting."""
        tuning = self.tuning
        check(self, {"tuning must be SearchTuning(...)": isinstance(tuning, SearchTuning)})
        counts_macs, needs_table = self.objective == "macs", self.objective == "latency"
        rules = {
            f"max_drop must be {_DROP_RULE}": is_rising(0, self.max_drop),
            f"objective must be one of {', '.join(get_args(Objective))}": self.objective in get_args(Objective),
            f"units must be one of {', '.join(map(str, UNIT_KINDS))}, and the first one if objective is 'heads'": (
                self.units in UNIT_KINDS and (self.objective != "heads" or self.units == ("heads",))
            ),
            "metric must be a name, or None": self.metric is None or isinstance(self.metric, str),
            "max_evaluations must be an integer of at least 1 (the first is that of the reference), or None": (
                self.max_evaluations is None or is_whole(self.max_evaluations, at_least=1)
            ),
            "max_seconds must be a number above 0, or None": self.max_seconds is None or is_above(self.max_seconds, 0),
            "seed must be an integer of at least 0": is_whole(self.seed, at_least=0),
            "tuning.seq_len and tuning.target_len are for the objective 'macs'": counts_macs
            or (tuning.seq_len, tuning.target_len) == (SEQ_LEN, None),
            "tuning.latency_ms is for the objective 'latency', which needs it": needs_table
            == (tuning.latency_ms is not None),
        }
        check(self, rules)
