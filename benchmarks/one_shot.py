"""Post-training pruning by Fisher scores, as a baseline: one look at the gradients, no retraining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_headprune import PruningPlan, anatomy_of
from hf_headprune.cost import weights_price
from hf_headprune.masking import UnitScale, attach

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_headprune.anatomy import Anatomy


def fisher_plan(trainer: Trainer, density: float, *, examples: int) -> PruningPlan:
    """Keeps the heads and FFN units of a fine-tuned model that lose least by their Fisher scores.

    For every number of heads the best ones are kept and the rest of the budget goes to the best FFN units; the number
    with the least sum of removed scores wins. FFN widths are not rounded.

    Args:
        trainer: Of a fine-tuned dense model, with training examples.
        density: Share of the linear weights that stays.
        examples: Of the training set that are looked at.

    Source: Kwon et al. 2022 (arXiv 2204.09656), equations 6 and 7 and algorithm 1, without its rearrangement and its
    tuning of the masks.
    """
    model: Any = trainer.model
    anatomy = anatomy_of(model)
    scores = fisher_scores(trainer, anatomy, examples)
    heads = ranked(anatomy.attention_sites, scores)
    units = ranked(anatomy.ffn_sites, scores)
    head_weights, unit_weights = (
        weights_price(sites[0]).per_unit for sites in (anatomy.attention_sites, anatomy.ffn_sites)
    )
    wanted = density * (len(heads) * head_weights + len(units) * unit_weights)
    best: tuple[float, int, int] = (float("inf"), 0, 0)
    for kept_heads in range(len(heads) + 1):
        kept_units = min(int((wanted - kept_heads * head_weights) // unit_weights), len(units))
        if kept_units >= 0:
            lost = sum(score for score, *_ in heads[kept_heads:]) + sum(score for score, *_ in units[kept_units:])
            best = min(best, (lost, kept_heads, kept_units))
    return PruningPlan.of(model).replace(
        kept_heads=by_site(anatomy.attention_sites, heads[: best[1]]),
        kept_ffn=by_site(anatomy.ffn_sites, units[: best[2]]),
    )


def fisher_scores(trainer: Trainer, anatomy: Anatomy, examples: int) -> dict[str, torch.Tensor]:
    """Returns the sum of each unit's squared gate gradient over single examples, `{site: (units,)}`."""
    model: Any = trainer.model.eval()  # type: ignore[union-attr]
    scales = {
        site.name: UnitScale(site.unit_width, torch.ones(site.units, requires_grad=True)) for site in anatomy.sites
    }
    handles = [attach(model, site, scales[site.name]) for site in anatomy.sites]
    totals = {site.name: torch.zeros(site.units) for site in anatomy.sites}
    dataset: Any = trainer._remove_unused_columns(trainer.train_dataset)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(trainer.args.seed))
    factors = [scale.scale for scale in scales.values()]
    for index in order[:examples].tolist():
        loss = model(**trainer.data_collator([dataset[index]])).loss
        for name, grad in zip(totals, torch.autograd.grad(loss, factors), strict=True):
            totals[name] += grad.square()
    for handle in handles:
        handle.remove()
    return totals


def ranked(sites: Any, scores: dict[str, torch.Tensor]) -> list[tuple[float, str, int]]:
    """Returns score, site and number of all units of some sites, the best first."""
    return sorted(((float(s), site.name, i) for site in sites for i, s in enumerate(scores[site.name])), reverse=True)


def by_site(sites: Any, units: list[tuple[float, str, int]]) -> dict[str, tuple[int, ...]]:
    """Returns the units of each site, in order."""
    return {site.name: tuple(sorted(number for _, name, number in units if name == site.name)) for site in sites}
