"""Whether a model can meet a budget of removal costs, and whether a plan does."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hf_headprune.budgets import budget_groups
from hf_headprune.cost import check_latency_table, latency_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.choice import AT_LEAST, price_of, scored_sites
from hf_headprune.uniform import can_be_said, check_uniform, kept_whole, tied_sites

if TYPE_CHECKING:
    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.refit.settings import SecondOrder

ROUNDING = 1e-9  # of a share


def check_budget(settings: SecondOrder, anatomy: Anatomy) -> None:
    """Checks that a model can meet a budget.

    Raises:
        InvalidSettingError: It has nothing left to remove, or fewer heads, or lacks a kind of attention that the budget
            names; or the table of latencies is of another model; or no uniform plan meets the budget.
    """
    if settings.tuning.uniform:
        check_uniform(anatomy, heads_alone=settings.density is None)
    if settings.density is not None and not any(site.units for site in scored_sites(anatomy, settings)):
        raise InvalidSettingError(
            f"density: the model ({anatomy.model_type}) has no heads and FFN units left, so nothing can be removed. "
            "Prune a model that has some."
        )
    if settings.tuning.latency_ms is not None:
        sites = scored_sites(anatomy, settings)
        check_latency_table(settings.tuning.latency_ms, sites, anatomy, where="SecondOrderTuning(latency_ms=...)")
    if settings.kept_heads is not None:
        budget_groups(settings.kept_heads, anatomy)
    if settings.tuning.uniform:
        _check_uniform_budget(settings, anatomy)


def _check_uniform_budget(settings: SecondOrder, anatomy: Anatomy) -> None:
    """Sees that a plan with equal numbers in all layers, at least one of each, meets a budget."""
    ties = tied_sites(scored_sites(anatomy, settings))
    if settings.density is None:
        layers, site = len(ties[0]), ties[0][0]
        allowed = [layers * groups for groups in range(1, site.groups + 1) if can_be_said(site, groups * site.group)]
        wrong = [group.kept for group in budget_groups(settings.kept_heads or 0, anatomy) if group.kept not in allowed]
        if wrong:
            raise InvalidSettingError(
                f"uniform: {layers} layers with equally many heads, in numbers that a configuration of "
                f"{anatomy.model_type} takes, keep one of {', '.join(map(str, allowed))} heads, received {wrong[0]}."
            )
        return
    multiple = settings.tuning.width_multiple
    least = {
        site.name: range(site.group if site.is_attention else min(multiple, site.units)) for tie in ties for site in tie
    }
    full = PruningPlan.full(anatomy)
    heads_left = {name: units for name, units in least.items() if name in full.num_heads}
    ffn_left = {name: units for name, units in least.items() if name in full.num_ffn}
    smallest = _kept_share(full.replace(kept_heads=heads_left, kept_ffn=ffn_left), settings, anatomy)
    if smallest > settings.density:
        why = kept_whole(anatomy)
        raise InvalidSettingError(
            f"uniform: with equal numbers in all layers this {anatomy.model_type} keeps at least {smallest:.3f} of its "
            f"{settings.counts}{f' ({why})' if why else ''}; {settings.density:.3f} is asked for. Keep more, or leave "
            "uniform out."
        )


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
    kept = _kept_share(plan, settings, anatomy)
    if settings.tuning.latency_ms is not None:
        return None if kept <= aim + ROUNDING else f"{kept:.4f} of the ms is kept, where {aim:.4f} was to be"
    largest, over = _largest_step(settings, anatomy), kept - aim
    least, most = (-largest, 0.0) if settings.counts in AT_LEAST else (-largest / 2, largest / 2)
    if least - ROUNDING <= over <= most + ROUNDING:
        return None
    return f"{kept:.4f} of the {settings.counts} is kept, where {aim:.4f} was to be"


def _heads_gap(plan: PruningPlan, settings: SecondOrder, anatomy: Anatomy, share: float) -> str | None:
    kept_groups = {site.name: site.groups_of(plan.kept(site.name)) for site in anatomy.attention_sites}
    places = [(site.name, group) for site in anatomy.attention_sites for group in range(site.groups)]
    rounding = 0.0
    if settings.tuning.uniform and share < 1:  # between two rounds
        widest = max(_widest_step(site, site.group) // site.group for site in anatomy.attention_sites)
        rounding = widest * len(anatomy.attention_sites) / 2
    for budget in budget_groups(settings.kept_heads or 0, anatomy):
        kept = sum(places[at][1] in kept_groups[places[at][0]] for at in budget.positions)
        aim = len(budget.positions) - round(share * (len(budget.positions) - budget.kept))
        if abs(kept - aim) > rounding:
            return f"{kept} of {len(budget.positions)} heads are kept, where {aim} were to be"
    return None


def _kept_share(plan: PruningPlan, settings: SecondOrder, anatomy: Anatomy) -> float:
    """Returns the share of what a density counts that a plan keeps."""
    table = settings.tuning.latency_ms
    if table is not None:
        return latency_of(plan, table) / latency_of(PruningPlan.full(anatomy), table)
    prices = [(site, price_of(site, settings)) for site in anatomy.sites]
    kept = sum(site.price(price, plan.kept(site.name)) for site, price in prices)
    return kept / sum(site.price(price) for site, price in prices)


def _largest_step(settings: SecondOrder, anatomy: Anatomy) -> float:
    """Returns the largest share of what a density counts that one step removes.

    That is a chunk of FFN units, a head, a group of heads or a head of each group; of a uniform plan, of all layers.
    """
    sites = scored_sites(anatomy, settings)
    total = sum(site.price(price_of(site, settings)) for site in anatomy.sites)
    ties = tied_sites(sites) if settings.tuning.uniform else [(site,) for site in sites]

    def removed(site: Site) -> int:
        price = price_of(site, settings)
        if settings.tuning.uniform:
            units = _widest_step(site, site.group if site.is_attention else settings.tuning.width_multiple)
            return price.of(units, units // site.group)
        if not site.is_attention:
            return price.of(settings.tuning.width_multiple, settings.tuning.width_multiple)
        return max(price.of(site.group, 1), price.of(site.groups, 0) if site.group > 1 else 0)

    return max(sum(map(removed, tie)) for tie in ties) / total


def _widest_step(site: Site, multiple: int) -> int:
    """Returns the largest number of units that one step of a uniform plan removes of a site."""
    said = [units for units in range(site.group, site.units + 1, site.group) if can_be_said(site, units)]
    return max([multiple, *(larger - smaller for smaller, larger in pairwise(said))])
