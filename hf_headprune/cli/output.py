"""The folder that a command fills: written under a staging name, and renamed when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from hf_headprune.errors import InvalidSettingError
from hf_headprune.shrink.saved_plan import PLAN_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONFIG_NAME = "config.json"
LADDER_NAME = "headprune_ladder.json"


def writable(path: Path | None) -> Path | None:
    """Sees that a file can be written, before the work whose results it is to hold; returns the path.

    Raises:
        InvalidSettingError: It can't.
    """
    if path is None:
        return None
    if path.exists():
        is_open = not path.is_dir() and os.access(path, os.W_OK)
        fault = None if is_open else "there is a folder of that name, or a file that may not be changed"
    else:
        fault = _fault_of(path.parent)
    if fault is not None:
        raise InvalidSettingError(f"{path}: it can't be written: {fault}. Choose another name.")
    return path


def new_csv(path: Path) -> Path:
    """Sees that a .csv can be written that is not there yet; returns the path.

    Raises:
        InvalidSettingError: It can't, it is there, or it is called otherwise.
    """
    if path.suffix.lower() != ".csv":
        raise InvalidSettingError(f"{path}: what is written is a .csv, and will be read as one. Name it so.")
    if path.exists():
        raise InvalidSettingError(f"{path}: there is a file of that name, perhaps with labels. Choose another name.")
    writable(path)
    return path


def _fault_of(folder: Path) -> str | None:
    """Says why nothing can be written into a folder; None where something can."""
    if not folder.is_dir():
        return f"{folder} is no folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder}: {error.strerror}"


@dataclass(frozen=True)
class OutputFolder:
    """Where the pruned model is to be.

    Attributes:
        path: The folder.
        overwrite: Whether a saved model that is there is replaced, with all else in its folder.
    """

    path: Path
    overwrite: bool = False

    def check(self, inputs: Sequence[str]) -> None:
        """Refuses a folder in which something would be lost.

        Args:
            inputs: Files, folders and names that are read.

        Raises:
            InvalidSettingError: It is a file, holds something, or an input is in it.
        """
        here = self.path.resolve()
        inside = [
            name for name in inputs if (found := Path(name)).exists() and here in (f := found.resolve(), *f.parents)
        ]
        if inside and here.exists():
            raise InvalidSettingError(f"{self.path}: {inside[0]} is read from there. Choose another output folder.")
        if here.exists() and not here.is_dir():
            raise InvalidSettingError(f"{self.path}: there is a file of that name. Choose another output folder.")
        fault = _fault_of(next(folder for folder in here.parents if folder.exists()))
        if fault is not None:
            raise InvalidSettingError(f"{self.path}: it can't be made: {fault}. Choose another output folder.")
        if not here.exists() or not any(here.iterdir()):
            return
        if not self.overwrite:
            raise InvalidSettingError(f"{self.path}: the folder is not empty. Choose another, or pass --overwrite.")
        if not any((here / name).exists() for name in (CONFIG_NAME, LADDER_NAME, PLAN_NAME)):
            raise InvalidSettingError(
                f"{self.path}: --overwrite replaces the folder of a saved model, and this one has no {CONFIG_NAME}. "
                "Choose another output folder."
            )

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yields an empty folder beside it that takes its place if the block ends without an error.

        Raises:
            InvalidSettingError: Something was written there meanwhile; what was made is kept beside it.
            OSError: It can't be written.
        """
        parent = next(folder for folder in self.path.resolve().parents if folder.is_dir())
        staging = parent / f".{self.path.resolve().name}.{uuid4().hex[:8]}.partial"  # a kill leaves it
        staging.mkdir()
        try:
            yield staging
            self._replace_by(staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _replace_by(self, staging: Path) -> None:
        target = self.path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.overwrite and target.exists() and (target.is_file() or any(target.iterdir())):
            kept = staging.rename(target.with_name(f"{target.name}-{uuid4().hex[:8]}"))
            raise InvalidSettingError(
                f"{self.path}: something was written there meanwhile, and stays. What was made is in {kept}."
            )
        old = staging.with_suffix(".replaced")
        if target.exists():
            target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
