"""What a verification found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

Level = Literal["counts", "examples", "models", "fingerprints"]
TOLERANCE = 2e-6  # of probabilities and bounds, whose last digits hang on the version of scipy


@dataclass(frozen=True)
class Finding:
    """Something that does not fit.

    Attributes:
        level: Where it was found.
        name: What differs, such as "pruned weights" or "label".
        text: In words.
    """

    level: Level
    name: str
    text: str


@dataclass
class Verification:
    """Outcome of a verification.

    Attributes:
        verdict: What the certificate says.
        findings: All that does not fit; none if the certificate holds.
        notes: Differences that the certificate survives.
        checked: What was checked.
        skipped: What could not be checked, with its reason.
        on_trust: What no check can derive: only who made the certificate knows it.
    """

    verdict: str = ""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    on_trust: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing that was checked contradicts the certificate."""
        return not self.findings

    def join(self, other: Verification, scope: str) -> None:
        """Adds what a verification of a part found, each entry once."""
        where = f" ({scope})" if scope else ""
        self.findings += [replace(finding, text=finding.text + where) for finding in other.findings]
        for name in ("notes", "checked", "skipped", "on_trust"):
            mine = getattr(self, name)
            entries = [f"{entry}{where}" if name in ("notes", "checked") else entry for entry in getattr(other, name)]
            mine += [entry for entry in dict.fromkeys(entries) if entry not in mine]

    def to_text(self) -> str:
        """Returns the outcome in lines of text."""
        says = f" It says {self.verdict}." if self.verdict else ""
        lines = [f"The certificate holds.{says}" if self.holds else "THE CERTIFICATE DOES NOT HOLD."]
        lines += [f"differs ({finding.level}): {finding.name}: {finding.text}" for finding in self.findings]
        entries = {"note": self.notes, "checked": self.checked, "not checked": self.skipped, "on trust": self.on_trust}
        lines += [f"{title}: {entry}" for title, texts in entries.items() for entry in texts]
        return "\n".join(lines)

    def add(self, level: Level, name: str, text: str) -> None:
        """Adds a finding."""
        self.findings.append(Finding(level, name, text))


def close(first: float, second: float) -> bool:
    """Tells whether two numbers are the same, but for rounding."""
    return math.isclose(first, second, rel_tol=0, abs_tol=TOLERANCE)
