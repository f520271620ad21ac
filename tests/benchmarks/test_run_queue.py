"""The queue of the benchmarks: nothing is done twice, and a model that is gone is made again where needed."""

from dataclasses import dataclass

from benchmarks.results_file import write_json
from benchmarks.run_queue import RunQueue, key_of


@dataclass(frozen=True)
class Run:
    name: str
    seed: int


DENSE, CUT = Run("dense", 0), Run("cut", 0)


def worked(queue, work):
    """Works through a queue whose cut model needs the dense one; returns what was done."""
    done = []

    def perform(run):
        done.append(run)
        if run == DENSE:
            write_json(work / "model" / "config.json", {})
        return {"dev": 1.0, "test": 1.0}

    queue.work_through(
        perform,
        source_of=lambda run: DENSE if run == CUT else None,
        model_of=lambda run: work / "model" if run == DENSE else None,
    )
    return done


def test_a_finished_run_is_not_done_again_here_or_where_its_result_is_committed(tmp_path):
    result = tmp_path / "result.json"
    queue = RunQueue((DENSE, CUT), tmp_path, result)
    assert worked(queue, tmp_path) == [DENSE, CUT]
    assert worked(queue, tmp_path) == []
    write_json(result, {"runs": queue.finished()})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = RunQueue((DENSE, CUT), elsewhere, result)
    assert worked(again, elsewhere) == []
    assert again.finished() == queue.finished()


def test_a_model_that_is_gone_is_made_again_where_an_unfinished_run_needs_it(tmp_path):
    result = tmp_path / "result.json"
    write_json(result, {"runs": [{"name": "dense", "seed": 0, "dev": 2.0, "test": 2.0}]})
    queue = RunQueue((DENSE, CUT), tmp_path, result)
    assert worked(queue, tmp_path) == [DENSE, CUT]
    assert queue.finished()[0]["dev"] == 2.0  # the committed result stays


def test_a_run_waits_for_the_result_of_its_source(tmp_path):
    source, needs_it = Run("source", 0), Run("needs it", 0)
    done = []

    def perform(run):
        done.append(run)
        return {"dev": 1.0, "test": 1.0}

    def source_of(run):
        return source if run == needs_it else None

    RunQueue((needs_it,), tmp_path, tmp_path / "none").work_through(perform, source_of=source_of)
    assert done == []
    RunQueue((source, needs_it), tmp_path, tmp_path / "none").work_through(perform, source_of=source_of)
    assert done == [source, needs_it]
    assert (tmp_path / f"{key_of(needs_it)}.json").exists()
