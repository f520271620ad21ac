"""PruningPlan: which heads and FFN units stay, per site; frozen, JSON, no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hf_headprune.anatomy import Anatomy, anatomy_of
from hf_headprune.errors import InvalidPlanError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

PLAN_FORMAT = "hf_headprune.plan/2"
_RANGES = re.compile(r"\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*")
_KEPT_FIELDS = ("kept_heads", "kept_ffn")
_PLAN_FIELDS = ("model_type", "num_heads", "num_ffn", *_KEPT_FIELDS)


@dataclass(frozen=True, eq=True)
class PruningPlan:
    """What stays of a model. Units are numbered from zero within their site, as the live model has them.

    A site is the module path below the base model, such as "encoder.layer.3.attention".

    Attributes:
        model_type: Family of the model that the plan was made for.
        num_heads: `{site: heads present}` before pruning.
        num_ffn: `{site: FFN units present}` before pruning.
        kept_heads: `{site: heads that stay}`, ascending.
        kept_ffn: `{site: FFN units that stay}`, ascending.

    Raises:
        InvalidPlanError: A site is unknown or missing, or an index is out of range, repeated or no integer; the
            message lists every offender.
    """

    model_type: str
    num_heads: Mapping[str, int]
    num_ffn: Mapping[str, int]
    kept_heads: Mapping[str, tuple[int, ...]]
    kept_ffn: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        """Freezes the mappings and checks every site."""
        problems = _problems("kept_heads", self.num_heads, self.kept_heads)
        problems += _problems("kept_ffn", self.num_ffn, self.kept_ffn)
        if problems:
            raise InvalidPlanError("PruningPlan: " + "; ".join(sorted(problems)))
        for name in ("num_heads", "num_ffn"):
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
        )

    def replace(
        self,
        *,
        kept_heads: Mapping[str, Iterable[int]] | None = None,
        kept_ffn: Mapping[str, Iterable[int]] | None = None,
    ) -> PruningPlan:
        """Returns a copy in which the named sites keep exactly the given units; other sites stay as they are.

        Raises:
            InvalidPlanError: A site is unknown or an index is not one of its units.
        """
        return PruningPlan(
            model_type=self.model_type,
            num_heads=self.num_heads,
            num_ffn=self.num_ffn,
            kept_heads=_merged(self.kept_heads, kept_heads),
            kept_ffn=_merged(self.kept_ffn, kept_ffn),
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

    def to_json(self) -> str:
        """Returns the plan as JSON text that `from_json` reads back to an equal plan.

        Units that stay are written as ranges, such as "0-2,5".
        """
        content: dict[str, Any] = {"format": PLAN_FORMAT, "model_type": self.model_type}
        content |= {"num_heads": dict(self.num_heads), "num_ffn": dict(self.num_ffn)}
        for name in _KEPT_FIELDS:
            content[name] = {site: _as_ranges(units) for site, units in getattr(self, name).items()}
        return json.dumps(content, indent=2)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Reads what `to_json` wrote.

        Raises:
            InvalidPlanError: The text is no JSON, has another format, or its fields are missing or unknown.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidPlanError(
                f"PruningPlan.from_json: not JSON ({error}). Pass the text that to_json returned."
            ) from error
        if not isinstance(content, dict) or content.get("format") != PLAN_FORMAT:
            received = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise InvalidPlanError(
                f"PruningPlan.from_json: format must be {PLAN_FORMAT!r}, received {received!r}. Pass the text that "
                "to_json returned, written by a version that knows this format."
            )
        given = set(content) - {"format"}
        if given != set(_PLAN_FIELDS):
            raise InvalidPlanError(
                f"PruningPlan.from_json: missing fields {sorted(set(_PLAN_FIELDS) - given)}, unknown fields "
                f"{sorted(given - set(_PLAN_FIELDS))}. Pass the text that to_json returned."
            )
        for name in _KEPT_FIELDS:
            if isinstance(content[name], dict):  # anything else is refused below
                content[name] = {site: _from_ranges(f"{name}: {site}", text) for site, text in content[name].items()}
        return cls(**{name: content[name] for name in _PLAN_FIELDS})

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


def _as_ranges(units: tuple[int, ...]) -> str:
    starts = [unit for place, unit in enumerate(units) if not place or units[place - 1] != unit - 1]
    ends = [unit for place, unit in enumerate(units) if place + 1 == len(units) or units[place + 1] != unit + 1]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _from_ranges(where: str, text: Any) -> tuple[int, ...]:
    is_known = isinstance(text, str) and (not text or _RANGES.fullmatch(text))
    parts = [part.split("-") for part in text.split(",") if part] if is_known else []
    ranges = [(int(part[0]), int(part[-1])) for part in parts]
    if not is_known or any(last < first for first, last in ranges):
        raise InvalidPlanError(
            f"PruningPlan.from_json: {where} must be rising ranges of units such as '0-2,5', or '' for none, received "
            f"{text!r}."
        )
    return tuple(unit for first, last in ranges for unit in range(first, last + 1))


def _problems(
    field: Literal["kept_heads", "kept_ffn"], sizes: Mapping[str, int], kept: Mapping[str, Iterable[int]]
) -> list[str]:
    if not (isinstance(sizes, Mapping) and isinstance(kept, Mapping)):
        return [f"{field} and its numbers must be mappings from sites, received {kept!r} and {sizes!r}"]
    problems = [f"{field}: unknown site {site!r} (sites: {', '.join(sizes)})" for site in kept if site not in sizes]
    problems += [f"{field}: site {site!r} is missing" for site in sizes if site not in kept]
    for site in sizes.keys() & kept.keys():
        problems += _unit_problems(f"{field}: {site}", sizes[site], kept[site])
    return problems


def _unit_problems(where: str, units: Any, kept: Any) -> list[str]:
    if type(units) is not int or units < 0:
        return [f"{where} must count its units with a whole number >= 0, received {units!r}"]
    if isinstance(kept, str) or not isinstance(kept, Iterable):
        return [f"{where} takes the units that stay as a sequence such as (0, 2), received {kept!r}"]
    indices = list(kept)
    wrong = [i for i in indices if type(i) is not int or not 0 <= i < units]
    if wrong:
        return [f"{where} has units 0..{units - 1}, received {wrong}"]
    return [f"{where} lists a unit twice, received {indices}"] if len(set(indices)) != len(indices) else []


def _merged(
    present: Mapping[str, tuple[int, ...]], changes: Mapping[str, Iterable[int]] | None
) -> dict[str, tuple[int, ...]]:
    if not isinstance(changes or {}, Mapping):
        raise InvalidPlanError(
            f"PruningPlan.replace: what stays must be a mapping from sites to units, received {changes!r}."
        )
    listed = {s: tuple(map(_plain, u)) if isinstance(u, Iterable) else u for s, u in (changes or {}).items()}
    return {**present, **listed}


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
            f"{str(given)[:80]}. Pass PruningPlan.of(model).replace(kept_heads={{...}}), PruningPlan.from_json(text), "
            "or what search_plan(...) returned."
        )
    return found


def check_plan(plan: Any, anatomy: Anatomy) -> None:
    """Checks that something is a plan, and one for a model of exactly this anatomy.

    Raises:
        InvalidPlanError: It is no `PruningPlan`, or does not fit.
    """
    if not isinstance(plan, PruningPlan):
        raise InvalidPlanError(
            f"A plan must be a PruningPlan, received a {type(plan).__name__}: {str(plan)[:80]}. Pass "
            "PruningPlan.of(model).replace(kept_heads={...}), or PruningPlan.from_json(text)."
        )
    plan.check_fits(anatomy)
