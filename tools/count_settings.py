"""Counts the fields of all public settings classes: `python -m tools.count_settings` prints them.

A settings class is a public dataclass that a user fills in; what the library returns is none.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys

import hf_headprune

RETURNED = {"Certificate", "Cost", "PruningLadder", "PruningPlan", "PruningReport", "PruningResult", "RefittedPlan"}


def settings() -> dict[str, list[str]]:
    """Returns the fields of each public settings class."""
    public = {name: getattr(hf_headprune, name) for name in dir(hf_headprune) if not name.startswith("Prunable")}
    kinds = {name: kind for name, kind in public.items() if inspect.isclass(kind) and dataclasses.is_dataclass(kind)}
    return {name: _fields(kind) for name, kind in kinds.items() if name not in RETURNED and not name.endswith("Tuning")}


def tunings() -> dict[str, list[str]]:
    """Returns the fields of the `tuning=` of each public settings class, which few runs need."""
    found = {}
    for name in settings():
        for field in dataclasses.fields(getattr(hf_headprune, name)):
            if field.name == "tuning":
                made = field.default_factory
                kind = type(field.default) if made is dataclasses.MISSING else type(made())
                found[kind.__name__] = _fields(kind)
    return found


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


if __name__ == "__main__":
    for title, classes in (("settings", settings()), ("in their tuning=", tunings())):
        for name, fields in classes.items():
            sys.stdout.write(f"{name:18}{len(fields):4}  {', '.join(fields)}\n")
        sys.stdout.write(f"{title:18}{sum(map(len, classes.values())):4}\n\n")
