"""Runs a script in a process of its own, for what depends on what was imported before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def fresh(script: str, *arguments: str) -> dict[str, Any]:
    """Runs a script in a process of its own; returns what it puts into `out`."""
    lines = [
        "import json, sys",
        "out = {}",
        script,
        "print()",
        "print(json.dumps(out))",
    ]  # a question may be left on the line
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
