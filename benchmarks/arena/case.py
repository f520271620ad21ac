"""What every way of the arena is given, and what several of them need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.finetuned import batches_of, some_of
from hf_headprune import PruningPlan, anatomy_of
from hf_headprune.cost import weights_price

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.tasks import Task
    from hf_headprune.anatomy import Site


@dataclass(frozen=True)
class Case:
    """A dense model, and how much of it is to be kept.

    Attributes:
        model: Fine-tuned, in evaluation mode; a way changes it in place.
        task: Its task; ways look at training examples alone.
        density: Share of the weights of all attention and FFN matrices that is kept.
        seed: Of the choice of examples.
    """

    model: Any
    task: Task
    density: float
    seed: int

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Blocks of the model, in the order of its forward pass."""
        return anatomy_of(self.model).sites

    @cached_property
    def batches(self) -> list[dict[str, Any]]:
        """The labelled training examples that ways may look at: as many for all of them, 32 in a batch."""
        return batches_of(self.model, some_of(self.task.train, self.seed))

    @property
    def budget(self) -> float:
        """Number of weights that may be kept."""
        return self.density * sum(weights_of(site) * site.units for site in self.sites)


def weights_of(site: Site) -> int:
    """Returns the weights of one unit."""
    return weights_price(site).per_unit


def plan_of(model: Any, kept: Mapping[str, Sequence[int]]) -> PruningPlan:
    """Returns the plan that keeps these units of each site."""
    full = PruningPlan.of(model)
    kept = {site: tuple(sorted(int(unit) for unit in units)) for site, units in kept.items()}
    heads = {site: units for site, units in kept.items() if site in full.kept_heads}
    return full.replace(kept_heads=heads, kept_ffn={site: units for site, units in kept.items() if site not in heads})


def best_units(sites: Sequence[Site], scores: Mapping[str, torch.Tensor], budget: float) -> dict[str, list[int]]:
    """Returns the units of highest score per weight that a number of weights pays for.

    Args:
        sites: Of a model.
        scores: Of their units, for each site, divided by the weights of a unit.
        budget: Number of weights.
    """
    ranked = sorted(((float(score), site, unit) for site in sites for unit, score in enumerate(scores[site.name])),
                    key=lambda it: -it[0])  # fmt: skip
    kept: dict[str, list[int]] = {site.name: [] for site in sites}
    for _, site, unit in ranked:
        if weights_of(site) <= budget:
            kept[site.name].append(unit)
            budget -= weights_of(site)
    return kept


def real_tokens(batch: Mapping[str, Any], values: torch.Tensor) -> torch.Tensor:
    """Returns the rows of `(batch, tokens, width)` that are no padding, `(real tokens, width)`."""
    return values[batch["attention_mask"].bool()]


def answers_of(outputs: Any) -> torch.Tensor:
    """Returns the logits of a batch, `(rows, classes)`; of spans, starts above ends, `(2 rows, tokens)`."""
    return outputs.logits if "logits" in outputs else torch.cat([outputs.start_logits, outputs.end_logits])
