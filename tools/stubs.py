"""Writes `hf_headprune/__init__.pyi`, from which type checkers know the public names and the generated classes.

Run: python -m tools.stubs
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hf_headprune
from hf_headprune.shrink.prunable import class_names

STUB = Path(hf_headprune.__file__).with_suffix(".pyi")
HEAD = '"""The public names, for type checkers. Written by `python -m tools.stubs` from `__init__.py`."""'
BASES = {"PrunableConfig": "shrink.config", "PrunableModel": "shrink.prunable"}


def stub() -> str:
    """Returns the content of the stub, formatted as ruff does."""
    prunable = sorted(class_names())
    dense = [f"    {name}," for name in sorted((name.removeprefix("Prunable") for name in prunable), key=str.lower)]
    modules = {**hf_headprune._MODULES, **BASES}
    lines = [HEAD, "", "from transformers import (", *dense, ")", "", "from hf_headprune import errors as errors"]
    lines += [
        f"from hf_headprune.{module} import {name}" + ("" if name in BASES else f" as {name}")
        for module, name in sorted((module, name) for name, module in modules.items())
    ]
    lines += ["", "__version__: str", "__all__ = [", *(f'    "{name}",' for name in dir(hf_headprune)), "]", ""]
    lines += [line for name in prunable for line in _class(name)]
    return "\n".join(lines)


def _class(name: str) -> Iterator[str]:
    dense = name.removeprefix("Prunable")
    if name.endswith("Config"):
        yield f"class {name}(PrunableConfig, {dense}): ..."
    else:
        config = getattr(hf_headprune, name).config_class.__name__
        yield f"class {name}(PrunableModel, {dense}):"
        yield f"    config: {config}"
        yield f"    config_class: type[{config}]"
    yield ""


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
