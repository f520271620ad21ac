"""Runs scripts in processes of their own: copies of one that has imported all they need, and done nothing else."""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import tempfile
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds
IMPORTED = (
    "accelerate",
    "datasets",
    "evaluate",
    "hf_headprune",
    "sklearn.metrics",
    "torch",
    "transformers.models.bert.modeling_bert",
    "transformers.trainer",
    __name__,
)
_COPIES: Any = get_context("forkserver")
_COPIES.set_forkserver_preload([*IMPORTED])


def run(script: str | Path, *arguments: str | Path) -> str:
    """Runs a script as Python does, and returns what it prints.

    Args:
        script: A file, or the name of a module, which runs from the folder of the project.
        *arguments: Of it, `sys.argv[1:]`.
    """
    (output,) = _ended([{}], script, arguments)
    return output


def run_here(script: str | Path, *arguments: str | Path) -> str:
    """Runs a script as `run` does, but in this process, which saves its imports; puts back what scripts set for all."""
    said, threads, verbosity = StringIO(), torch.get_num_threads(), transformers.logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.disable_progress_bar()
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        try:
            if isinstance(script, Path):
                patch.syspath_prepend(script.parent)
                runpy.run_path(str(script), run_name="__main__")
            else:
                patch.chdir(ROOT)
                import_module(script).main()
        finally:
            torch.set_num_threads(threads)
            transformers.logging.set_verbosity(verbosity)
    return said.getvalue()


def both(script: str, *arguments: str | Path) -> list[dict[str, Any]]:
    """Runs a module in two processes of a distributed run on the CPU; returns their outcomes, the first one's first.

    An outcome is a line of JSON behind OUTCOME.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **place}
    outputs = _ended([{"RANK": rank, "LOCAL_RANK": rank, **world} for rank in ("0", "1")], script, arguments)
    lines = [line for output in outputs for line in output.splitlines()]
    return [json.loads(line.partition("OUTCOME ")[2]) for line in lines if "OUTCOME " in line]


def _ended(environments: list[dict[str, str]], script: str | Path, arguments: tuple[str | Path, ...]) -> list[str]:
    """Runs a script in each environment, beside what is set here, and returns what each prints once all have ended."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name, str(number)) for number in range(len(environments))]
        processes = [
            _COPIES.Process(target=_run, args=(script, [str(it) for it in arguments], {**os.environ, **own}, file))
            for own, file in zip(environments, files, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT)
            process.kill()
            process.join()
        outputs = [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]
    codes = [process.exitcode for process in processes]
    assert not any(codes), f"{script} ended with {codes}:\n" + "\n".join(output[-6000:] for output in outputs)
    return outputs


def _run(script: str | Path, arguments: list[str], environment: dict[str, str], output: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [str(script), *arguments]
    try:
        if isinstance(script, Path):
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
        else:
            os.chdir(ROOT)
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    except BaseException as error:  # noqa: BLE001 - as Python does
        if not isinstance(error, SystemExit) or error.code:
            traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
