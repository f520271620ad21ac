"""What a saved model has kept, in words and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune._unit_ranges import as_ranges
from hf_headprune.anatomy import anatomy_of
from hf_headprune.shrink.saved_plan import plan_from_dense

if TYPE_CHECKING:
    from collections.abc import Iterator


def sites_of(model: Any) -> list[dict[str, Any]]:
    """Returns of each site what it has, what the dense model had, and which heads went; None where it is not known."""
    plan, found = plan_from_dense(model), []
    for site in anatomy_of(model).sites:
        dense = site.dense_units(model.config)
        entry: dict[str, Any] = {"site": site.name, "kind": site.kind, "layer": site.layer}
        entry |= {"kept": site.units, "dense": dense}
        if site.is_attention:
            entry["removed_heads"] = None if plan is None else _removed(plan.kept(site.name), dense)
        found.append(entry)
    return found


def in_words(model: Any) -> Iterator[str]:
    """Yields sentences: how much is kept, which blocks are empty, and which heads of the dense model went."""
    sites, rows = anatomy_of(model).sites, sites_of(model)
    for is_attention, units in ((True, "heads"), (False, "FFN units")):
        chosen = [row for site, row in zip(sites, rows, strict=True) if site.is_attention == is_attention]
        kept, dense = (sum(row[name] for row in chosen) for name in ("kept", "dense"))
        if dense:
            yield f"{kept:,} of {dense:,} {units} are kept ({kept / dense:.0%})."
    empty = [row["site"] for row in rows if not row["kept"]]
    if empty:
        yield f"Nothing is kept of {', '.join(empty)}; the bias of each still counts."
    went = [row for row in rows if row.get("removed_heads")]
    if any(row["kept"] < row["dense"] and row.get("removed_heads", ()) is None for row in rows):
        yield "Which heads of the dense model went is not known: there is no plan beside the weights."
    for row in went:
        yield f"{row['site']} lost {_heads(row['removed_heads'])} of {row['dense']}."


def _removed(kept: tuple[int, ...], dense: int) -> list[int]:
    return [unit for unit in range(dense) if unit not in set(kept)]


def _heads(removed: list[int]) -> str:
    return f"head{'s' if len(removed) > 1 else ''} {as_ranges(tuple(removed))}"
