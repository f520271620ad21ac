"""Writes `hf_headprune/__init__.pyi`, from which type checkers know the public names and the generated classes.

Run: python -m tools.stubs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import hf_headprune
from hf_headprune.shrink.prunable import class_names

STUB = Path(hf_headprune.__file__).with_suffix(".pyi")
HEAD = '"""The public names, for type checkers. Written by `python -m tools.stubs`: change that, or `__init__.py`."""'


def stub() -> str:
    """Returns the content of the stub, as ruff formats it."""
    written = {name: module for name, module in hf_headprune._MODULES.items() if module != "errors"}
    dense = sorted(name.removeprefix("Prunable") for name in class_names())
    lines = [HEAD, "", "from transformers import (", *(f"    {name}," for name in dense), ")", ""]
    lines += ["from hf_headprune import errors as errors"]
    for module in sorted({*written.values(), "errors", "shrink.config", "shrink.prunable"}):
        lines += _imports(module, sorted(name for name, home in hf_headprune._MODULES.items() if home == module))
    lines += ["", "__version__: str", "__all__ = [", *(f'    "{name}",' for name in dir(hf_headprune)), "]"]
    for name in class_names():
        lines += ["", *_class(name)]
    return "\n".join(lines) + "\n"


def _imports(module: str, names: list[str]) -> Iterator[str]:
    names += {"shrink.config": ["PrunableConfig"], "shrink.prunable": ["PrunableModel"]}.get(module, [])
    for name in names:
        yield f"from hf_headprune.{module} import {name} as {name}"


def _class(name: str) -> Iterator[str]:
    dense = name.removeprefix("Prunable")
    if name.endswith("Config"):
        yield f"class {name}(PrunableConfig, {dense}): ..."
        return
    (config,) = {base.config_class.__name__ for base in [getattr(hf_headprune, name)]}
    yield f"class {name}(PrunableModel, {dense}):"
    yield f"    config: {config}"
    yield f"    config_class: type[{config}]"


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
    sys.stdout.write(f"{STUB.relative_to(Path.cwd())}\n")
