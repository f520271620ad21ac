"""Modules of the package evaluate that a test writes to disk."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PACKAGE = "evaluate_modules"


@contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """Lets evaluate keep what it loads in a folder of the test's own, and forget it afterwards.

    It copies modules into a package of one fixed name: another test's would be searched in its place.
    """
    evaluate = pytest.importorskip("evaluate", reason="the extra `examples` brings it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(sys, "path", [path for path in sys.path if not Path(path, PACKAGE).exists()])
        _forget()
        yield
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
