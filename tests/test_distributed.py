import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("chosen_by", ["gates", "second_order"])
def test_two_processes_learn_the_same_scores_and_cut_the_same_heads(tmp_path, chosen_by):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "tests.distributed_script", str(tmp_path), chosen_by],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition("OUTCOME ")[2] for line in done.stdout.splitlines() if "OUTCOME " in line]
    first, second = sorted((json.loads(line) for line in lines), key=lambda outcome: outcome["rank"])
    assert first["world"] == 2
    assert first.pop("rank") != second.pop("rank")
    assert first == second
    assert first["heads"] <= 5
    assert len(set(first["scores"])) > 1 or chosen_by == "second_order"
