"""The wheel: it holds all that the package needs, and works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest

import hf_headprune
from tests.support.environments import built_wheel
from tests.support.fresh_process import ROOT

NOT_CODE = {"hf_headprune/py.typed", "hf_headprune/__init__.pyi"}
NOT_CODE |= {"hf_headprune/publish/model_card.md", "hf_headprune/publish/report.html"}
WITHOUT_CHECKOUT = """
import sys
from pathlib import Path
checkout, unpacked = sys.argv[1:]
sys.path = [place for place in sys.path if Path(place).resolve() != Path(checkout)]
import transformers
from importlib.metadata import entry_points
known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
assert "prunable_bert" not in known
(plugin,) = {found for found in entry_points(group="vllm.general_plugins") if found.name == "hf_headprune"}
plugin.load()()  # as a server does
assert "prunable_bert" in known
import hf_headprune
from hf_headprune import cli, compat
from hf_headprune.publish.card import TEMPLATE
assert "{{ version }}" in TEMPLATE.read_text()
config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
model = transformers.BertModel(config)
compat.prune_heads(model, {0: [1]})
model.save_pretrained("pruned")  # with code that is made from files of the package
assert Path("pruned", "modeling_prunable_bert.py").exists()
names = [name for name in hf_headprune.__all__ if not name.startswith("Prunable")]
for name in names:
    getattr(hf_headprune, name)
files = [Path(module.__file__) for name, module in sys.modules.items() if name.partition(".")[0] == "hf_headprune"]
assert len(names) > 40 and len(files) > 100, (names, files)
assert all(file.is_relative_to(unpacked) for file in files), files
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return zipfile.ZipFile(built_wheel(tmp_path_factory.mktemp("wheel")))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    present = [file for file in (ROOT / "hf_headprune").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert packed == {file.relative_to(ROOT).as_posix() for file in present}
    assert packed >= NOT_CODE


def test_version_and_command_come_from_the_package_and_its_settings(wheel):
    (place,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(wheel.read(f"{place}/METADATA").decode())
    assert metadata["Version"] == hf_headprune.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"plot", "onnx", "openvino", "examples", "docs"} <= set(metadata.get_all("Provides-Extra"))
    commands = wheel.read(f"{place}/entry_points.txt").decode().splitlines()
    assert {f"{name} = hf_headprune.cli:main" for name in ("headprune", "hf-headprune")} <= set(commands)
    assert f"{place}/licenses/LICENSE" in wheel.namelist()


@pytest.mark.slow
def test_an_unpacked_wheel_works_without_the_checkout(wheel, tmp_path):
    unpacked = tmp_path / "unpacked"
    wheel.extractall(unpacked)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CHECKOUT, str(ROOT), str(unpacked)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
