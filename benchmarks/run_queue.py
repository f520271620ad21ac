"""A queue of training runs that a killed benchmark takes up again and that several processes share."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np

from benchmarks.results_file import read_json, write_json

R = TypeVar("R")


def key_of(run: Any) -> str:
    """Returns the name of a run's file: the values of its fields."""
    names = ("--".join(map(str, asdict(run).values()))).replace("*", "star")
    return names.replace(" ", "_").replace("/", "_")


@dataclass(frozen=True)
class RunQueue(Generic[R]):
    """Runs, the cache of finished ones, and the committed result file, whose runs count as finished too.

    Attributes:
        runs: Dataclasses of texts and numbers, in the order in which they are taken.
        work: Folder of the cache.
        result: Committed result file.
    """

    runs: tuple[R, ...]
    work: Path
    result: Path

    def work_through(
        self,
        perform: Callable[[R], dict[str, Any]],
        *,
        can_start: Callable[[R], bool] = lambda run: True,
        source_of: Callable[[R], R | None] = lambda run: None,
        model_of: Callable[[R], Path | None] = lambda run: None,
    ) -> None:
        """Takes runs that nobody has taken until none is left.

        A finished run is done again where its model is gone and an unfinished one needs it.

        Args:
            perform: Does a run; returns at least `test`, and `dev` where it has looked at it.
            can_start: Whether a run may be taken now.
            source_of: The run whose model or result another one needs, or None.
            model_of: The folder in which a run leaves its model for others, or None where it leaves none.
        """
        published = self.published()
        for run in self.runs:
            key = key_of(run)
            with (self.work / f"{key}.lock").open("w") as lock:
                if _taken(lock) or not can_start(run) or not self._is_there(source_of(run), model_of, published):
                    continue
                folder = model_of(run)
                is_gone = folder is not None and not has_model(folder) and self._is_awaited(run, source_of, published)
                if is_gone or not self._has_finished(run, published):
                    result = {**asdict(run), **perform(run)}
                    write_json(self.work / f"{key}.json", result)
                    scores = (f"{split} {result[split]:.2f}" for split in ("dev", "test") if split in result)
                    print(key, *scores, flush=True)

    def published(self) -> dict[str, dict[str, Any]]:
        """Returns the runs of the committed result file by their keys; a field that came later has its default."""
        kind = type(self.runs[0])
        results = read_json(self.result).get("runs", [])
        return {key_of(kind(**{name: r[name] for name in kind.__dataclass_fields__ if name in r})): r for r in results}  # type: ignore[attr-defined]

    def finished(self) -> list[dict[str, Any]]:
        """Returns the results of all finished runs, those of the committed file first."""
        published = self.published()
        found = (published.get(key) or read_json(self.work / f"{key}.json") for key in map(key_of, self.runs))
        return [result for result in found if result]

    def result_of(self, run: R) -> dict[str, Any]:
        """Returns the result of a run, whether it is in the queue or not; empty where it has not finished."""
        return read_json(self.work / f"{key_of(run)}.json") or self.published().get(key_of(run), {})

    def _has_finished(self, run: R, published: Container[str]) -> bool:
        """Tells whether a run has its result, given the keys of those in the committed file."""
        key = key_of(run)
        return key in published or (self.work / f"{key}.json").exists()

    def _is_there(self, source: R | None, model_of: Callable[[R], Path | None], published: Container[str]) -> bool:
        """Tells whether what a run needs of its source is there: its model, or its result where it leaves none."""
        if source is None:
            return True
        folder = model_of(source)
        return self._has_finished(source, published) if folder is None else has_model(folder)

    def _is_awaited(self, run: R, source_of: Callable[[R], R | None], published: Container[str]) -> bool:
        """Tells whether an unfinished run needs another one, its source."""
        return any(source_of(other) == run and not self._has_finished(other, published) for other in self.runs)


def has_model(folder: Path) -> bool:
    """Tells whether a folder holds a saved model."""
    return (folder / "config.json").exists()


def summary(results: Iterable[dict[str, Any]], by: tuple[str, ...], measures: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns mean, values and standard deviation over seeds for each cell.

    Args:
        results: Of runs with a `seed`.
        by: Names of what makes a cell.
        measures: Names of what is averaged, where a run has it.
    """
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        cells.setdefault(tuple(result[name] for name in by), []).append(result)
    rows = []
    for cell, runs in cells.items():
        row: dict[str, Any] = dict(zip(by, cell, strict=True)) | {"seeds": [run["seed"] for run in runs]}
        for name in measures:
            values = [run[name] for run in runs if name in run]
            if values:
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                row[name] = {"mean": float(np.mean(values)), "values": values, "standard_deviation": spread}
        rows.append(row)
    return rows


def _taken(lock: IO[str]) -> bool:
    """Tells whether another process works on a run; a lock ends with its process, however that ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
