"""Plans on the way from one plan to another: candidates for the cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_headprune.elimination import removals_between
from hf_headprune.errors import InvalidPlanError, InvalidSettingError

if TYPE_CHECKING:
    import numpy as np

    from hf_headprune.plan import PruningPlan
    from hf_headprune.reconstruction import Reconstruction


def plans_between(
    start: PruningPlan,
    end: PruningPlan,
    reconstruction: Reconstruction | None = None,
    scores: np.ndarray | None = None,
    *,
    width_multiple: int = 32,
) -> list[PruningPlan]:
    """Returns plans from the least pruned to `end`: each removes one head or chunk of an FFN more.

    What costs least leaves first, where projections are refitted; else the least important heads, and then all that
    `end` removes of each FFN. What `start` has removed and `end` keeps is there in all of them. No example is looked
    at, so that `certify_path` may test them, or `milestones` of them, in this order.

    Args:
        start: What is there at first, such as `PruningPlan.of(model)`.
        end: What stays at last, such as the plan of `second_order_plan` or `search_plan`.
        reconstruction: What the same call returned beside the plan, or None.
        scores: Importance of the heads, `(num_heads,)`, in the order of the sites; None takes them in that order.
        width_multiple: FFN units leave in such numbers, where projections are refitted.

    Raises:
        InvalidPlanError: The plans are of different models, or the reconstruction is of another one.
        InvalidSettingError: There are more or fewer scores than heads.
    """
    if (dict(start.num_heads), dict(start.num_ffn)) != (dict(end.num_heads), dict(end.num_ffn)):
        raise InvalidPlanError(
            f"plans_between: both plans must be of one model, received one of {_sizes(start)}, and one of "
            f"{_sizes(end)}. Make both from the same model, before it is cut."
        )
    gone = {site: set(start.kept(site)) - set(end.kept(site)) for site in (*start.num_heads, *start.num_ffn)}
    steps: list[tuple[str, set[int]]] = []
    if reconstruction is not None:
        unknown = sorted(reconstruction.blocks.keys() - gone.keys())
        if unknown:
            raise InvalidPlanError(
                f"plans_between: the reconstruction must be of the plans' model, received one with {unknown[:3]}. Pass "
                "what the call that found the plan returned beside it."
            )
        removals = removals_between(reconstruction, start, end, width_multiple=width_multiple)
        steps = [(removal.site, set(removal.units)) for removal in removals]
    listed = {site for site, _ in steps}
    heads = [(site, head) for site, count in start.num_heads.items() for head in range(count)]
    if scores is not None and len(scores) != len(heads):
        raise InvalidSettingError(
            f"plans_between: scores must have one number for each of the {len(heads)} heads, received {len(scores)}."
        )
    rank = dict(zip(heads, range(len(heads)) if scores is None else scores.tolist(), strict=True))
    others = [(site, head) for site, head in heads if site not in listed and head in gone[site]]
    steps += [(site, {head}) for site, head in sorted(others, key=rank.__getitem__)]
    steps += [(site, gone[site]) for site in start.num_ffn if site not in listed and gone[site]]
    kept = {site: {*start.kept(site), *end.kept(site)} for site in gone}
    plans = []
    for site, units in steps:
        kept[site] = kept[site] - units
        plans.append(
            start.replace(
                kept_heads={site: kept[site] for site in start.num_heads},
                kept_ffn={site: kept[site] for site in start.num_ffn},
            )
        )
    return plans or [end]


def _sizes(plan: PruningPlan) -> str:
    return f"{sum(plan.num_heads.values())} heads and {sum(plan.num_ffn.values())} FFN units"
