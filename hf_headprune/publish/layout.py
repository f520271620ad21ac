"""Rows and columns for people: the sites of a plan by what they are and in which layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidPlanError
from hf_headprune.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_headprune.plan import PruningPlan


@dataclass(frozen=True)
class SiteGroup:
    """The sites of one kind, one per layer, such as the cross attention of all decoder layers.

    Attributes:
        title: What they are, for a heading.
        is_attention: Whether the units are heads.
        sites: Names of the sites, ascending by layer.
    """

    title: str
    is_attention: bool
    sites: tuple[str, ...]


def groups_of(plan: PruningPlan) -> tuple[SiteGroup, ...]:
    """Groups the sites of a plan by stack and kind, attention before FFN within a stack.

    Raises:
        InvalidPlanError: The plan's family is not declared, or it has a site that the declaration does not name.
    """
    if plan.model_type not in FAMILIES:
        raise InvalidPlanError(
            f"groups_of: no family {plan.model_type!r} is declared, so its sites have no headings. Declared: "
            f"{', '.join(sorted(FAMILIES))}."
        )
    stacks = FAMILIES[plan.model_type].stacks
    several = len(stacks) > 1
    groups = []
    for stack in stacks:
        for names in stack.attentions:
            title = "cross heads" if names.kind == "cross" else f"{names.kind} self heads" if several else "heads"
            groups.append(SiteGroup(title, is_attention=True, sites=_present(plan.num_heads, stack.layers, names.site)))
        title = f"{stack.attentions[0].kind} FFN units" if several else "FFN units"
        groups.append(SiteGroup(title, is_attention=False, sites=_present(plan.num_ffn, stack.layers, stack.ffn.site)))
    strange = sorted({*plan.num_heads, *plan.num_ffn} - {site for group in groups for site in group.sites})
    if strange:
        raise InvalidPlanError(
            f"groups_of: {', '.join(strange)} is no site of the family {plan.model_type!r}. Make the plan with "
            "PruningPlan.of(model)."
        )
    return tuple(group for group in groups if group.sites)


def _present(sizes: Mapping[str, int], layers: str, block: str) -> tuple[str, ...]:
    pattern = re.compile(rf"{re.escape(layers)}\.(\d+)\.{re.escape(block)}")
    matches = filter(None, map(pattern.fullmatch, sizes))
    return tuple(match.group() for match in sorted(matches, key=lambda match: int(match.group(1))))
