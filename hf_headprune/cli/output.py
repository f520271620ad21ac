"""The folder that a command fills: written under a staging name, and renamed when it is complete."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_headprune.errors import InvalidSettingError
from hf_headprune.shrink.saved_plan import PLAN_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONFIG_NAME = "config.json"
LADDER_NAME = "headprune_ladder.json"


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
            OSError: It can't be written.
        """
        parent = next(folder for folder in self.path.resolve().parents if folder.is_dir())
        staging = parent / f".{self.path.resolve().name}.{os.getpid()}.partial"
        staging.mkdir()
        try:
            yield staging
            self._replace_by(staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _replace_by(self, staging: Path) -> None:
        target = self.path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
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
