"""What units save of a measured latency: the table gives it for each site and each number of units kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hf_headprune.cost import check_latency_table, ms_with
from hf_headprune.errors import InvalidSettingError
from hf_headprune.search.problem import GainTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hf_headprune.anatomy import Anatomy
    from hf_headprune.search.settings import AStarSearch
    from hf_headprune.search.units import Unit

LEAST_SHARE = 1e-9  # ms


def check_latency_of_search(anatomy: Anatomy, search: AStarSearch) -> None:
    """Sees that a table of latencies speaks of all that is searched, and of nothing else.

    Raises:
        InvalidSettingError: A site is missing or unknown, lacks the ms with none or with all of its units, or is no
            faster without them; or whole layers alone are searched.
    """
    table = search.tuning.latency_ms
    if table is None:
        return
    where = "SearchTuning(latency_ms=...)"
    if search.units == ("layers",):
        raise InvalidSettingError(
            f"{where}: units of the search must lie in one site each, received whole layers. Use "
            "units=('heads', 'ffn', 'layers'), in which a layer is a step over heads and chunks."
        )
    kinds = {True: "heads", False: "ffn"}
    wanted = [site for site in anatomy.sites if kinds[site.is_attention] in search.units and site.units]
    check_latency_table(table, wanted, anatomy, where=where)


def latency_gains(
    units: Sequence[Unit], latency_ms: Mapping[str, Mapping[int, float]]
) -> tuple[tuple[float, ...], tuple[GainTable, ...]]:
    """Returns each unit's share of what is saved, in ms, and what the units of each site save together.

    The shares only order units, and must be above zero: of units without which the site was never faster, which a
    measurement may say of the few that training left, each has next to nothing. Where the chunks of a site are of two
    sizes, the first of them counts as removed first.

    Args:
        units: Of the search, each in one site.
        latency_ms: Checked for the anatomy that the units come from.
    """
    numbers: dict[str, list[int]] = {}
    for number, (part,) in enumerate(units):
        numbers.setdefault(part.site, []).append(number)
    shares, tables = [0.0] * len(units), []
    for site, listed in numbers.items():
        measured = latency_ms[site]
        widths = [len(units[number][0].indices) for number in listed]
        kept = sum(widths) - np.cumsum([0, *widths])
        ms = ms_with(kept, measured)
        saved = tuple((ms[0] - ms).tolist())
        tables.append(GainTable((tuple(listed),), saved))
        for number in listed:
            shares[number] = max(*saved, LEAST_SHARE) / len(listed)
    return tuple(shares), tuple(tables)
