"""Environments without this package, or with nothing of it but the built wheel, made of what is installed here.

`make journey` installs them anew and names their folder in HEADPRUNE_JOURNEY. Else an environment links to the
distributions that it is said to have, and to those that they need.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.fresh_process import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

OURS = "hf-headprune"
INSTALLED = os.environ.get("HEADPRUNE_JOURNEY")
# What each has; the wheel brings what it needs.
ENVIRONMENTS = {
    "wheel": (f"{OURS}[onnx]", "pytest"),
    "torch": ("torch", "transformers"),
    "onnx": ("onnxruntime", "transformers"),
}
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")


def python_of(environment: str, folder: Path) -> Path:
    """Returns the interpreter of an environment.

    Args:
        environment: One of `ENVIRONMENTS`.
        folder: Empty; it is made there unless `make journey` has installed it.
    """
    if INSTALLED is not None:
        return Path(INSTALLED, environment, "bin", "python")
    venv.create(folder, symlinks=True)
    places = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    packages = Path(places["purelib"])
    _link(ENVIRONMENTS[environment], packages)
    if environment == "wheel":
        zipfile.ZipFile(built_wheel(folder)).extractall(packages)
    return Path(places["scripts"], "python")


def built_wheel(folder: Path) -> Path:
    """Builds the wheel of a copy of the checkout, since building leaves files beside the source."""
    source, out = folder / "source", folder / "dist"
    source.mkdir()
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "hf_headprune", source / "hf_headprune", ignore=shutil.ignore_patterns("__pycache__"))
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([sys.executable, *words, str(out), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.glob("*.whl")
    return file


def _link(names: Iterable[str], packages: Path) -> None:
    """Links distributions, and those that they need, into a folder; this package itself is left out."""
    waiting, seen = [Requirement(name) for name in names], set()
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = distribution(name)
        for needed in map(Requirement, found.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(needed)
        tops = {file.parts[0] for file in found.files or ()} if name != OURS else set()
        for top in tops - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(found.locate_file(top)))
