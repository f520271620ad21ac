"""Plans on the way from what training kept to what a search found: candidates for the cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_headprune.elimination import removals_between

if TYPE_CHECKING:
    import numpy as np

    from hf_headprune.plan import PruningPlan
    from hf_headprune.reconstruction import Reconstruction


def plans_between(
    learned: PruningPlan, found: PruningPlan, reconstruction: Reconstruction | None, scores: np.ndarray | None
) -> list[PruningPlan]:
    """Returns plans from the least pruned to `found`: each removes one head or chunk of an FFN more.

    What costs least leaves first, where projections are refitted; else the least important heads, and then what the
    search removed of each FFN. What the search restored is there in all of them.

    Args:
        learned: What training kept.
        found: What the search keeps.
        reconstruction: Of the search, or None.
        scores: Importance of the heads, `(num_heads,)`, in the order of the sites; None takes them in that order.
    """
    gone = {site: set(learned.kept(site)) - set(found.kept(site)) for site in (*learned.num_heads, *learned.num_ffn)}
    steps: list[tuple[str, set[int]]] = []
    if reconstruction is not None:
        steps = [(removal.site, set(removal.units)) for removal in removals_between(reconstruction, learned, found)]
    listed = {site for site, _ in steps}
    heads = [(site, head) for site, count in learned.num_heads.items() for head in range(count)]
    rank = dict(zip(heads, range(len(heads)) if scores is None else scores.tolist(), strict=True))
    others = [(site, head) for site, head in heads if site not in listed and head in gone[site]]
    steps += [(site, {head}) for site, head in sorted(others, key=rank.__getitem__)]
    steps += [(site, gone[site]) for site in learned.num_ffn if site not in listed and gone[site]]
    kept = {site: {*learned.kept(site), *found.kept(site)} for site in gone}
    plans = []
    for site, units in steps:
        kept[site] = kept[site] - units
        plans.append(
            learned.replace(
                kept_heads={site: kept[site] for site in learned.num_heads},
                kept_ffn={site: kept[site] for site in learned.num_ffn},
            )
        )
    return plans or [found]
