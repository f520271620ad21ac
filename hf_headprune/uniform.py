"""Equal numbers in all layers: what a configuration of Transformers says by one number, and which sites share it."""

from __future__ import annotations

from itertools import accumulate
from operator import sub
from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hf_headprune.anatomy import Anatomy, Site

NO_HEADS = "the width of a head follows from their number, or they share a bias, so that all heads are kept"


def tied_sites(sites: Iterable[Site]) -> list[tuple[Site, ...]]:
    """Returns the sites that lose equally many units in a uniform plan: all that one field of a configuration counts.

    Sites whose number the dense model's configuration can't change are in none.

    Args:
        sites: Of one model, in the order of the forward pass.
    """
    ties: dict[tuple[str | None, str], list[Site]] = {}
    for site in sites:
        if site.block.said and site.units:
            ties.setdefault((site.tower, site.dense_field), []).append(site)
    return [tuple(tie) for tie in ties.values()]


def can_be_said(site: Site, units: int) -> bool:
    """Tells whether the dense model's configuration takes a number of units, if it takes smaller ones at all."""
    return units > 0 and (site.block.said != "divisors" or site.hidden_size % units == 0)


def stops(site: Site, widths: Sequence[int]) -> list[int]:
    """Returns after how many removals a site has a number of units that its configuration can say.

    Args:
        site: One of a tie.
        widths: Units of each removal, together all that the site has.
    """
    left = list(accumulate(widths, sub, initial=sum(widths)))
    return [count for count in range(1, len(left)) if can_be_said(site, left[count])]


def check_uniform(anatomy: Anatomy, *, heads_alone: bool = False) -> None:
    """Sees that a model can be pruned to equal numbers in all layers.

    Args:
        anatomy: Of the model.
        heads_alone: Whether only heads are to be pruned.

    Raises:
        InvalidSettingError: No field of its configuration says fewer units, or its layers differ already.
    """
    ties = [tie for tie in tied_sites(anatomy.sites) if tie[0].is_attention or not heads_alone]
    if not ties:
        what = f"{NO_HEADS}. Prune FFN units, too, with density=" if heads_alone else "Leave uniform out"
        raise InvalidSettingError(
            f"uniform: the configuration of {anatomy.model_type} has no field that says fewer "
            f"{'heads' if heads_alone else 'heads or FFN units'}{': ' if heads_alone else '. '}{what}."
        )
    uneven = [sorted({site.units for site in tie}) for tie in ties if len({site.units for site in tie}) > 1]
    if uneven:
        raise InvalidSettingError(
            f"uniform: the layers of this model have {uneven[0][0]} to {uneven[0][-1]} units already. Pass the model "
            "before it was pruned, or leave uniform out."
        )


def kept_whole(anatomy: Anatomy) -> str:
    """Says which units a uniform plan of a model keeps all of; empty where it may remove of each kind."""
    kinds = {site.is_attention for tie in tied_sites(anatomy.sites) for site in tie}
    if kinds == {True}:
        return "all FFN units are kept, since no field of its configuration says fewer"
    return "" if True in kinds else NO_HEADS
