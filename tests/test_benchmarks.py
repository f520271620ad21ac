"""Every benchmark runs with --smoke, from the folder of the project, on data that lies beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("HEADPRUNE_DATA", ROOT.parent / "shared" / "data"))
NEEDS_DATA = pytest.mark.skipif(
    not (DATA / "sst2").is_dir(), reason="the data sets of the benchmarks do not lie beside the project"
)


def _smoke(module: str, *arguments: str) -> str:
    environment = {**os.environ, "HEADPRUNE_DATA": str(DATA), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--smoke", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@NEEDS_DATA
def test_the_accuracy_benchmark_runs_with_smoke_and_goes_on_where_it_was(tmp_path):
    work = tmp_path / "work"
    first = _smoke("benchmarks.gates_accuracy", "--work", str(work))
    assert first.count(" test ") == len(list(work.glob("*.json"))) >= 5
    assert " test " not in _smoke("benchmarks.gates_accuracy", "--work", str(work))


@NEEDS_DATA
def test_the_density_benchmark_runs_with_smoke_and_goes_on_where_it_was(tmp_path):
    out = _smoke("benchmarks.density_accuracy", "--work", str(tmp_path))
    assert sum(" test " in line for line in out.splitlines()) == len(list(tmp_path.glob("*.json"))) == 15
    names = (f"budget--sst2--{method}--0.5--0.json" for method in ("random_units", "second_order"))
    random, ours = (json.loads((tmp_path / name).read_text()) for name in names)
    assert ours["kept"] == random["kept"]
    assert ours["reached_density"] == pytest.approx(0.5, abs=0.01)
    assert ours["file_mb"] == pytest.approx(ours["weights_mb"], rel=1e-3)
    assert " test " not in _smoke("benchmarks.density_accuracy", "--work", str(tmp_path))


def test_the_step_cost_benchmark_runs_with_smoke():
    ratios = [float(line.split()[-1]) for line in _smoke("benchmarks.step_cost").splitlines() if "bf16=" in line]
    assert len(ratios) == 4
    assert all(0.2 < ratio < 5 for ratio in ratios)


@NEEDS_DATA
def test_the_search_speed_benchmark_runs_with_smoke_and_finds_the_verdicts_of_the_naive_loop(tmp_path):
    out = _smoke("benchmarks.search_speed", "--work", str(tmp_path))
    kinds = [line.split(":")[0] for line in out.splitlines() if ", ratio " in line]
    assert set(kinds) <= {"rejection", "tentative acceptance", "exact acceptance"}
    assert "exact acceptance" in kinds  # of a model that has learned nothing, no plan may be rejected
    assert "whole search:" in out


@NEEDS_DATA
def test_the_search_quality_benchmark_runs_with_smoke_and_goes_on_where_it_was(tmp_path):
    assert _smoke("benchmarks.search_quality", "--work", str(tmp_path)).count(" test ") == 12
    assert " test " not in _smoke("benchmarks.search_quality", "--work", str(tmp_path))


@NEEDS_DATA
def test_the_certificate_benchmark_on_real_answers_runs_with_smoke(tmp_path):
    out = _smoke("benchmarks.certificate_real_data", "--work", str(tmp_path))
    lines = [line for line in out.splitlines() if "wrong " in line]
    assert len(lines) == 3
    assert all(float(line.split("wrong ")[1].split(",")[0]) <= 0.05 for line in lines)


@NEEDS_DATA
def test_the_certified_pruning_benchmark_runs_with_smoke_and_goes_on_where_it_was(tmp_path):
    out = _smoke("benchmarks.certified_pruning", "--work", str(tmp_path))
    assert sum(" test " in line for line in out.splitlines()) == len(list(tmp_path.glob("*.json"))) == 4
    assert out.count("without training sst2 0") == 2
    assert " test " not in _smoke("benchmarks.certified_pruning", "--work", str(tmp_path))


def test_every_benchmark_is_named_here():
    scripts = {
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if "--smoke" in path.read_text(encoding="utf-8")
    }
    assert scripts <= {name for name in scripts if f"benchmarks.{name}" in Path(__file__).read_text(encoding="utf-8")}


def test_the_memory_benchmark_runs_with_smoke():
    ratios = [float(line.split()[-1]) for line in _smoke("benchmarks.memory_cost").splitlines()]
    assert len(ratios) == 6
    assert ratios[0] == 1.0
    assert all(0.5 < ratio < 3 for ratio in ratios)


def test_the_shapes_benchmark_runs_with_smoke_and_checks_the_saved_file():
    lines = [line for line in _smoke("benchmarks.shapes").splitlines() if line.startswith("#7")]
    assert len(lines) == 6
    assert all(0.05 < float(line.split()[-1]) < 20 for line in lines)


def test_the_head_costs_benchmark_runs_with_smoke():
    lines = _smoke("benchmarks.head_costs").splitlines()
    assert [line.split()[0] for line in lines] == ["108", "72", "36", "12", "0"]


def test_the_certificate_benchmark_runs_with_smoke_and_finds_few_wrong_ones():
    lines = _smoke("benchmarks.certificate_validity").splitlines()
    assert [line.split()[0] for line in lines] == ["path", "edge"]
    assert all(float(line.split("wrong ")[1].split(",")[0]) <= 0.06 for line in lines)
