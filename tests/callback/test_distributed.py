"""Two processes on the CPU (gloo): the same decisions in each, and what one process finds."""

import json

import pytest

from tests.support.classifiers import classifier
from tests.support.processes import both
from tests.support.shared_search_script import evaluator_of, searched

pytestmark = pytest.mark.slow

MODES = ["gates", "movement", "second_order", "default", "seen drop", "own number"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of each mode's run, and what both processes ended with."""
    folder = tmp_path_factory.mktemp("trained")
    outcomes = both("tests.support.distributed_script", folder)
    return folder, {mode: [outcome for outcome in outcomes if outcome["mode"] == mode] for mode in MODES}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return both("tests.support.shared_search_script", tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_take_the_same_decisions(trained, mode):
    folder, outcomes = trained
    first, second = outcomes[mode]
    assert first["world"] == 2
    assert first.pop("rank") != second.pop("rank")
    assert (first.pop("certifies"), second.pop("certifies")) == (mode in ("default",), False)
    assert first == second
    assert sum(map(len, first["kept"])) < 8 + 128
    searches = mode in ("gates", "movement", "second_order")
    assert len(set(first["scores"])) > 1 or mode not in ("gates", "movement")
    assert [path.name for path in (folder / mode).glob("_headprune_search*")] == ["_headprune_search.jsonl"] * searches


def test_two_processes_share_the_examples_of_a_search_and_find_what_one_finds(shared):
    alone, examples = searched(classifier(), None)
    first, second = shared
    assert first["history"] == second["history"] == json.loads(json.dumps(alone))
    assert len(alone) == 30
    assert (first["has_journal"], second["has_journal"]) == (True, False)
    assert max(first["examples"], second["examples"]) < 0.8 * examples


@pytest.mark.parametrize("failing", ["0", "1", "01"])
def test_what_one_process_can_not_evaluate_no_process_waits_for(shared, failing):
    for rank, outcome in enumerate(shared):
        if str(rank) in failing:
            assert outcome[f"error, {failing}"] == "OSError: the disk is gone"
        else:
            error = outcome[f"error, {failing}"]
            assert error.startswith("RuntimeError: Another process failed while the processes shared")
            assert f"process {1 - rank}: OSError('the disk is gone')" in error


def test_what_the_first_process_computes_or_raises_reaches_all(shared):
    assert [outcome["by first"] for outcome in shared] == ["said by 0"] * 2
    assert shared[0]["error by first"] == "ZeroDivisionError: division by zero"
    assert shared[1]["error by first"].startswith("RuntimeError: The first process failed: ZeroDivisionError")


@pytest.mark.parametrize("batch_size", [60, 7])
def test_two_processes_refit_on_every_token_once(shared, batch_size):
    alone = evaluator_of(classifier(), batch_size=batch_size).refit
    for outcome in shared:
        expected = sorted(block.tokens for block in alone.blocks.values())
        assert outcome[f"tokens, {batch_size}"] == pytest.approx(expected, rel=1e-5)
