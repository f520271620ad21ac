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
        side: str | None = next((block.kind for block in stack.attentions), None) if several else None
        if stack.config is not None:
            side = stack.config.removesuffix("_config")  # of the towers: "vision", "text"
        for block in stack.blocks:
            title = "cross heads" if block.kind == "cross" else f"{side} self heads" if side else "heads"
            if not block.is_attention:
                title = f"{side} FFN units" if side else "FFN units"
            sizes = plan.num_heads if block.is_attention else plan.num_ffn
            groups.append(
                SiteGroup(title, is_attention=block.is_attention, sites=_present(sizes, stack.layers, block.site))
            )
    strange = sorted({*plan.num_heads, *plan.num_ffn} - {site for group in groups for site in group.sites})
    if strange:
        raise InvalidPlanError(
            f"groups_of: {', '.join(strange)} is no site of the family {plan.model_type!r}. Make the plan with "
            "PruningPlan.of(model)."
        )
    return tuple(dict.fromkeys(group for group in groups if group.sites))  # of two forms of a block, one each


def _present(sizes: Mapping[str, int], layers: str, block: str) -> tuple[str, ...]:
    path = re.escape(f"{layers}.*").replace(r"\*", r"(\d+)")
    matches = filter(None, map(re.compile(rf"{path}\.{re.escape(block)}").fullmatch, sizes))
    return tuple(match.group() for match in sorted(matches, key=lambda match: tuple(map(int, match.groups()))))
