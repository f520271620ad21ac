"""Every benchmark runs with --smoke, from the folder of the project, on toy data and a narrow model."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import goals, memory_cost, other_tasks, search_ablation
from hf_headprune import latency
from tests.examples.test_examples import load
from tests.support.models import save_narrow_minilm
from tests.support.processes import run, run_here

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IN_A_PROCESS = ("benchmarks.memory_cost",)  # measures copies of itself


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Runs a benchmark with --smoke and returns what it prints."""
    data, model = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("model")
    save_narrow_minilm(model)
    (data / "squad_v1_dev").mkdir()
    load("question_answering").smoke_arguments(data / "squad_v1_dev")
    draws = np.random.default_rng(0)
    for name, columns, classes in (("sst2", ["sentence"], 2), ("snli", ["sentence1", "sentence2"], 3)):
        (data / name).mkdir()
        for split in ("train", "dev", "test"):
            words = draws.choice(["a film", "the play", "no book", "every song"], (160, len(columns)))
            rows = [  # the number keeps the splits apart
                "\t".join([*row[:-1], f"{row[-1]} of {split} {number}", str(draws.integers(classes))])
                for number, row in enumerate(words)
            ]
            lines = ["\t".join([*columns, "label"]), *rows, ""]
            (data / name / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DATA": data, "MODEL": model}.items():
            patch.setenv(f"HEADPRUNE_{name}", str(value))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield lambda module, *arguments: (run if module in IN_A_PROCESS else run_here)(module, "--smoke", *arguments)


def test_the_accuracy_benchmark_runs_with_smoke_and_goes_on_where_it_was(smoke, tmp_path):
    work = tmp_path / "work"
    first = smoke("benchmarks.gates_accuracy", "--work", str(work))
    assert first.count(" test ") == len(list(work.glob("*.json"))) >= 5
    assert " test " not in smoke("benchmarks.gates_accuracy", "--work", str(work))


def test_the_density_benchmark_runs_with_smoke_and_goes_on_where_it_was(smoke, tmp_path):
    out = smoke("benchmarks.density_accuracy", "--work", str(tmp_path))
    assert sum(" test " in line for line in out.splitlines()) == len(list(tmp_path.glob("*.json"))) == 14
    names = (f"budget--sst2--{method}--0.5--0.json" for method in ("random_units", "second_order"))
    random, ours = (json.loads((tmp_path / name).read_text()) for name in names)
    assert ours["kept"] == random["kept"]
    assert ours["reached_density"] == pytest.approx(0.5, abs=0.01)
    assert ours["file_mb"] == pytest.approx(ours["weights_mb"], rel=1e-3)
    assert " test " not in smoke("benchmarks.density_accuracy", "--work", str(tmp_path))


def test_the_step_cost_benchmark_runs_with_smoke(smoke):
    ratios = [float(line.split()[-1]) for line in smoke("benchmarks.step_cost").splitlines() if "bf16=" in line]
    assert len(ratios) == 6
    assert all(0.2 < ratio < 5 for ratio in ratios)


def test_the_search_speed_benchmark_runs_with_smoke_and_finds_the_verdicts_of_the_naive_loop(smoke, tmp_path):
    out = smoke("benchmarks.search_speed", "--work", str(tmp_path))
    kinds = [line.split(":")[0] for line in out.splitlines() if ", ratio " in line]
    assert set(kinds) <= {"rejection", "tentative acceptance", "exact acceptance"}
    assert "exact acceptance" in kinds  # of a model that has learned nothing, no plan may be rejected
    assert "whole search:" in out


def test_the_search_ablation_runs_with_smoke_and_measures_every_row(smoke, tmp_path):
    lines = [
        line for line in smoke("benchmarks.search_ablation", "--work", str(tmp_path)).splitlines() if " s, " in line
    ]
    assert [line.split(": ")[0] for line in lines] == list(search_ablation.ROWS)
    assert all(float(line.split(": ")[1].split(" s")[0]) > 0 for line in lines)


def test_the_smallest_benchmark_runs_with_smoke(smoke, tmp_path):
    assert smoke("benchmarks.smallest", "--work", str(tmp_path)).splitlines()[-1].startswith("sst2")
    found = json.loads(next((tmp_path / "smallest").glob("*.json")).read_text())
    assert found["int8_mb"] < found["mb"] <= 3


def test_the_one_shot_cost_benchmark_runs_with_smoke(smoke):
    row = dict(pair.split("=") for pair in smoke("benchmarks.one_shot_cost").strip().splitlines()[-1].split())
    assert float(row["costs"]) > 0
    assert float(row["refit"]) > 0


def test_the_measured_speed_benchmark_runs_with_smoke(smoke, tmp_path, monkeypatch):
    def by_size(models, inputs, runs, *_):  # on a busy machine a tiny block takes no time that can be seen
        return tuple([float(sum(weight.numel() for weight in model.parameters()))] * runs for model in models)

    monkeypatch.setattr(latency, "_in_turns", by_size)
    row = smoke("benchmarks.measured_speed", "--work", str(tmp_path)).strip().splitlines()[-1]
    values = dict(pair.split("=") for pair in row.split())
    assert 0 < float(values["weights"]) < 1
    assert float(values["reached"]) == pytest.approx(float(values["asked"]), rel=0.2)


def test_the_latency_table_benchmark_runs_with_smoke(smoke):
    lines = [line for line in smoke("benchmarks.latency_table").splitlines() if "predicted=" in line]
    assert len(lines) == 2
    for line in lines:
        measured, predicted = (float(part.split("=")[1]) for part in line.split()[-2:])
        assert measured > 0
        assert math.isfinite(predicted)


def test_the_runtimes_benchmark_runs_with_smoke_and_bounds_each_speed_up(smoke, tmp_path):
    out = smoke("benchmarks.runtimes", "--runtimes", "torch fp32,torch bf16", "--work", str(tmp_path))
    lines = [line for line in out.splitlines() if "density" in line]
    assert [line.partition(": ")[0] for line in lines] == [
        f"torch {dtype}, batch 1, density {density}" for dtype in ("fp32", "bf16") for density in ("1", "0.5")
    ]
    for line in lines:
        bound = float(line.split("x of ")[1].split("x")[0])
        assert bound == 1 if line.endswith("density 1") else 1 <= bound <= 2.01
    sizes = [float(line.split(" ms, ")[1].split()[0]) for line in lines]
    assert sizes[0] > sizes[1]
    assert sizes[0] == pytest.approx(2 * sizes[2], abs=0.1)


def test_the_optimum_benchmark_runs_with_smoke(smoke):
    assert smoke("benchmarks.optimum").splitlines()[-1] == "optimal: 2 of 2"


def test_the_search_quality_benchmark_runs_with_smoke_and_goes_on_where_it_was(smoke, tmp_path):
    assert smoke("benchmarks.search_quality", "--work", str(tmp_path)).count(" test ") == 13
    assert " test " not in smoke("benchmarks.search_quality", "--work", str(tmp_path))


def test_the_certificate_benchmark_on_real_answers_runs_with_smoke(smoke, tmp_path):
    out = smoke("benchmarks.certificate_real_data", "--work", str(tmp_path))
    lines = [line for line in out.splitlines() if "wrong " in line]
    assert len(lines) == 3
    assert all(float(line.split("wrong ")[1].split(",")[0]) <= 0.05 for line in lines)


def test_certificates_with_few_labels_equal_those_with_all_in_a_smoke(smoke, tmp_path):
    out = smoke("benchmarks.certificate_real_data", "--labels", "--work", str(tmp_path))
    lines = [line for line in out.splitlines() if "labels_used" in line]
    assert len(lines) == 2
    assert all(line.count("'same_with_few_labels': True") == 3 for line in lines)


def test_the_certified_pruning_benchmark_runs_with_smoke_and_goes_on_where_it_was(smoke, tmp_path):
    out = smoke("benchmarks.certified_pruning", "--work", str(tmp_path))
    assert sum(" test " in line for line in out.splitlines()) == len(list(tmp_path.glob("*.json"))) == 5
    assert out.count("search sst2 0") == out.count("second order, one-shot sst2 0") == 2
    assert " test " not in smoke("benchmarks.certified_pruning", "--work", str(tmp_path))


def test_every_benchmark_is_named_here():
    folder = ROOT / "benchmarks"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    texts |= {path.parent.name: path.read_text(encoding="utf-8") for path in folder.glob("*/__main__.py")}
    scripts = {name for name, text in texts.items() if "--smoke" in text and "__main__" in text}
    assert scripts <= {name for name in scripts if f"benchmarks.{name}" in Path(__file__).read_text(encoding="utf-8")}


def test_the_memory_benchmark_runs_with_smoke(smoke):
    lines = smoke("benchmarks.memory_cost").splitlines()
    ratios = [float(line.split()[-1]) for line in lines if line[:28].strip() in memory_cost.PARTS]
    assert len(ratios) == 6
    assert ratios[0] == 1.0
    assert all(0.5 < ratio < 3 for ratio in ratios)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell anonymous memory apart")
def test_the_benchmark_of_offloaded_memory_runs_with_smoke(smoke):
    lines = smoke("benchmarks.offloaded_memory").splitlines()
    assert [line.split(" MB")[0].rsplit(maxsplit=1)[0].strip() for line in lines[:2]] == ["in memory", "on disk"]
    assert lines[-1] == "the saved weights are the same"


def test_the_shapes_benchmark_runs_with_smoke_and_checks_the_saved_file(smoke):
    lines = [line for line in smoke("benchmarks.shapes").splitlines() if line.startswith("#7")]
    assert len(lines) == 12
    assert all(0.05 < float(line.split()[-1]) < 20 for line in lines)


def test_the_head_costs_benchmark_runs_with_smoke(smoke):
    lines = smoke("benchmarks.head_costs").splitlines()
    assert [line.split()[0] for line in lines] == ["108", "72", "36", "12", "0"]


def test_the_simulation_of_few_labels_and_several_promises_runs_with_smoke(smoke):
    lines = smoke("benchmarks.certificate_promises").splitlines()
    parts = ("labels", "clusters", "promises", "stop", "monitor", "hoeffding_bentkus")
    assert all(any(line.startswith(f"{part}: {{") for line in lines) for part in parts)
    assert all("'differs_with_labels_of_all': 0" in line for line in lines if line.startswith("labels: {"))


def test_the_certificate_benchmark_runs_with_smoke_and_finds_few_wrong_ones(smoke):
    lines = smoke("benchmarks.certificate_validity").splitlines()
    assert [line.split()[0] for line in lines] == ["path", "edge"]
    assert all(float(line.split("wrong ")[1].split(",")[0]) <= 0.06 for line in lines)


def test_the_import_benchmark_runs_with_smoke_and_finds_a_lean_import(smoke):
    lines = smoke("benchmarks.import_time").splitlines()
    seconds = {line.split(":")[0]: float(line.split(": ")[1].split()[0]) for line in lines}
    assert list(seconds) == [
        "import hf_headprune",
        "read a dense BERT",
        "import hf_headprune, read a pruned BERT",
    ]
    assert seconds["import hf_headprune"] < seconds["read a dense BERT"] / 4


def test_the_benchmark_of_the_default_runs_with_smoke_and_goes_on_where_it_was(smoke, tmp_path):
    out = smoke("benchmarks.default_run", "--work", str(tmp_path))
    assert "HeadPruneCallback() sst2: " in out
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(made) == 1
    smoke("benchmarks.default_run", "--work", str(tmp_path))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == made


def test_the_benchmark_of_the_command_runs_with_smoke(smoke, tmp_path):
    assert "--density 0.5 sst2: 50" in smoke("benchmarks.prune_command", "--work", str(tmp_path))


def test_the_benchmark_of_the_vocabulary_runs_with_smoke(smoke, tmp_path):
    assert "sst2, density 0.5: " in smoke("benchmarks.vocabulary", "--work", str(tmp_path))


def test_the_benchmark_of_the_recovery_runs_with_smoke(smoke, tmp_path):
    assert "sst2, density 0.1, 2 epochs: " in smoke("benchmarks.recovery", "--work", str(tmp_path))


def test_the_arena_runs_with_smoke(smoke, tmp_path):
    assert "sst2, 2 epochs, density 0.25, K-prune: " in smoke("benchmarks.arena.__main__", "--work", str(tmp_path))


@pytest.mark.parametrize("task", other_tasks.STUDIES)
def test_the_benchmark_of_other_tasks_runs_with_smoke(smoke, tmp_path, task):
    said = smoke("benchmarks.other_tasks", "--tasks", task, "--work", str(tmp_path)).splitlines()
    row = next(line for line in said if line.startswith(f"{task}, {next(iter(other_tasks.STUDIES[task].ways))}: "))
    assert 0.1 < float(row.split("density ")[1].split(",")[0]) < 1


def test_the_parts_of_a_run_are_timed_on_a_device(smoke):
    said = smoke("benchmarks.gpu.costs", "--device", "cpu")
    for part in ("training step", "moments and order", "one plan", "certificate", "bfloat16, batch 1, eager"):
        assert f"{part}: " in said


def test_small_models_are_measured_beside_the_arithmetic_of_large_ones(smoke):
    said = smoke("benchmarks.gpu.small_cases")
    assert "'moments_mib_by_arithmetic': " in said


def test_the_goal_of_each_runtime_is_shown_once_it_was_measured(monkeypatch):
    measured = [("torch fp32", 0.5, 0.98), ("torch fp32", 1.0, 0.9), ("ONNX fp32", 0.5, 0.96), ("ONNX int8", 0.5, 0.5)]
    names = ("runtime", "density", "share_of_bound")
    rows = [dict(zip(names, row, strict=True)) for row in measured]
    monkeypatch.setattr(goals, "read_json", lambda file: {"results": rows} if file.name == "runtimes.json" else {})
    found = [(goal, verdict) for goal, _, verdict in goals._of_runtimes()]
    words = "speed-up of a pruned model in {}: 0.97 of the runtime's own bound"
    assert found == [(words.format("torch fp32"), "reached"), (words.format("ONNX fp32"), "**missed**")]
    monkeypatch.setattr(goals, "read_json", lambda file: {})
    assert list(goals._of_runtimes()) == []
