"""State of a search on disk: one line per evaluation, appended and synchronised before the search goes on."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_headprune.errors import SearchStateError
from hf_headprune.search.problem import Measurement, to_mask, units_of

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL_FORMAT = "hf_headprune.search/3"


def fingerprint_of(content: Any) -> str:
    """Returns the sha256 of JSON-able content, independent of the order of its keys; numpy's numbers are welcome."""
    text = json.dumps(content, sort_keys=True, default=lambda number: number.item())
    return hashlib.sha256(text.encode()).hexdigest()


def set_aside(file: Path) -> Path:
    """Renames a file to the first free name with the ending `.bak`, `.bak2`, ...; returns the new path."""
    number = 1
    while (target := file.with_name(f"{file.name}.bak{'' if number == 1 else number}")).exists():
        number += 1
    return file.rename(target)


class Journal:
    """Measurements of a search, kept in an append-only file.

    The first line says which search the file belongs to. A search that was killed while a line was being written
    leaves a last line without an end; it is dropped. Every other damage is an error.

    Attributes:
        path: Of the file.
        exact: Metrics of the sets that were measured exactly when the file was opened, by the mask of the set.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Opens a journal, or starts one.

        Args:
            path: Of the file; its folder is created.
            fingerprint: Of everything that decides the course of the search.

        Raises:
            SearchStateError: The file belongs to another search, is damaged, or is no journal.
        """
        self.path = path
        self.exact: dict[int, float] = {}
        self._places: dict[tuple[int, bool], int] = {}  # of (set, whether a confirmation), in bytes from the start
        if path.is_dir():
            raise SearchStateError(f"{path}: a journal is a file, and this is a folder. Pass a path inside of it.")
        header = _line({"format": JOURNAL_FORMAT, "fingerprint": fingerprint})
        content = path.read_bytes() if path.exists() else b""
        complete, newline, _ = content.rpartition(b"\n")
        if not newline:
            if not header.startswith(content):
                raise SearchStateError(
                    f"{path}: the first line must be the header of a search journal, received {content[:60]!r}. "
                    "Pass the path of a journal or of a file that does not exist yet."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            self._append(header)
            return
        lines = complete.split(b"\n")
        self._check_header(lines[0], fingerprint)
        place = len(lines[0]) + 1
        for number, line in enumerate(lines[1:], start=2):
            key, measurement = self._read(line, number)
            self._places[key] = place
            if measurement.kind == "exact":
                self.exact[key[0]] = measurement.metric
            place += len(line) + 1
        if len(complete) + 1 < len(content):
            with path.open("r+b") as file:
                file.truncate(len(complete) + 1)

    def __len__(self) -> int:
        """Measurements in the journal."""
        return len(self._places)

    def get(self, mask: int, *, confirmed: bool = False) -> Measurement | None:
        """Returns the first measurement of a set or its confirmation, or None where it has not been made."""
        place = self._places.get((mask, confirmed))
        if place is None:
            return None
        with self.path.open("rb") as file:  # margins stay on disk until they are asked for
            file.seek(place)
            _, measurement = self._read(file.readline(), number=None)
        return measurement

    def add(self, mask: int, measurement: Measurement, *, confirmed: bool = False) -> None:
        """Writes a measurement; it is on disk when this returns."""
        margins = measurement.margins
        encoded = None if margins is None else base64.b64encode(margins.astype("<f4").tobytes()).decode()
        entry = {"removed": units_of(mask), "metric": measurement.metric, "kind": measurement.kind, "margins": encoded}
        self._places[mask, confirmed] = self._append(_line({**entry, "confirmed": confirmed}))

    def _append(self, line: bytes) -> int:
        """Writes a line and returns its place in the file."""
        with self.path.open("ab") as file:
            place = file.tell()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return place

    def _check_header(self, line: bytes, fingerprint: str) -> None:
        header = self._content(line, 1)
        if header.get("format") != JOURNAL_FORMAT:
            raise SearchStateError(
                f"{self.path}: format must be {JOURNAL_FORMAT!r}, received {header.get('format')!r}. Pass the path of "
                "a journal or of a file that does not exist yet."
            )
        if header.get("fingerprint") != fingerprint:
            raise SearchStateError(
                f"{self.path}: the journal belongs to another search (fingerprint {header.get('fingerprint')!r}, this "
                f"search has {fingerprint!r}): the units, the settings, the start, the scores, the weights or the data "
                "differ. Continue with the same ones, or pass a path that does not exist yet."
            )

    def _read(self, line: bytes, number: int | None) -> tuple[tuple[int, bool], Measurement]:
        entry = self._content(line, number)
        try:
            encoded = entry["margins"]
            margins = None if encoded is None else np.frombuffer(base64.b64decode(encoded), dtype="<f4")
            found = Measurement(float(entry["metric"]), margins, kind=entry["kind"])
            return (to_mask(entry["removed"]), entry["confirmed"]), found
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(number, repr(error)) from error

    def _content(self, line: bytes, number: int | None) -> dict[str, Any]:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number, "it is not JSON, or nested too deep") from error
        if not isinstance(content, dict) or content.pop("crc32", None) != _checksum(content):
            raise self._damaged(number, "its checksum does not match")
        return content

    def _damaged(self, number: int | None, reason: str) -> SearchStateError:
        if number is None:
            return SearchStateError(
                f"{self.path}: the journal has changed while the search ran: {reason}. Let one process write it."
            )
        return SearchStateError(
            f"{self.path}, line {number}: the journal is damaged: {reason}. Delete this line and all that follow to "
            "continue from there, or pass a path that does not exist yet."
        )


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _line(content: dict[str, Any]) -> bytes:
    plain = json.loads(json.dumps(content))
    return json.dumps({**plain, "crc32": _checksum(plain)}).encode() + b"\n"
