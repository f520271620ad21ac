"""Runs the package's own tests that have one case per family, and keeps for each family what passed.

`tools.families_page` reads what is kept, and what `tools.host_suite` keeps of the host's tests.

Run: python -m tools.family_tests
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

from hf_headprune.families import FAMILIES
from tools.host_suite import read_outcomes

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "build" / "family_tests.xml"
RESULTS = ROOT / "benchmarks" / "results" / "family_tests.json"
FILES = (
    "tests/foundation/test_families.py",
    "tests/foundation/test_family_capabilities.py",
    "tests/shrink/test_remote_code.py",
)


def family_of(case: str) -> str | None:
    """Returns the family that a case of a test is of, such as "test_gates[xlm-roberta-eager]", or None."""
    values = case.partition("[")[2].removesuffix("]")
    fitting = [name for name in FAMILIES if values == name or values.startswith(f"{name}-")]
    return max(fitting, key=len, default=None)


def counts(outcomes: dict[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    """Returns for each family and each test how many cases passed, were skipped, and failed."""
    found: dict[str, dict[str, Counter[str]]] = {name: {} for name in FAMILIES}
    for case, message in outcomes.items():
        family = family_of(case)
        if family is not None:
            outcome = message if message in ("passed", "skipped") else "failed"
            found[family].setdefault(case.partition("[")[0], Counter())[outcome] += 1
    return {name: {test: dict(count) for test, count in sorted(tests.items())} for name, tests in found.items()}


def main() -> int:
    """Runs the tests and writes the file; returns 1 if one fails."""
    REPORT.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={REPORT}", *FILES]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    found = {"transformers": metadata.version("transformers"), "families": counts(read_outcomes(REPORT))}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
