"""Chooses which units a model keeps at a budget, by what their removal costs, and what refits the model to them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import budget_groups
from hf_headprune.cost import check_latency_table, latency_of, macs_price, ms_with, weights_price
from hf_headprune.errors import TrainingStateError
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.moments import record_moments_by_gradient
from hf_headprune.refit.projections import Refit
from hf_headprune.refit.removal_costs import cheapest_first, elimination

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from torch import nn

    from hf_headprune.anatomy import Anatomy, Price, Site
    from hf_headprune.refit.removal_costs import Removal
    from hf_headprune.refit.settings import SecondOrder

LATENCY_STEPS = 4000  # into which the ms of a budget are parted
ROUNDING = 1e-6  # of a step


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
    """Checks that a model can meet a budget.

    Raises:
        InvalidSettingError: It has fewer heads, or lacks a kind of attention that the budget names; or the table of
            latencies is of another model.
    """
    if settings.tuning.latency_ms is not None:
        sites = scored_sites(anatomy, settings)
        check_latency_table(settings.tuning.latency_ms, sites, anatomy, where="SecondOrderTuning(latency_ms=...)")
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
    return elimination(
        block,
        before.kept(site.name),
        width_multiple=settings.tuning.width_multiple,
        whole_groups=settings.tuning.whole_groups or settings.kept_heads is not None,
        price=price_of(site, settings),
    )


def price_of(site: Site, settings: SecondOrder) -> Price:
    """Returns what the density counts of units; of latency, which no single unit has, their weights."""
    if settings.counts == "macs":
        return macs_price(site, settings.tuning.seq_len, settings.tuning.target_len)
    return site.bytes if settings.counts == "bytes" else weights_price(site)


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
    aim = 1.0 - share * (1.0 - settings.density)
    if settings.tuning.latency_ms is not None:
        of_whole = latency_of(plan, settings.tuning.latency_ms) / latency_of(
            PruningPlan.full(anatomy), settings.tuning.latency_ms
        )
        return None if of_whole <= aim + 1e-9 else f"{of_whole:.4f} of the ms is kept, where {aim:.4f} was to be"
    prices = [(site, price_of(site, settings)) for site in anatomy.sites]
    total = sum(site.price(price) for site, price in prices)
    kept = sum(site.price(price, plan.kept(site.name)) for site, price in prices)
    largest = max(_largest_step(site, price, settings) for site, price in prices if site.units)
    over, rounding = kept - aim * total, 1e-9 * total
    if settings.counts == "bytes" and -largest - rounding <= over <= rounding:  # a file may not be larger
        return None
    if settings.counts != "bytes" and abs(over) <= largest / 2 + rounding:
        return None
    return f"{kept / total:.4f} of the {settings.counts} is kept, where {aim:.4f} was to be"


def _largest_step(site: Site, price: Price, settings: SecondOrder) -> int:
    """Returns the most that a step of `elimination` saves: a chunk, a head, a group of heads, or a head of each."""
    if not site.is_attention:
        return price.of(settings.tuning.width_multiple, settings.tuning.width_multiple)
    return max(price.of(site.group, 1), price.of(site.groups, 0) if site.group > 1 else 0)


def _heads_gap(plan: PruningPlan, settings: SecondOrder, anatomy: Anatomy, share: float) -> str | None:
    kept_groups = {site.name: site.groups_of(plan.kept(site.name)) for site in anatomy.attention_sites}
    places = [(site.name, group) for site in anatomy.attention_sites for group in range(site.groups)]
    for group in budget_groups(settings.kept_heads or 0, anatomy):
        kept = sum(places[at][1] in kept_groups[places[at][0]] for at in group.positions)
        aim = len(group.positions) - round(share * (len(group.positions) - group.kept))
        if kept != aim:
            return f"{kept} of {len(group.positions)} heads are kept, where {aim} were to be"
    return None


def _up_to_density(
    paths: Mapping[str, Sequence[Removal]], anatomy: Anatomy, settings: SecondOrder, share: float
) -> list[Removal]:
    """Returns the removals that reach a share of what a density removes: to the nearest one, and of bytes at least."""
    if settings.tuning.latency_ms is not None:
        return _up_to_latency(paths, anatomy, settings, share)
    total = sum(site.price(price_of(site, settings)) for site in anatomy.sites)
    now = sum(removal.saved for path in paths.values() for removal in path)
    aim = share * (1.0 - (settings.density or 0.0)) * total - (total - now)
    found, saved = [], 0.0
    for removal in cheapest_first(paths.values()):
        if (saved >= aim) if settings.counts == "bytes" else (saved + removal.saved / 2 > aim):
            break
        found.append(removal)
        saved += removal.saved
    return found


def _up_to_latency(
    paths: Mapping[str, Sequence[Removal]], anatomy: Anatomy, settings: SecondOrder, share: float
) -> list[Removal]:
    """Returns, of all removals that leave a share of the measured ms at most, those that cost least together.

    What the units of a block take together is no sum over units, so no order of single removals is right: dynamic
    programming over the blocks, each with its removals up to some number, in `LATENCY_STEPS` steps of ms, rounded up.
    """
    table = settings.tuning.latency_ms or {}
    allowed = (1.0 - share * (1.0 - (settings.density or 0.0))) * latency_of(PruningPlan.full(anatomy), table)
    least = np.zeros(LATENCY_STEPS + 1)  # cost of the blocks so far that take so many steps at most
    levels: list[np.ndarray] = []  # for each block, the number of its removals in the best choice of so many steps
    for name, path in paths.items():
        costs = np.cumsum([0.0, *(removal.cost for removal in path)])
        widths = [len(removal.units) for removal in path]
        ms = ms_with(sum(widths) - np.cumsum([0, *widths]), table[name]).clip(0.0)
        steps = np.ceil(ms / allowed * LATENCY_STEPS - ROUNDING).astype(int)
        options = np.full((len(steps), LATENCY_STEPS + 1), np.inf)
        for level, taken in enumerate(steps):
            if taken <= LATENCY_STEPS:
                options[level, taken:] = least[: LATENCY_STEPS + 1 - taken] + costs[level]
        levels.append(np.stack([options.argmin(axis=0), steps[options.argmin(axis=0)]]))
        least = options.min(axis=0)
    found: list[Removal] = []
    left = LATENCY_STEPS
    for path, (numbers, taken) in zip([*paths.values()][::-1], levels[::-1], strict=True):
        found += path[: numbers[left]]
        left -= taken[left]
    return found


def _up_to_heads(
    paths: Mapping[str, Sequence[Removal]], anatomy: Anatomy, settings: SecondOrder, share: float
) -> list[Removal]:
    """Returns the removals that reach a share of what the budgets of heads remove, of each group its cheapest."""
    owners = [site.name for site in anatomy.attention_sites for _ in range(site.groups)]
    found: list[Removal] = []
    for group in budget_groups(settings.kept_heads or 0, anatomy):
        names = dict.fromkeys(owners[position] for position in group.positions)
        removals = cheapest_first(paths[name] for name in names)
        already = len(group.positions) - len(removals)
        found += removals[: max(round(share * (len(group.positions) - group.kept)) - already, 0)]
    return found
