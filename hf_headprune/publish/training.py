"""Curves of a training: loss, metrics and what is kept over its steps, from what the Trainer has logged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune._checks import is_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hf_headprune.plan import PruningPlan

LOSS, METRIC, KEPT = "loss", "metric", "kept"
EVALUATION, OURS = "eval_", "headprune/"
MOST_POINTS = 400  # of a curve; a picture shows no more
_UNITS = ("hard_heads/", "kept_units/")  # units that are kept at a site, in the log
_TIMES = ("runtime", "per_second", "epoch", "model_preparation_time")  # ends of what evaluation logs of itself


@dataclass(frozen=True)
class Curve:
    """A number over the optimizer steps of a training.

    Attributes:
        name: In words, such as "loss on evaluation" or "heads kept".
        kind: "loss", "metric" or "kept"; what is kept is a share of all.
        steps: Ascending.
        values: As many, finite.
    """

    name: str
    kind: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Curve:
        """Returns what `dataclasses.asdict` made plain.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is unknown or malformed.
        """
        return cls(**{**content, "steps": tuple(content["steps"]), "values": tuple(content["values"])})


def curves_of(history: Iterable[Mapping[str, Any]], plan: PruningPlan) -> tuple[Curve, ...]:
    """Reads the curves of a training: losses first, then metrics of evaluation, then what is kept.

    Args:
        history: `trainer.state.log_history`.
        plan: Of the model, which says how many units its sites have.
    """
    points: dict[tuple[str, str], dict[int, float]] = {}
    for entry in history:
        for kind, name, value in _values_of(entry, plan):
            if math.isfinite(value):
                points.setdefault((kind, name), {})[int(entry.get("step", 0))] = float(value)
    found = [_curve(kind, name, values) for (kind, name), values in points.items()]
    return tuple(sorted(found, key=lambda curve: (LOSS, METRIC, KEPT).index(curve.kind)))


def _curve(kind: str, name: str, values: Mapping[int, float]) -> Curve:
    steps = sorted(values)
    every = -(-len(steps) // MOST_POINTS)
    steps = steps[::-1][::every][::-1]  # the last one is kept
    return Curve(name, kind, tuple(steps), tuple(values[step] for step in steps))


def _values_of(entry: Mapping[str, Any], plan: PruningPlan) -> Iterator[tuple[str, str, float]]:
    """Yields kind, name and value of each number in an entry of the log that belongs to a curve."""
    numbers = {key: value for key, value in entry.items() if is_number(value)}
    if "loss" in numbers:
        yield LOSS, "training loss", numbers["loss"]
    for key, value in numbers.items():
        name = key.removeprefix(EVALUATION)
        if name == key or name.endswith(_TIMES):
            continue
        if name.endswith("loss"):
            yield LOSS, f"{name} on evaluation", value
        else:
            yield METRIC, name, value
    yield from _kept(numbers, plan)


def _kept(numbers: Mapping[str, float], plan: PruningPlan) -> Iterator[tuple[str, str, float]]:
    if f"{OURS}density" in numbers:
        yield KEPT, "blocks kept", numbers[f"{OURS}density"]
    for name, sizes in (("heads kept", plan.num_heads), ("FFN units kept", plan.num_ffn)):
        known = {
            site: numbers[f"{OURS}{key}{site}"] for key in _UNITS for site in sizes if f"{OURS}{key}{site}" in numbers
        }
        total = sum(sizes[site] for site in known)
        if total:
            yield KEPT, name, sum(known.values()) / total
