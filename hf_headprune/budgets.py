"""Budgets of heads and FFN units that meet one density; pure arithmetic on the anatomy of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_headprune._checks import is_above, is_number, is_rising, is_whole
from hf_headprune.cost import weights_price
from hf_headprune.errors import InvalidSettingError
from hf_headprune.plan import check_plan

if TYPE_CHECKING:
    from hf_headprune.anatomy import Anatomy, Site
    from hf_headprune.plan import PruningPlan

MAX_ATTENTION_SHARE = 0.8
Budget = int | float | Mapping[str, int | float]
ATTENTION_KINDS = ("encoder", "decoder", "cross")


@dataclass(frozen=True)
class Budgets:
    """How many units stay over the whole model.

    Attributes:
        kept_heads: Heads that stay, or groups of query heads where they share keys.
        kept_ffn: FFN units that stay, a multiple of the width multiple.
        density: Share of the linear weights that stays with them.
    """

    kept_heads: int
    kept_ffn: int
    density: float


def density_at(speedup: float, *, where: str) -> float:
    """Returns the share of all multiply-accumulates that stays at a speed-up.

    Raises:
        InvalidSettingError: The factor is no number above 1.
    """
    if not is_above(speedup, 1):
        raise InvalidSettingError(f"{where}: the factor must be a number above 1, received {speedup!r}.")
    return 1.0 / speedup


def linear_density(plan: PruningPlan, anatomy: Anatomy) -> float:
    """Returns the share of the entries of all attention and FFN matrices that a plan keeps; biases aside.

    It is the number that publications on block pruning report.

    Raises:
        InvalidPlanError: The plan was made for another anatomy.
    """
    check_plan(plan, anatomy)
    kept = sum(site.price(weights_price(site), plan.kept(site.name)) for site in anatomy.sites)
    return kept / sum(site.price(weights_price(site)) for site in anatomy.sites)


def budgets(anatomy: Anatomy, density: float, *, width_multiple: int = 32) -> Budgets:
    """Splits a density into a budget of heads and one of FFN units.

    The heads come first, in a whole number: as a share, the square root of the density, as heads are worth more than
    FFN units, but attention gets at most 80 % of what is kept. (The published models of 6 to 45 % density that block
    pruning made keep about that.) The FFN gets the rest, rounded to the nearest multiple: what is reached differs from
    what was asked by about half a multiple of FFN units at most.

    Args:
        anatomy: Of the model.
        density: Share of the entries of all attention and FFN matrices that is to stay, above 0 and up to 1.
        width_multiple: The FFN's budget is a multiple of this.

    Raises:
        InvalidSettingError: The density is out of range, or a width is no multiple of `width_multiple`.
    """
    heads = _units(anatomy.attention_sites)
    ffn = _units(anatomy.ffn_sites)
    total = heads.weights + ffn.weights
    problems = {
        "density must be above 0 and at most 1": 0 < density <= 1,
        f"every FFN must have a multiple of width_multiple={width_multiple} units": width_multiple >= 1
        and all(site.units % width_multiple == 0 for site in anatomy.ffn_sites),
        "the model must have heads and FFN units": heads.number > 0 and ffn.number > 0,
    }
    broken = [rule for rule, holds in problems.items() if not holds]
    if broken:
        raise InvalidSettingError(f"budgets: {'; '.join(broken)}. Received density {density!r}.")
    wanted = density * total
    exact = _head_fraction(wanted, heads, ffn) * heads.number
    # The next number is only better where the FFN, full or empty, can't make up for the rounding.
    choices = math.floor(exact + 0.5), math.ceil(exact), math.floor(exact)
    found = [_with_ffn(kept_heads, wanted, heads, ffn, width_multiple) for kept_heads in choices]
    return min(found, key=lambda choice: abs(choice.density - density))


@dataclass(frozen=True)
class _Units:
    number: int
    weights: int

    @property
    def per_unit(self) -> float:
        return self.weights / self.number


def _head_fraction(wanted: float, heads: _Units, ffn: _Units) -> float:
    total = heads.weights + ffn.weights
    valued = min(math.sqrt(wanted / total), MAX_ATTENTION_SHARE * wanted / heads.weights)
    return max(valued, (wanted - ffn.weights) / heads.weights)  # with a full FFN, heads must carry the rest


def _with_ffn(kept_heads: int, wanted: float, heads: _Units, ffn: _Units, width_multiple: int) -> Budgets:
    chunks = math.floor((wanted - kept_heads * heads.per_unit) / (width_multiple * ffn.per_unit) + 0.5)
    kept_ffn = min(max(chunks * width_multiple, 0), ffn.number)
    reached = kept_heads * heads.per_unit + kept_ffn * ffn.per_unit
    return Budgets(kept_heads, kept_ffn, reached / (heads.weights + ffn.weights))


def _units(sites: tuple[Site, ...]) -> _Units:
    return _Units(
        number=sum(site.groups for site in sites), weights=sum(site.price(weights_price(site)) for site in sites)
    )


@dataclass(frozen=True)
class BudgetGroup:
    """Heads that share one budget: their positions among all heads of the model, and how many of them stay.

    Where query heads share keys and values, what is counted are the groups of them, which stay or go whole.
    """

    positions: tuple[int, ...]
    kept: int


def counted_heads(anatomy: Anatomy) -> str:
    """Returns what a budget of heads counts in a model, in words."""
    return "groups of query heads" if any(site.group > 1 for site in anatomy.attention_sites) else "heads"


def budget_groups(budget: Budget, anatomy: Anatomy) -> tuple[BudgetGroup, ...]:
    """Turns a budget into numbers of heads for one model.

    Raises:
        InvalidSettingError: The model has no heads, or fewer than are asked for, or lacks a kind of attention.
    """
    kinds = [site.kind for site in anatomy.attention_sites for _ in range(site.groups)]
    if not kinds and anatomy.left_out is not None:
        raise InvalidSettingError(
            f"kept_heads: the heads of {anatomy.model_type} can't be pruned, since {anatomy.left_out}. Prune its FFN "
            "units alone, with density=."
        )
    if not kinds:
        raise InvalidSettingError("kept_heads: the model has no heads left. Prune its FFN units alone, with density=.")
    noun = counted_heads(anatomy)
    if not isinstance(budget, Mapping):
        return (BudgetGroup(tuple(range(len(kinds))), _count(budget, len(kinds), "the model", noun)),)
    missing = sorted(set(budget) - set(kinds))
    if missing:
        raise InvalidSettingError(
            f"kept_heads: the model has no {missing} attention, only {sorted(set(kinds))}. "
            "Name only kinds that the model has."
        )
    groups = []
    for kind in dict.fromkeys(kinds):
        positions = tuple(i for i, present in enumerate(kinds) if present == kind)
        wanted = budget.get(kind, len(positions))
        groups.append(BudgetGroup(positions, _count(wanted, len(positions), f"its {kind} attention", noun)))
    return tuple(groups)


def budget_rules(budget: Budget) -> dict[str, bool]:
    """Returns what a budget must obey on any model, and whether it does."""
    by_kind = budget if isinstance(budget, Mapping) else {}
    values = by_kind.values() if by_kind else (budget,)
    return {
        f"kept_heads must name kinds of attention among {ATTENTION_KINDS}": set(by_kind) <= set(ATTENTION_KINDS),
        "kept_heads must be whole numbers >= 0 or fractions from 0.0 to 1.0": all(map(_is_budget, values)),
    }


def _is_budget(value: object) -> bool:
    return is_whole(value, at_least=0) or (is_number(value) and is_rising(0.0, value, 1.0))


def _count(wanted: float, present: int, where: str, noun: str) -> int:
    kept = int(wanted) if is_whole(wanted) else int(wanted * present + 0.5)
    if kept > present:
        raise InvalidSettingError(
            f"kept_heads: {kept} {noun} are to be kept, but {where} has {present}. "
            f"Ask for at most {present}, or for a fraction from 0.0 to 1.0."
        )
    return kept
