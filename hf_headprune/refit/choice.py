"""Chooses which units a model keeps at a budget, by what their removal costs, and what refits the model to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import budget_groups
from hf_headprune.cost import latency_of, macs_price, ms_with, weights_price
from hf_headprune.errors import TrainingStateError
from hf_headprune.masking import evaluating
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.measured import plan_as_measured
from hf_headprune.refit.moments import record_moments_by_gradient
from hf_headprune.refit.projections import Refit
from hf_headprune.refit.removal_costs import Step, cheapest_first, elimination
from hf_headprune.uniform import stops, tied_sites

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from hf_headprune.anatomy import Anatomy, Price, Site
    from hf_headprune.refit.removal_costs import Removal
    from hf_headprune.refit.settings import SecondOrder

AT_LEAST = ("bytes", "macs")  # that go: the size of a file and a speed-up are kept, not met to the nearest
LATENCY_STEPS = 4000  # into which the ms of a budget are parted
ROUNDING = 1e-6  # of a step


@dataclass(frozen=True)
class Path:
    """What may be removed of the sites that lose equally many units: of one site, unless a plan is uniform.

    Attributes:
        sites: Their names.
        steps: The cheapest first.
        left: Units that each of them has after the last step.
    """

    sites: tuple[str, ...]
    steps: Sequence[Step]
    left: int = 0

    def units(self) -> np.ndarray:
        """Returns how many units each of the sites has after 0, 1, ... steps, `(len(steps) + 1,)`."""
        widths = [sum(len(removal.units) for removal in step.removals) // len(self.sites) for step in self.steps]
        return self.left + sum(widths) - np.cumsum([0, *widths])


def choose(  # noqa: PLR0913 - a budget, what it is met by, and how it is measured
    model: nn.Module,
    settings: SecondOrder,
    before: PruningPlan,
    losses: Iterable[torch.Tensor],
    *,
    share: float = 1.0,
    over_processes: bool = False,
    speed_up_of: Callable[[PruningPlan], float] | None = None,
) -> tuple[PruningPlan, Refit]:
    """Returns the plan that meets a share of a budget, and what refits the model to it or to any plan on the way.

    Args:
        model: With exactly the units of `before` open; left unchanged.
        settings: The budget, and what it counts.
        before: Units that are open now.
        losses: Of training examples, summed over each batch; each is computed when it is asked for.
        share: Of what the budget removes, from 0 to 1.
        over_processes: Whether all processes of a distributed run do so, each with losses of its own.
        speed_up_of: Of "latency": measures a plan; the density is then one over the speed-up of the whole model.

    Raises:
        InvalidSettingError: No plan is measured to be so fast.
        TrainingStateError: The losses gave no gradient, or one that is not finite.
    """
    anatomy = anatomy_of(model)
    sites = scored_sites(anatomy, settings)
    refit = record_refit(model, sites, before, losses, over_processes=over_processes)
    steps = _up_to_density if settings.density is not None else _up_to_heads
    paths = _paths(sites, refit, before, settings)

    def plan_at(density: float | None) -> PruningPlan:
        return _without(before, steps(paths, before, anatomy, replace(settings, density=density), share))

    if speed_up_of is not None and settings.density is not None:
        return plan_as_measured(1.0 / settings.density, plan_at, speed_up_of), refit
    return plan_at(settings.density), refit


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
    sites = scored_sites(anatomy, settings)
    refit = record_refit(model, sites, before, losses, over_processes=over_processes)
    paths = _paths(sites, refit, before, settings)
    plans: list[PruningPlan] = []
    for density in sorted(densities, reverse=True):
        plan = _without(before, _up_to_density(paths, before, anatomy, replace(settings, density=density), 1.0))
        if plan != before and plan not in plans:
            plans.append(plan)
    return plans, refit


def _paths(sites: Sequence[Site], refit: Refit, before: PruningPlan, settings: SecondOrder) -> list[Path]:
    """Returns what may be removed; of sites of a uniform plan together, down to numbers that can be said."""
    removals = {site.name: removal_path(site, refit, before, settings) for site in sites}
    if not settings.tuning.uniform:
        return [Path((name,), [Step((removal,)) for removal in path]) for name, path in removals.items()]
    found = []
    for tie in tied_sites(sites):
        rows = [*zip(*(removals[site.name] for site in tie), strict=True)]  # what leaves at the same time
        ends = stops(tie[0], [len(row[0].units) for row in rows])
        steps = [Step(tuple(chain(*rows[first:end]))) for first, end in pairwise([0, *ends])]
        left = sum(len(row[0].units) for row in rows[ends[-1] if ends else 0 :])
        found.append(Path(tuple(site.name for site in tie), steps, left))
    return found


def _without(before: PruningPlan, steps: Iterable[Step]) -> PruningPlan:
    """Returns a plan without the units of some steps."""
    gone: dict[str, set[int]] = {}
    for removal in (removal for step in steps for removal in step.removals):
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
    with evaluating(model):
        recorded = record_moments_by_gradient(model, sites, losses, over_processes=over_processes)
    return Refit(model, before, recorded)


def scored_sites(anatomy: Anatomy, settings: SecondOrder) -> list[Site]:
    """Returns the sites that a budget may take units from, in the order of the forward pass."""
    sites = [site for site in anatomy.sites if site.units and (site.is_attention or settings.density is not None)]
    return [site for site in sites if site.block.said] if settings.tuning.uniform else sites


def removal_path(site: Site, refit: Refit, before: PruningPlan, settings: SecondOrder) -> list[Removal]:
    """Returns the removals of one site, the cheapest first; see `removal_costs.elimination`.

    Raises:
        TrainingStateError: The loss gave no gradient for the site, or one that is not finite.
    """
    block = refit.blocks.get(site.name)
    sensitivity = None if block is None else block.sensitivity
    if block is None or sensitivity is None or not bool(sensitivity.isfinite().all()):
        raise no_gradient(site, "no" if sensitivity is None else "a non-finite")
    tuning = settings.tuning
    return elimination(
        block,
        before.kept(site.name),
        width_multiple=tuning.width_multiple,
        whole_groups=tuning.whole_groups or tuning.uniform or settings.kept_heads is not None,
        price=price_of(site, settings),
    )


def no_gradient(site: Site, what: str = "no") -> TrainingStateError:
    """Returns the error where the loss gives no gradient for a site, or one that is no number."""
    return TrainingStateError(
        f"SecondOrder: the loss gives {what} gradient for {site.output}. Check that it comes from the model's forward "
        "pass and is finite."
    )


def price_of(site: Site, settings: SecondOrder) -> Price:
    """Returns what the density counts of units; of latency, which no single unit has, their weights."""
    if settings.counts == "macs":
        return macs_price(site, settings.tuning.seq_len, settings.tuning.target_len)
    return site.bytes if settings.counts == "bytes" else weights_price(site)


def _up_to_density(
    paths: Sequence[Path], before: PruningPlan, anatomy: Anatomy, settings: SecondOrder, share: float
) -> list[Step]:
    """Returns the steps that reach a share of what a density removes: to the nearest, of bytes and MACs at least."""
    if settings.tuning.latency_ms is not None:
        return _up_to_latency(paths, anatomy, settings, share)
    prices = [(site, price_of(site, settings)) for site in anatomy.sites]
    total = sum(site.price(price) for site, price in prices)
    now = sum(site.price(price, before.kept(site.name)) for site, price in prices)
    aim = share * (1.0 - (settings.density or 0.0)) * total - (total - now)
    found: list[Step] = []
    saved = 0.0
    for step in cheapest_first([path.steps for path in paths]):
        if (saved >= aim) if settings.counts in AT_LEAST else (saved + step.saved / 2 > aim):
            break
        found.append(step)
        saved += step.saved
    return found


def _up_to_latency(paths: Sequence[Path], anatomy: Anatomy, settings: SecondOrder, share: float) -> list[Step]:
    """Returns, of all steps that leave a share of the measured ms at most, those that cost least together.

    What the units of a block take together is no sum over units, so no order of single removals is right: dynamic
    programming over the blocks, each with its removals up to some number, in `LATENCY_STEPS` steps of ms, rounded up.
    Where no choice is so fast, all steps are returned.
    """
    table, full = settings.tuning.latency_ms or {}, PruningPlan.full(anatomy)
    kept_whole = table.keys() - {name for path in paths for name in path.sites}
    allowed = (1.0 - share * (1.0 - (settings.density or 0.0))) * latency_of(full, table)
    allowed -= sum(float(ms_with(len(full.kept(name)), table[name])) for name in kept_whole)
    everything = [step for path in paths for step in path.steps]
    if allowed <= 0:
        return everything
    least = np.zeros(LATENCY_STEPS + 1)  # cost of the blocks so far that take so many steps at most
    levels: list[np.ndarray] = []  # for each block, the number of its removals in the best choice of so many steps
    for path in paths:
        costs = np.cumsum([0.0, *(step.cost for step in path.steps)])
        ms = sum(ms_with(path.units(), table[name]).clip(0.0) for name in path.sites)
        steps = np.ceil(ms / allowed * LATENCY_STEPS - ROUNDING).astype(int)
        options = np.full((len(steps), LATENCY_STEPS + 1), np.inf)
        for level, taken in enumerate(steps):
            if taken <= LATENCY_STEPS:
                options[level, taken:] = least[: LATENCY_STEPS + 1 - taken] + costs[level]
        levels.append(np.stack([options.argmin(axis=0), steps[options.argmin(axis=0)]]))
        least = options.min(axis=0)
    if np.isinf(least[-1]):
        return everything
    found: list[Step] = []
    left = LATENCY_STEPS
    for path, (numbers, taken) in zip(paths[::-1], levels[::-1], strict=True):
        found += path.steps[: numbers[left]]
        left -= taken[left]
    return found


def _up_to_heads(
    paths: Sequence[Path], before: PruningPlan, anatomy: Anatomy, settings: SecondOrder, share: float
) -> list[Step]:
    """Returns the steps that reach a share of what the budgets of heads remove, of each budget its cheapest."""
    sites = {site.name: site for site in anatomy.attention_sites}
    owners = [name for name, site in sites.items() for _ in range(site.groups)]
    found: list[Step] = []
    for budget in budget_groups(settings.kept_heads or 0, anatomy):
        names = {owners[position] for position in budget.positions}
        gone = len(budget.positions) - sum(len(sites[name].groups_of(before.kept(name))) for name in names)
        due = round(share * (len(budget.positions) - budget.kept))
        for step in cheapest_first([path.steps for path in paths if names.issuperset(path.sites)]):
            groups = sum(len(sites[removal.site].groups_of(removal.units)) for removal in step.removals)
            if gone + groups / 2 > due:
                break
            found.append(step)
            gone += groups
    return found
