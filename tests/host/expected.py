"""What of the host's tests is expected to fail on pruned models, and why: the one place."""

from __future__ import annotations

EXPECTED: dict[str, str] = {}


def reason_for(family: str, test: str) -> str | None:
    """Returns why a test is expected to fail, or None where it must pass."""
    return EXPECTED.get(test)
