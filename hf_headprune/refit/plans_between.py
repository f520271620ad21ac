"""Plans on the way from one plan to another: candidates for pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_headprune._checks import is_number, is_whole
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, shown
from hf_headprune.plan import PruningPlan
from hf_headprune.refit.projections import Refit
from hf_headprune.refit.removal_costs import removals_between

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from hf_headprune.anatomy import Site

Units = Mapping[str, set[int]]  # that leave together, by site


def plans_between(
    start: PruningPlan,
    end: PruningPlan,
    refit: Refit | None = None,
    scores: Sequence[float] | np.ndarray | None = None,
    *,
    width_multiple: int = 32,
) -> list[PruningPlan]:
    """Returns plans from the least pruned to `end`: each removes one head or chunk of an FFN more.

    What costs least leaves first, where projections are refitted; else the least important heads, of grouped ones all
    that `end` removes of a layer, and then all that `end` removes of each FFN. What `start` has removed and `end` keeps
    is there in all of them. No example is looked at, so that `certify_path` may test them, or `evenly_spaced` ones of
    them, in this order.

    Args:
        start: What is there at first, such as `PruningPlan.of(model)`.
        end: What is kept at last, such as the plan of `plan_for_budget` or `search_plan`.
        refit: What the same call returned beside the plan, or None.
        scores: Importance of the heads, `(num_heads,)`, in the order of the sites; None takes them in that order.
        width_multiple: FFN units leave in such numbers, where projections are refitted.

    Raises:
        InvalidPlanError: The plans are of different models, or the refit is of another one.
        InvalidSettingError: An argument is of another type, or there are more or fewer scores than heads.
    """
    _check(start, end, refit, scores)
    if not is_whole(width_multiple, at_least=1):
        raise InvalidSettingError(
            f"plans_between: width_multiple must be a whole number >= 1, received {width_multiple!r}."
        )
    return plans_along(start, end, steps_between(start, end, refit, scores, width_multiple=width_multiple))


def steps_between(
    start: PruningPlan,
    end: PruningPlan,
    refit: Refit | None,
    scores: Sequence[float] | np.ndarray | None,
    *,
    width_multiple: int = 32,
    ties: Sequence[Sequence[Site]] = (),
) -> list[Units]:
    """Returns what is removed step by step from one plan to another, by site; see `plans_between`.

    Args:
        start: What is there at first.
        end: What is kept at last.
        refit: See `plans_between`.
        scores: See `plans_between`.
        width_multiple: See `plans_between`.
        ties: Sites that lose equally many units in each step; both plans have equally many there.
    """
    gone = {site: set(start.kept(site)) - set(end.kept(site)) for site in (*start.num_heads, *start.num_ffn)}
    steps: list[tuple[str, set[int]]] = []
    if refit is not None:
        removals = removals_between(refit, start, end, width_multiple=width_multiple)
        steps = [(removal.site, set(removal.units)) for removal in removals]
    listed = {site for site, _ in steps}
    heads = [(site, head) for site, count in start.num_heads.items() for head in range(count)]
    rank = dict(zip(heads, range(len(heads)) if scores is None else scores, strict=True))
    others = [(site, head) for site, head in heads if site not in listed and head in gone[site]]
    ordered = sorted(others, key=rank.__getitem__)
    whole = dict.fromkeys(site for site, _ in ordered if site in start.heads_per_group)
    steps += [(site, {head}) for site, head in ordered if site not in whole]
    steps += [(site, gone[site]) for site in whole]
    steps += [(site, gone[site]) for site in start.num_ffn if site not in listed and gone[site]]
    return _together(steps, ties)


def _together(steps: list[tuple[str, set[int]]], ties: Sequence[Sequence[Site]]) -> list[Units]:
    """Joins the first steps of the sites of each tie, then the second ones; each stands where its last part did."""
    places: dict[str, list[int]] = {}
    for place, (site, _) in enumerate(steps):
        places.setdefault(site, []).append(place)
    joint = [
        list(each) for tie in ties for each in zip(*(places.pop(site.name, []) for site in tie), strict=True) if each
    ]
    joint += [[place] for alone in places.values() for place in alone]
    return [dict(steps[place] for place in each) for each in sorted(joint, key=max)]


def plans_along(start: PruningPlan, end: PruningPlan, steps: Iterable[Units]) -> list[PruningPlan]:
    """Returns the plan after each of some steps; only the last plan where there are none."""
    kept = {site: {*start.kept(site), *end.kept(site)} for site in (*start.num_heads, *start.num_ffn)}
    plans = []
    for step in steps:
        kept |= {site: kept[site] - units for site, units in step.items()}
        plans.append(
            start.replace(
                kept_heads={site: kept[site] for site in start.num_heads},
                kept_ffn={site: kept[site] for site in start.num_ffn},
            )
        )
    return plans or [end]


def _check(start: Any, end: Any, refit: Any, scores: Any) -> None:
    """Refuses what is of the wrong type, or of different models."""
    for name, received, kind in (
        ("start", start, PruningPlan),
        ("end", end, PruningPlan),
        ("refit", refit, Refit | None),
    ):
        if not isinstance(received, kind):
            raise InvalidSettingError(
                f"plans_between: {name} must be a {getattr(kind, '__name__', 'Refit or None')}, received "
                f"{type(received).__name__}. Pass the .plan and the .refit of what found them."
            )
    if any(getattr(start, name) != getattr(end, name) for name in ("num_heads", "num_ffn", "heads_per_group")):
        raise InvalidPlanError(
            f"plans_between: both plans must be of one model, received one of {_sizes(start)}, and one of "
            f"{_sizes(end)}. Make both from the same model, before it is cut."
        )
    unknown = sorted(getattr(refit, "blocks", {}).keys() - {*start.num_heads, *start.num_ffn})
    if unknown:
        raise InvalidPlanError(
            f"plans_between: the refit must be of the plans' model, received one with {unknown[:3]}. "
            "Pass what the call that found the plan returned beside it."
        )
    heads = sum(start.num_heads.values())
    if scores is not None and not (len(scores) == heads and all(map(is_number, scores))):
        raise InvalidSettingError(
            f"plans_between: scores must have one finite number for each of the {heads} heads, received {len(scores)}: "
            f"{shown(scores)}."
        )


def _sizes(plan: PruningPlan) -> str:
    return f"{sum(plan.num_heads.values())} heads and {sum(plan.num_ffn.values())} FFN units"
