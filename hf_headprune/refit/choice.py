"""Chooses which units a model keeps at a budget, by what their removal costs, and what refits the model to them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import budget_groups
from hf_headprune.cost import macs_per_unit, weights_per_unit
from hf_headprune.errors import TrainingStateError
from hf_headprune.refit.moments import record_moments_by_gradient
from hf_headprune.refit.projections import Refit
from hf_headprune.refit.removal_costs import cheapest_first, elimination

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.plan import PruningPlan
    from hf_headprune.refit.removal_costs import Removal
    from hf_headprune.refit.settings import SecondOrder


def choose(
    model: nn.Module,
    settings: SecondOrder,
    before: PruningPlan,
    losses: Iterable[torch.Tensor],
    *,
    share: float = 1.0,
    over_processes: bool = False,
) -> tuple[PruningPlan, Refit]:
    """Returns the plan that meets a share of a budget, and what refits the model to it or to any plan on the way.

    Args:
        model: With exactly the units of `before` open; left unchanged.
        settings: The budget, and what it counts.
        before: Units that are open now.
        losses: Of training examples, summed over each batch; each is computed when it is asked for.
        share: Of what the budget removes, from 0 to 1.
        over_processes: Whether all processes of a distributed run do so, each with losses of its own.

    Raises:
        TrainingStateError: The losses gave no gradient, or one that is not finite.
    """
    anatomy = anatomy_of(model)
    sites = scored_sites(anatomy, settings)
    refit = record_refit(model, sites, before, losses, over_processes=over_processes)
    paths = {site.name: removal_path(site, refit, before, settings) for site in sites}
    removals = _up_to_density if settings.density is not None else _up_to_heads
    return _without(before, removals(paths, anatomy, settings, share)), refit


def plans_at(
    model: nn.Module,
    densities: Sequence[float],
    settings: SecondOrder,
    before: PruningPlan,
    losses: Iterable[torch.Tensor],
    *,
    over_processes: bool = False,
) -> tuple[list[PruningPlan], Refit]:
    """Returns nested plans of one order of removal, at falling densities, and what refits the model to each.

    Args:
        model: With exactly the units of `before` open; left unchanged.
        densities: Shares of what `settings` counts that are kept.
        settings: What is counted; its own budget is not used.
        before: Units that are open now. Densities that it has reached already give no plan.
        losses: See `choose`.
        over_processes: See `choose`.

    Raises:
        TrainingStateError: The losses gave no gradient, or one that is not finite.
    """
    anatomy = anatomy_of(model)
    refit = record_refit(model, scored_sites(anatomy, settings), before, losses, over_processes=over_processes)
    paths = {site.name: removal_path(site, refit, before, settings) for site in scored_sites(anatomy, settings)}
    plans: list[PruningPlan] = []
    for density in sorted(densities, reverse=True):
        plan = _without(before, _up_to_density(paths, anatomy, replace(settings, density=density), 1.0))
        if plan != before and plan not in plans:
            plans.append(plan)
    return plans, refit


def _without(before: PruningPlan, removals: Iterable[Removal]) -> PruningPlan:
    """Returns a plan without the units of some removals."""
    gone: dict[str, set[int]] = {}
    for removal in removals:
        gone.setdefault(removal.site, set()).update(removal.units)
    kept = {site: [unit for unit in before.kept(site) if unit not in units] for site, units in gone.items()}
    heads = {site: units for site, units in kept.items() if site in before.kept_heads}
    return before.replace(kept_heads=heads, kept_ffn={site: kept[site] for site in kept if site not in heads})


def record_refit(
    model: nn.Module,
    sites: Sequence[Site],
    before: PruningPlan,
    losses: Iterable[torch.Tensor],
    *,
    over_processes: bool = False,
) -> Refit:
    """Records moments in evaluation mode, and returns the refit that they give; see `choose`."""
    was_training = model.training
    try:
        recorded = record_moments_by_gradient(model.eval(), sites, losses, over_processes=over_processes)
    finally:
        model.train(was_training)
    return Refit(model, before, recorded)


def scored_sites(anatomy: Anatomy, settings: SecondOrder) -> list[Site]:
    """Returns the sites that a budget may take units from, in the order of the forward pass."""
    return [site for site in anatomy.sites if site.units and (site.is_attention or settings.density is not None)]


def check_budget(settings: SecondOrder, anatomy: Anatomy) -> None:
    """Checks that a model can meet a number of heads.

    Raises:
        InvalidSettingError: It has fewer heads, or lacks a kind of attention that the budget names.
    """
    if settings.kept_heads is not None:
        budget_groups(settings.kept_heads, anatomy)


def removal_path(site: Site, refit: Refit, before: PruningPlan, settings: SecondOrder) -> list[Removal]:
    """Returns the removals of one site, the cheapest first; see `removal_costs.elimination`.

    Raises:
        TrainingStateError: The loss gave no gradient for the site, or one that is not finite.
    """
    block = refit.blocks.get(site.name)
    sensitivity = None if block is None else block.sensitivity
    if block is None or sensitivity is None or not bool(sensitivity.isfinite().all()):
        raise TrainingStateError(
            f"SecondOrder: the loss gives {'no' if sensitivity is None else 'a non-finite'} gradient for "
            f"{site.output}. Check that it comes from the model's forward pass and is finite."
        )
    saved, multiple = saved_per_unit(site, settings), settings.tuning.width_multiple
    return elimination(block, before.kept(site.name), width_multiple=multiple, saved_per_unit=saved)


def saved_per_unit(site: Site, settings: SecondOrder) -> int:
    """Returns what the density counts of one unit."""
    if settings.counts == "macs":
        return macs_per_unit(site, settings.tuning.seq_len, settings.tuning.target_len)
    return weights_per_unit(site) if settings.counts == "parameters" else site.bytes_per_unit


def budget_gap(plan: PruningPlan, settings: SecondOrder, anatomy: Anatomy, share: float = 1.0) -> str | None:
    """Says how far a plan is from what a share of a budget removes; None if it meets it, as `choose` does.

    Args:
        plan: What is kept.
        settings: The budget.
        anatomy: Of the model before anything was removed.
        share: Of what the budget removes, from 0 to 1.
    """
    if settings.density is None:
        return _heads_gap(plan, settings, anatomy, share)
    saved = {site.name: saved_per_unit(site, settings) for site in anatomy.sites}
    total = sum(site.units * saved[site.name] for site in anatomy.sites)
    kept = sum(len(plan.kept(site.name)) * saved[site.name] for site in anatomy.sites)
    aim = 1.0 - share * (1.0 - settings.density)
    multiples = {site.name: 1 if site.is_attention else settings.tuning.width_multiple for site in anatomy.sites}
    largest = max(saved[site.name] * multiples[site.name] for site in scored_sites(anatomy, settings))
    over, rounding = kept - aim * total, 1e-9 * total
    if settings.counts == "bytes" and -largest - rounding <= over <= rounding:  # a file may not be larger
        return None
    if settings.counts != "bytes" and abs(over) <= largest / 2 + rounding:
        return None
    return f"{kept / total:.4f} of the {settings.counts} is kept, where {aim:.4f} was to be"


def _heads_gap(plan: PruningPlan, settings: SecondOrder, anatomy: Anatomy, share: float) -> str | None:
    places = [(site.name, head) for site in anatomy.attention_sites for head in range(site.units)]
    for group in budget_groups(settings.kept_heads or 0, anatomy):
        kept = sum(places[at][1] in plan.kept(places[at][0]) for at in group.positions)
        aim = len(group.positions) - round(share * (len(group.positions) - group.kept))
        if kept != aim:
            return f"{kept} of {len(group.positions)} heads are kept, where {aim} were to be"
    return None


def _up_to_density(
    paths: Mapping[str, Sequence[Removal]], anatomy: Anatomy, settings: SecondOrder, share: float
) -> list[Removal]:
    """Returns the removals that reach a share of what a density removes: to the nearest one, and of bytes at least."""
    total = sum(site.units * saved_per_unit(site, settings) for site in anatomy.sites)
    now = sum(removal.saved for path in paths.values() for removal in path)
    aim = share * (1.0 - (settings.density or 0.0)) * total - (total - now)
    found, saved = [], 0.0
    for removal in cheapest_first(paths.values()):
        if (saved >= aim) if settings.counts == "bytes" else (saved + removal.saved / 2 > aim):
            break
        found.append(removal)
        saved += removal.saved
    return found


def _up_to_heads(
    paths: Mapping[str, Sequence[Removal]], anatomy: Anatomy, settings: SecondOrder, share: float
) -> list[Removal]:
    """Returns the removals that reach a share of what the budgets of heads remove, of each group its cheapest."""
    owners = [site.name for site in anatomy.attention_sites for _ in range(site.units)]
    found: list[Removal] = []
    for group in budget_groups(settings.kept_heads or 0, anatomy):
        names = dict.fromkeys(owners[position] for position in group.positions)
        removals = cheapest_first(paths[name] for name in names)
        already = len(group.positions) - len(removals)
        found += removals[: max(round(share * (len(group.positions) - group.kept)) - already, 0)]
    return found
