"""PruningPlan: which heads and FFN units stay, per site; frozen, JSON, no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hf_headprune._strict_json import parse
from hf_headprune._unit_ranges import as_ranges, from_ranges
from hf_headprune.anatomy import Anatomy, anatomy_of
from hf_headprune.errors import InvalidPlanError, InvalidSettingError, shown

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

PLAN_FORMAT = "hf_headprune.plan/2"
NAMED = 8  # unknown sites, in an error
MOST_UNITS = 2**23  # of all sites together: more than any model has, and few enough to be listed
_KEPT_FIELDS = ("kept_heads", "kept_ffn")
_PLAN_FIELDS = ("model_type", "num_heads", "num_ffn", *_KEPT_FIELDS)


@dataclass(frozen=True, eq=True)
class PruningPlan:
    """What is kept of a model. Units are numbered from zero within their site, as the live model has them.

    A site is the module path below the base model, such as "encoder.layer.3.attention".

    Attributes:
        model_type: Family of the model that the plan was made for.
        num_heads: `{site: heads present}` before pruning.
        num_ffn: `{site: FFN units present}` before pruning.
        kept_heads: `{site: heads that stay}`, ascending.
        kept_ffn: `{site: FFN units that stay}`, ascending.
        heads_per_group: `{site: heads}` where so many query heads, one after the other, share a key and a value.
            Equally many heads of each group stay, or none of it: a layer's configuration says one number for all.

    Raises:
        InvalidPlanError: A site is unknown or missing, an index is out of range, repeated or no integer, or groups
            keep different numbers of heads; the message lists every offender.
    """

    model_type: str
    num_heads: Mapping[str, int]
    num_ffn: Mapping[str, int]
    kept_heads: Mapping[str, tuple[int, ...]]
    kept_ffn: Mapping[str, tuple[int, ...]]
    heads_per_group: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freezes the mappings and checks every site."""
        if not isinstance(self.model_type, str):
            raise InvalidPlanError(f"PruningPlan: model_type must be a text, received {shown(self.model_type)}.")
        for name in _KEPT_FIELDS:  # what can be read once only is read here
            object.__setattr__(self, name, listed(getattr(self, name)))
        problems = _problems("kept_heads", self.num_heads, self.kept_heads)
        problems += _problems("kept_ffn", self.num_ffn, self.kept_ffn)
        problems = problems or _group_problems(self.num_heads, self.kept_heads, self.heads_per_group)
        if problems:
            raise InvalidPlanError("PruningPlan: " + "; ".join(sorted(problems)))
        for name in ("num_heads", "num_ffn", "heads_per_group"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for name, sizes in (("kept_heads", self.num_heads), ("kept_ffn", self.num_ffn)):
            kept = getattr(self, name)
            object.__setattr__(self, name, MappingProxyType({site: tuple(sorted(kept[site])) for site in sizes}))

    @classmethod
    def of(cls, model: nn.Module) -> PruningPlan:
        """Returns the plan that keeps all that the live model has.

        Raises:
            UnsupportedModelError: The model's family is not declared.
        """
        return cls.full(anatomy_of(model))

    @classmethod
    def full(cls, anatomy: Anatomy) -> PruningPlan:
        """Returns the plan that keeps every unit of every site."""
        num_heads = {site.name: site.units for site in anatomy.attention_sites}
        num_ffn = {site.name: site.units for site in anatomy.ffn_sites}
        return cls(
            model_type=anatomy.model_type,
            num_heads=num_heads,
            num_ffn=num_ffn,
            kept_heads={site: tuple(range(units)) for site, units in num_heads.items()},
            kept_ffn={site: tuple(range(units)) for site, units in num_ffn.items()},
            heads_per_group={site.name: site.group for site in anatomy.attention_sites if site.group > 1},
        )

    def replace(
        self,
        *,
        kept_heads: Mapping[str, Iterable[int]] | None = None,
        kept_ffn: Mapping[str, Iterable[int]] | None = None,
    ) -> PruningPlan:
        """Returns a copy in which the named sites keep exactly the given units; other sites stay as they are.

        Raises:
            InvalidPlanError: A site is unknown, an index is not one of its units, or groups of heads keep different
                numbers of them.
        """
        return PruningPlan(
            model_type=self.model_type,
            num_heads=self.num_heads,
            num_ffn=self.num_ffn,
            kept_heads=_merged(self.kept_heads, kept_heads),
            kept_ffn=_merged(self.kept_ffn, kept_ffn),
            heads_per_group=self.heads_per_group,
        )

    @property
    def num_kept_heads(self) -> int:
        """Heads that stay, over all sites."""
        return sum(map(len, self.kept_heads.values()))

    @property
    def num_removed_heads(self) -> int:
        """Heads that go, over all sites."""
        return sum(self.num_heads.values()) - self.num_kept_heads

    @property
    def num_kept_ffn(self) -> int:
        """FFN units that stay, over all sites."""
        return sum(map(len, self.kept_ffn.values()))

    @property
    def num_removed_ffn(self) -> int:
        """FFN units that go, over all sites."""
        return sum(self.num_ffn.values()) - self.num_kept_ffn

    def kept(self, site: str) -> tuple[int, ...]:
        """Returns the units of any site that stay, ascending."""
        return self.kept_heads[site] if site in self.kept_heads else self.kept_ffn[site]

    def groups(self, site: str) -> tuple[tuple[int, ...], ...]:
        """Returns the units of any site that stay, ascending, those together that share a key and a value."""
        group = self.heads_per_group.get(site, 1)
        return tuple(tuple(units) for _, units in groupby(self.kept(site), lambda unit: unit // group))

    def to_json(self) -> str:
        """Returns the plan as JSON text that `from_json` reads back to an equal plan.

        Units that stay are written as ranges, such as "0-2,5".
        """
        content: dict[str, Any] = {"format": PLAN_FORMAT, "model_type": self.model_type}
        content |= {"num_heads": dict(self.num_heads), "num_ffn": dict(self.num_ffn)}
        for name in _KEPT_FIELDS:
            content[name] = {site: as_ranges(units) for site, units in getattr(self, name).items()}
        if self.heads_per_group:
            content["heads_per_group"] = dict(self.heads_per_group)
        return json.dumps(content, indent=2)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Reads what `to_json` wrote.

        Raises:
            InvalidPlanError: The text is no JSON, has another format, or its fields are missing or unknown.
        """
        content = parse(text, "PruningPlan.from_json", error=InvalidPlanError)
        if not isinstance(content, dict) or content.get("format") != PLAN_FORMAT:
            received = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise InvalidPlanError(
                f"PruningPlan.from_json: format must be {PLAN_FORMAT!r}, received {shown(received)}. Pass "
                "the text that to_json returned, written by a version that knows this format."
            )
        given = set(content) - {"format", "heads_per_group"}
        if given != set(_PLAN_FIELDS):
            raise InvalidPlanError(
                f"PruningPlan.from_json: missing fields {sorted(set(_PLAN_FIELDS) - given)}, unknown fields "
                f"{shown(sorted(given - set(_PLAN_FIELDS)))}. Pass the text that to_json returned."
            )
        sizes = {name: content[name] if isinstance(content[name], dict) else {} for name in ("num_heads", "num_ffn")}
        _check_total(sizes)
        for name, units in zip(_KEPT_FIELDS, sizes.values(), strict=True):
            if isinstance(content[name], dict):  # anything else is refused below
                content[name] = {
                    site: from_ranges(f"PruningPlan.from_json: {name}: {site}", ranges, units.get(site))
                    for site, ranges in content[name].items()
                }
        groups = content.get("heads_per_group", {})
        return cls(**{name: content[name] for name in _PLAN_FIELDS}, heads_per_group=groups)

    def check_fits(self, anatomy: Anatomy) -> None:
        """Checks that the plan was made for a model of exactly this anatomy.

        Raises:
            InvalidPlanError: The family, a site or a number of units differs; the message lists every difference.
        """
        problems = []
        if self.model_type != anatomy.model_type:
            problems.append(f"the plan is for model_type {self.model_type!r}, the model is {anatomy.model_type!r}")
        planned = {**self.num_heads, **self.num_ffn}
        present = {site.name: site.units for site in anatomy.sites}
        for site in sorted(planned.keys() | present.keys()):
            if planned.get(site) != present.get(site):
                problems.append(f"{site}: the plan counts {planned.get(site)} units, the model has {present.get(site)}")
        groups = {site.name: site.group for site in anatomy.attention_sites if site.group > 1}
        if not problems and dict(self.heads_per_group) != groups:
            problems.append(f"the plan counts {dict(self.heads_per_group)} heads per group, the model has {groups}")
        if problems:
            raise InvalidPlanError(
                f"This plan does not fit the model: {'; '.join(problems)}. Make it from PruningPlan.of(model) of the "
                "very model that it is applied to."
            )

    def __hash__(self) -> int:
        """Equal plans have equal hashes."""
        return hash((self.model_type, frozenset(self.kept_heads.items()), frozenset(self.kept_ffn.items())))

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Copies and pickles go through JSON, since read-only mappings can't be pickled."""
        return PruningPlan.from_json, (self.to_json(),)


def _check_total(sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses numbers of units that no model has, before any is listed."""
    total = sum(units for field in sizes.values() for units in field.values() if type(units) is int and units > 0)
    if total > MOST_UNITS:
        raise InvalidPlanError(
            f"PruningPlan.from_json: num_heads and num_ffn may count at most {MOST_UNITS:,} units together, received "
            f"{total:,}. Pass the text that to_json returned."
        )


def _problems(
    field: Literal["kept_heads", "kept_ffn"], sizes: Mapping[str, int], kept: Mapping[str, Iterable[int]]
) -> list[str]:
    if not (isinstance(sizes, Mapping) and isinstance(kept, Mapping)):
        return [f"{field} and its numbers must be mappings from sites, received {shown(kept)} and {shown(sizes)}"]
    named = (shown(site) for site in {**sizes, **kept} if not isinstance(site, str))
    problems = [f"{field}: a site is named by its module path, received {name}" for name in named]
    problems += [f"{field}: unknown site {shown(site)} (sites: {_first(sizes)})" for site in kept if site not in sizes]
    problems += [f"{field}: site {shown(site)} is missing" for site in sizes if site not in kept]
    for site in sizes.keys() & kept.keys():
        problems += _unit_problems(f"{field}: {site}" if isinstance(site, str) else field, sizes[site], kept[site])
    return problems


def _unit_problems(where: str, units: Any, kept: Any) -> list[str]:
    if type(units) is not int or not 0 <= units <= MOST_UNITS:
        return [f"{where} must count its units with a whole number in [0, {MOST_UNITS}], received {shown(units)}"]
    if isinstance(kept, str) or not isinstance(kept, Iterable):
        return [f"{where} takes the units that stay as a sequence such as (0, 2), received {shown(kept)}"]
    if _is_long(kept):
        return [f"{where} has units 0..{units - 1}, received {shown(kept)}"]
    indices = list(kept)
    wrong = [i for i in indices if type(i) is not int or not 0 <= i < units]
    if wrong:
        return [f"{where} has units 0..{units - 1}, received {shown(wrong)}"]
    return [f"{where} lists a unit twice, received {shown(indices)}"] if len(set(indices)) != len(indices) else []


def _group_problems(sizes: Mapping[str, int], kept: Mapping[str, Iterable[int]], groups: Any) -> list[str]:
    """Lists, of sites whose units are valid, those that keep different numbers of the groups that stay."""
    if not isinstance(groups, Mapping):
        return [f"heads_per_group must be a mapping from sites, received {shown(groups)}"]
    problems = [f"heads_per_group: unknown site {shown(site)}" for site in groups if site not in sizes]
    for site, group in groups.items():
        if site not in sizes:
            continue
        if type(group) is not int or group < 2 or sizes[site] % group:  # noqa: PLR2004 - alone, nothing is shared
            problems.append(
                f"heads_per_group: {site} must be above 1 and divide its {sizes[site]} heads, received {shown(group)}"
            )
        elif len(set(Counter(unit // group for unit in kept[site]).values())) > 1:
            problems.append(
                f"kept_heads: {site} must keep equally many of the {group} query heads of each group that stays, "
                f"since a layer has one number for all its groups, received {shown(sorted(kept[site]))}"
            )
    return problems


def _merged(
    present: Mapping[str, tuple[int, ...]], changes: Mapping[str, Iterable[int]] | None
) -> dict[str, tuple[int, ...]]:
    if changes is None:
        return dict(present)
    if not isinstance(changes, Mapping):
        raise InvalidPlanError(
            f"PruningPlan.replace: what is kept must be a mapping from sites to units, received {shown(changes)}."
        )
    return {**present, **listed(changes)}


def listed(kept: Any) -> Any:
    """Returns the units of each site as a tuple of plain numbers; what is no such mapping is refused later."""
    if not isinstance(kept, Mapping):
        return kept
    return {site: _numbers(units) if _is_listable(units) else units for site, units in kept.items()}


def _numbers(units: Iterable[Any]) -> tuple[Any, ...]:
    found = tuple(units)
    return found if set(map(type, found)) <= {int} else tuple(map(_plain, found))


def _is_listable(units: Any) -> bool:
    return isinstance(units, Iterable) and not isinstance(units, str) and not _is_long(units)


def _is_long(units: Any) -> bool:
    """Tells whether these are more units than any model has, such as `range(10**12)`: they are never listed."""
    try:
        return hasattr(units, "__len__") and len(units) > MOST_UNITS
    except OverflowError:
        return True


def _first(sites: Iterable[Any]) -> str:
    names = [str(site) for site in sites]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _plain(unit: Any) -> Any:
    """Turns a whole number of another type, such as numpy's, into an int; all else is refused later."""
    return int(unit) if isinstance(unit, Integral) and not isinstance(unit, bool) else unit


class WeightUpdate(Protocol):
    """What adapts the weights that a plan keeps; `hf_headprune.refit` makes it."""

    def check_fits(self, model: nn.Module) -> None:
        """Raises `InvalidPlanError` unless the model has the weights that the update was computed from."""

    def apply_(self, model: nn.Module, plan: PruningPlan) -> None:
        """Adapts the weights in place."""

    def restoring(self, model: nn.Module) -> AbstractContextManager[None]:
        """Puts the weights back at the end of a `with` block."""


@dataclass(frozen=True)
class RefittedPlan:
    """A plan and the update of the remaining weights that belongs to it: what `masked` and `prune_model_` need.

    Attributes:
        plan: What is kept.
        refit: Update of the weights that remain, or None to leave them as they are.
    """

    plan: PruningPlan
    refit: WeightUpdate | None = field(default=None, repr=False, compare=False)

    @property
    def certificate_text(self) -> str | None:
        """The certificate of the model that was pruned by this, as JSON text; None without one."""
        return None

    def card(self, model: Any, *, dataset: str | None = None) -> str | None:
        """Returns the model card of the model that was pruned by this; None where no report says anything about it."""


PlanOrResult = PruningPlan | RefittedPlan


def refitted(given: PlanOrResult) -> RefittedPlan:
    """Returns a plan together with its refit, from a plan alone or from any result that holds both.

    Raises:
        InvalidPlanError: It is neither.
    """
    found = RefittedPlan(given) if isinstance(given, PruningPlan) else given
    if not isinstance(found, RefittedPlan):
        raise InvalidPlanError(
            f"A plan must be a PruningPlan or a result that holds one, received a {type(given).__name__}: "
            f"{shown(given)}. Pass PruningPlan.of(model).replace(kept_heads={{...}}), PruningPlan.from_json(text), "
            "or what search_plan(...) returned."
        )
    return found


def check_plan(plan: Any, anatomy: Anatomy) -> None:
    """Checks that something is a plan, and one for a model of exactly this anatomy.

    Raises:
        InvalidPlanError: It is no `PruningPlan`, or does not fit.
        InvalidSettingError: What it is for is no anatomy.
    """
    if not isinstance(anatomy, Anatomy):
        raise InvalidSettingError(
            f"A plan is compared with an anatomy, received a {type(anatomy).__name__}. Pass anatomy_of(model)."
        )
    if not isinstance(plan, PruningPlan):
        raise InvalidPlanError(
            f"A plan must be a PruningPlan, received a {type(plan).__name__}: {shown(plan)}. Pass "
            "PruningPlan.of(model).replace(kept_heads={...}), PruningPlan.from_json(text), or the plan of a result."
        )
    plan.check_fits(anatomy)
