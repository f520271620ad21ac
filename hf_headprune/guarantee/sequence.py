"""Several candidates, one level: fixed-sequence testing, and a ledger for a split that is used more than once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from hf_headprune._checks import is_number, is_whole
from hf_headprune._strict_json import LARGEST, parse, path_of, read, read_text
from hf_headprune.errors import CertificateError, InvalidSettingError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LEDGER_FORMAT = "hf_headprune.alpha_ledger/1"

T = TypeVar("T")


def last_certified(p_values: Iterable[float], level: float) -> int | None:
    """Tests hypotheses in a fixed order, each at the full level, and stops at the first that is not rejected.

    The chance that any hypothesis is rejected wrongly is at most `level`, however many there are and however they
    depend on each other: a wrong rejection needs one at the first true hypothesis. The order must not depend on the
    data of the test; a search that ran on another split may choose it.

    Args:
        p_values: In the order of the tests; read one by one, so that a generator computes no more than are needed.
        level: To test at.

    Returns:
        Index of the last rejected hypothesis, or None where already the first holds out.

    Source:
        Angelopoulos et al., Learn then Test, arXiv 2110.01052, section 3 (fixed-sequence testing).
    """
    last = None
    for index, p in enumerate(p_values):
        if not p <= level:
            break
        last = index
    return last


def evenly_spaced(candidates: Sequence[T], count: int) -> tuple[T, ...]:
    """Returns few of many candidates, evenly spaced in their order, the last one always among them.

    Neighbours on a path are tested on nearly the same examples: a step more costs the chance of stopping early and
    gains little.

    Args:
        candidates: From the least pruned to the most.
        count: How many to take at most.

    Raises:
        InvalidSettingError: The count is below one.
    """
    if not is_whole(count, at_least=1) or not isinstance(candidates, (Sequence, str)):
        raise InvalidSettingError(
            f"evenly_spaced: candidates must be a sequence, received {shown(candidates)}, and count a whole number of "
            f"at least 1, received {shown(count)}."
        )
    count = min(count, len(candidates))
    return tuple(candidates[(number + 1) * len(candidates) // count - 1] for number in range(count))


def alpha_of_use(alpha: float, use: int) -> float:
    """Returns what the k-th use of a certification split may spend, so that all its uses together stay below alpha.

    Args:
        alpha: For all uses together.
        use: Number of this use, from one.

    Raises:
        InvalidSettingError: The number is below one.
    """
    if not (is_number(alpha) and 0 < alpha < 1) or not is_whole(use, at_least=1) or use > LARGEST:
        raise InvalidSettingError(
            f"alpha_of_use: alpha must be in (0, 1), and use counts from 1, received {shown(alpha)} and {shown(use)}."
        )
    return 6.0 * alpha / (math.pi * use) ** 2


@dataclass(frozen=True)
class LedgerEntry:
    """One use of a certification split.

    Attributes:
        split: sha256 of the split.
        use: Number of the use of this split, from one.
        alpha: What all uses of the split together may spend.
        spent: What this use may spend.
        purpose: In words.
    """

    split: str
    use: int
    alpha: float
    spent: float
    purpose: str


class AlphaLedger:
    """File of the uses of certification splits; one line per use, only ever appended to.

    A split that is asked again, after its answer has been seen, needs a share of alpha for each question. The k-th use
    gets 6 alpha / (pi k)^2; these shares sum to alpha.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens a ledger; a file that does not exist yet is started with the first use.

        Raises:
            CertificateError: The file is no ledger, or a line of it is damaged.
        """
        self.path = path_of(path, "AlphaLedger")
        self._entries = self._read()

    def uses(self, split: str) -> tuple[LedgerEntry, ...]:
        """Returns the uses of a split so far, in their order."""
        return tuple(entry for entry in self._entries if entry.split == split)

    def spend(self, split: str, alpha: float, purpose: str = "") -> LedgerEntry:
        """Records a use of a split, before its outcome is known; it is on disk when this returns.

        Args:
            split: sha256 of the split.
            alpha: For all uses together; the same each time.
            purpose: In words, such as the name of the model.

        Raises:
            CertificateError: An earlier use of the split was made with another alpha, or the file is damaged by now.
        """
        if not isinstance(split, str) or not isinstance(purpose, str):
            raise InvalidSettingError(
                f"AlphaLedger: split and purpose must be texts, received {shown(split)} and {shown(purpose)}."
            )
        alpha_of_use(alpha, 1)  # refuses what is no share
        self._entries = self._read()  # another ledger of this file may have written
        earlier = self.uses(split)
        if any(entry.alpha != alpha for entry in earlier):
            raise CertificateError(
                f"AlphaLedger {self.path}: all uses of a split share one alpha, that of split {split[:12]} is "
                f"{earlier[0].alpha}, received {alpha}. Keep the confidence, or certify on another split."
            )
        use = len(earlier) + 1
        entry = LedgerEntry(split, use, alpha, alpha_of_use(alpha, use), purpose)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read(1) not in (b"", b"\n"):  # an editor may have taken the end of the last line
                file.write(b"\n")
            file.write(json.dumps({"format": LEDGER_FORMAT, **asdict(entry)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries = self._read()  # refuses what two processes that spend at once have written
        return entry

    def _read(self) -> list[LedgerEntry]:
        if not self.path.exists():
            return []
        entries: list[LedgerEntry] = []
        for number, line in enumerate(read_text(self.path).splitlines(), 1):
            entries.append(self._entry(number, line))
            use, expected = entries[-1].use, sum(entry.split == entries[-1].split for entry in entries)
            if use != expected:
                raise CertificateError(
                    f"{self.path}, line {number}: it must be use {expected} of its split, received use {use}: what "
                    "was spent is more than the ledger says. Certify on another split."
                )
        return entries

    def _entry(self, number: int, line: str) -> LedgerEntry:
        where = f"{self.path}, line {number}"
        try:
            content = parse(line, where)
            named = content.pop("format", None) if isinstance(content, dict) else None
            if named != LEDGER_FORMAT:
                raise CertificateError(f"format must be {LEDGER_FORMAT!r}, received {shown(named)}")
            entry = read(LedgerEntry, content, where)
            if entry.spent != alpha_of_use(entry.alpha, entry.use):
                raise CertificateError("its share is not that of its use")
        except (CertificateError, InvalidSettingError) as error:
            raise CertificateError(
                f"{where}: no line of an alpha ledger: {error} Pass the path of a ledger, or of a file that does not "
                "exist yet; a damaged ledger can't be continued."
            ) from error
        return entry
