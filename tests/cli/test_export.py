"""`headprune export`: a pruned folder in, a folder for one way of loading out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.surgery import prune_model_
from tests.support.command_line import called, tokenizer_of_words
from tests.support.models import tiny_bert

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pruned BERT whose layers have equal numbers."""
    model, path = tiny_bert(num_labels=2), tmp_path_factory.mktemp("export") / "pruned"
    kept = {f"encoder.layer.{i}.intermediate": range(8) for i in (0, 1)}
    prune_model_(model, PruningPlan.of(model).replace(kept_ffn=kept)).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("mode", "model_type", "has_code"),
    [("remote", "prunable_bert", True), ("native", "prunable_bert", False), ("plain", "bert", False)],
)
def test_a_folder_is_written_for_each_mode(mode, model_type, has_code, folder, tmp_path, capsys):
    said = called(capsys, "export", folder, tmp_path / "out", "--mode", mode)
    assert (said.code, f"mode {mode}" in said.out) == (0, True), said.err
    again = called(capsys, "export", folder, tmp_path / "out", "--mode", mode, "--overwrite", "--json")
    assert json.loads(again.out) == {"output": str(tmp_path / "out"), "mode": mode, "files": []}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == model_type
    assert bool(list((tmp_path / "out").glob("modeling_*.py"))) is has_code
    assert "No tokenizer was saved" in said.err


def test_standard_output_is_json_alone_whatever_the_exporters_have_to_say(folder, tmp_path, capfd):
    for name in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(name, reason="the extra of this runtime is not installed")
    pytest.importorskip("transformers.exporters", reason="Transformers has no exporters before 5.24")
    out = tmp_path / "out"
    said = called(capfd, "export", folder, out, "--onnx", "--int8", "--openvino", "--json")
    assert said.code == 0, said.err
    files = [file["path"] for file in json.loads(said.out)["files"]]
    assert files == [str(out / "onnx" / "model.onnx"), str(out / "openvino" / "openvino_model.xml")]
    assert all(Path(file).exists() for file in files)
    assert said.err == f"No tokenizer was saved: there is none beside {folder}.\n"


def test_a_checkpoint_in_half_precision_becomes_a_file_in_fp32(folder, tmp_path, capsys):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    pytest.importorskip("transformers.exporters", reason="Transformers has no exporters before 5.24")
    AutoModelForSequenceClassification.from_pretrained(folder).bfloat16().save_pretrained(tmp_path / "half")
    said = called(capsys, "export", tmp_path / "half", tmp_path / "out", "--onnx")
    assert said.code == 0, said.err
    assert "The weights are in torch.bfloat16; the file computes in torch.float32" in said.err
    assert (tmp_path / "out" / "onnx" / "model.onnx").exists()


def test_a_tokenizer_that_can_not_be_used_is_not_called_missing(folder, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    tokenizer = tokenizer_of_words()
    tokenizer.add_tokens([f"new{number}" for number in range(200)])
    tokenizer.save_pretrained(source)
    said = called(capsys, "export", source, tmp_path / "out")
    assert said.code == 0
    assert "No tokenizer was saved" in said.err
    assert "Name the tokenizer that the model was trained with" in said.err
    assert "there is none" not in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--int8",), "--int8 is for ONNX files"),
        (("--onnx", "--mode", "plain"), "ONNX and OpenVINO files have no --mode"),
        (("--mode", "torchscript"), "mode must be one of 'remote', 'native', 'plain'"),
    ],
)
def test_words_that_do_not_fit_end_with_one_line_and_write_nothing(words, message, folder, tmp_path, capsys):
    said = called(capsys, "export", folder, tmp_path / "out", *words)
    assert (said.code, said.out) == (2, "")
    assert message in said.problem
    assert not (tmp_path / "out").exists()
