"""Runs a script in a process of its own, for what depends on what was imported before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def fresh(
    script: str, *arguments: str, python: str | Path = sys.executable, path: Path | None = ROOT, cwd: Path | None = None
) -> dict[str, Any]:
    """Runs a script in a process of its own; returns what it puts into `out`.

    Args:
        script: Code.
        *arguments: Of it, `sys.argv[1:]`.
        python: That runs it.
        path: Folder that it may import from, besides what is installed; None lets it import from no other.
        cwd: Folder that it runs in, from which it may import, too.
    """
    places = [str(path), os.environ.get("PYTHONPATH", "")] if path is not None else []
    lines = [
        "import json, sys",
        "out = {}",
        script,
        "print()",
        "print(json.dumps(out))",
    ]  # a question may be left on the line
    done = subprocess.run(
        [str(python), "-c", "\n".join(lines), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# Runs each script in a copy of a process that has imported torch and Transformers, and nothing of this package.
COPIES = """
import os, tempfile, traceback
import torch, transformers
for name, script in json.loads(sys.argv.pop(1)).items():
    with tempfile.TemporaryFile("w+") as said:
        if os.fork() == 0:
            out = {}
            try:
                exec(script, {"sys": sys, "out": out})
                json.dump(out, said)
            except BaseException:
                traceback.print_exc()
                said.truncate(0)
            said.flush()
            os._exit(0)
        os.wait()
        said.seek(0)
        out[name] = json.loads(said.read())
"""


def fresh_each(scripts: dict[str, str], *arguments: str) -> dict[str, dict[str, Any]]:
    """Runs scripts as `fresh` does, each after `import torch, transformers`; returns what each puts into `out`."""
    return fresh(COPIES, json.dumps(scripts), *arguments)
