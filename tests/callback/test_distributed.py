import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.classifiers import classifier
from tests.support.shared_search_script import evaluator_of, searched

ROOT = Path(__file__).parents[2]


def both(*command):
    """What each of two processes printed, the first one's first."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*launcher, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition("OUTCOME ")[2] for line in done.stdout.splitlines() if "OUTCOME " in line]
    return sorted((json.loads(line) for line in lines), key=lambda outcome: outcome["rank"])


@pytest.mark.parametrize("chosen_by", ["gates", "movement", "second_order"])
def test_two_processes_learn_the_same_scores_and_cut_the_same_heads(tmp_path, chosen_by):
    first, second = both("tests.support.distributed_script", tmp_path, chosen_by)
    assert first["world"] == 2
    assert first.pop("rank") != second.pop("rank")
    for name in ("scores", "weights"):  # sums, whose last bits may differ
        assert first[name] == pytest.approx(second.pop(name), rel=1e-5, abs=1e-7)
    assert {name: value for name, value in first.items() if name in second} == second
    assert first["heads"] <= 5
    assert max(first["scores"], default=0.0) > min(first["scores"], default=-1.0)
    assert [path.name for path in tmp_path.glob("headprune_search*")] == ["headprune_search.jsonl"]


def test_two_processes_share_the_examples_of_a_search_and_find_what_one_finds(tmp_path):
    alone, examples = searched(classifier(), None)
    first, second = both("tests.support.shared_search_script", tmp_path, "search")
    assert first["history"] == second["history"] == json.loads(json.dumps(alone))
    assert len(alone) == 30
    assert (first["has_journal"], second["has_journal"]) == (True, False)
    assert max(first["examples"], second["examples"]) < 0.8 * examples


@pytest.mark.parametrize("failing", ["0", "1", "01"])
def test_what_one_process_can_not_evaluate_no_process_waits_for(tmp_path, failing):
    outcomes = both("tests.support.shared_search_script", tmp_path, "fail", failing)  # both meet once more at the end
    for rank, outcome in enumerate(outcomes):
        if str(rank) in failing:
            assert outcome["error"] == "OSError: the disk is gone"
        else:
            assert outcome["error"].startswith("RuntimeError: Another process failed while the processes shared")
            assert f"process {1 - rank}: OSError('the disk is gone')" in outcome["error"]


@pytest.mark.parametrize("batch_size", [60, 7])  # one batch, which every process records, and nine to be shared
def test_two_processes_refit_on_every_token_once(tmp_path, batch_size):
    alone = evaluator_of(classifier(), batch_size=batch_size).refit
    for outcome in both("tests.support.shared_search_script", tmp_path, "refit", batch_size):
        assert outcome["tokens"] == pytest.approx(sorted(block.tokens for block in alone.blocks.values()), rel=1e-5)
