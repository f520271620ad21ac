"""The folder that a command fills: written under a staging name, and renamed when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from safetensors import SafetensorError

from hf_headprune._beside_weights import CONFIG_NAME
from hf_headprune.errors import InvalidSettingError
from hf_headprune.pipeline.budget import MB
from hf_headprune.shrink.saved_plan import PLAN_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LADDER_NAME = "headprune_ladder.json"
REPLACED = ".replaced"


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
        self._check_place(here)
        if not here.exists() or not any(here.iterdir()):
            return
        if not self.overwrite:
            raise InvalidSettingError(f"{self.path}: the folder is not empty. Choose another, or pass --overwrite.")
        if not any((here / name).exists() for name in (CONFIG_NAME, LADDER_NAME, PLAN_NAME)):
            raise InvalidSettingError(
                f"{self.path}: --overwrite replaces the folder of a saved model, and this one has no {CONFIG_NAME}. "
                "Choose another output folder."
            )

    def _check_place(self, here: Path) -> None:
        """Refuses what can't become a folder of ours at the end."""
        if here.exists() and not here.is_dir():
            raise InvalidSettingError(f"{self.path}: there is a file of that name. Choose another output folder.")
        if here.is_mount():
            raise InvalidSettingError(
                f"{self.path}: it is a mount point, which can't be replaced as a whole. Name a folder in it, such as "
                f"{self.path / 'model'}."
            )
        killed = [] if here.exists() else sorted(here.parent.glob(f".{escape(here.name)}.*{REPLACED}"))
        if killed:
            raise InvalidSettingError(
                f"{self.path}: a run was killed while it replaced this folder. What was there is in {killed[0]}: move "
                "it back, or remove it."
            )
        fault = _fault_of(next(folder for folder in here.parents if folder.exists()))
        if fault is not None:
            raise InvalidSettingError(f"{self.path}: it can't be made: {fault}. Choose another output folder.")

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yields an empty folder beside it that takes its place if the block ends without an error.

        Raises:
            InvalidSettingError: It can't be written; or it can't be put in its place, where something was written
                meanwhile: then what was made is kept beside it.
        """
        staging = self._parent / f".{self.path.resolve().name}.{uuid4().hex[:8]}.partial"  # a kill leaves it
        staging.mkdir()
        try:
            yield staging
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, (OSError, SafetensorError)):
                raise self._without_room(f"it can't be written: {error}") from error
            raise
        self._replace_by(staging)

    def check_space(self, size: int) -> None:
        """Refuses a disk without room for the model that is pruned; what is written is smaller, with files beside it.

        Args:
            size: Bytes of that model.

        Raises:
            InvalidSettingError: Fewer are free.
        """
        if shutil.disk_usage(self._parent).free < size:
            raise self._without_room(f"the model has {size / MB:.1f} MB")

    @property
    def _parent(self) -> Path:
        """The folder that it will be in, as far as there is one."""
        return next(folder for folder in self.path.resolve().parents if folder.is_dir())

    def _without_room(self, problem: str) -> InvalidSettingError:
        free = shutil.disk_usage(self._parent).free / MB
        return InvalidSettingError(
            f"{self.path}: {problem}. {free:.1f} MB are free in {self._parent}. Make room there, or choose another "
            "output folder."
        )

    def _replace_by(self, staging: Path) -> None:
        target = self.path.resolve()
        spare = target.with_name(f"{target.name}-{uuid4().hex[:8]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.overwrite and target.exists() and (target.is_file() or any(target.iterdir())):
            staging.rename(spare)
            raise InvalidSettingError(
                f"{self.path}: something was written there meanwhile, and stays. What was made is in {spare}."
            )
        old = staging.with_suffix(REPLACED)
        try:
            if target.exists():
                target.rename(old)
            staging.rename(target)
        except OSError as error:
            if old.exists():
                old.rename(target)
            staging.rename(spare)
            raise InvalidSettingError(
                f"{self.path}: it can't be replaced: {error.strerror}. What was made is in {spare}."
            ) from error
        shutil.rmtree(old, ignore_errors=True)
