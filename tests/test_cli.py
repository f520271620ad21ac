"""The command line, on saved models of a real certificate."""

import shutil
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from hf_headprune.cli import app
from tests.guarantee.test_certificate import certificate, data, dense, pruned, rows  # noqa: F401 - fixtures


@pytest.fixture
def saved(certificate, dense, pruned, rows, tmp_path):  # noqa: F811
    """Folders of the pruned model with its certificate, the dense one, and the certification split."""
    pruned.save_pretrained(tmp_path / "pruned")
    certificate.save(tmp_path / "pruned")
    dense.save_pretrained(tmp_path / "dense")
    Dataset.from_list(rows).to_json(tmp_path / "data.jsonl")
    return tmp_path


def called(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_verify_reaches_every_level_with_models_and_data(saved):
    result = called("verify", saved / "pruned", "--dense", saved / "dense", "--data", saved / "data.jsonl")
    assert result.exit_code == 0, result.output
    assert "The certificate holds." in result.stdout
    assert "models: the pruned model was run on 160 examples" in result.output
    assert "not checked: that the train split holds none of the examples" in result.output


def test_verify_says_what_differs_and_fails(saved, dense):  # noqa: F811
    with torch.no_grad():
        other = dense.state_dict()["classifier.bias"].clone()
        dense.classifier.bias += 0.5
        dense.save_pretrained(saved / "dense")
        dense.classifier.bias.copy_(other)
    result = called("verify", saved / "pruned", "--dense", saved / "dense")
    assert result.exit_code == 1
    assert "DOES NOT HOLD" in result.output
    assert "dense weights" in result.output


def test_what_can_not_be_read_is_no_verdict(saved):
    def refused(*words):
        done = subprocess.run(
            [sys.executable, "-c", "from hf_headprune.cli import main; main()", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    missing = refused("verify", saved / "pruned", "--dense", saved / "nowhere")
    assert "does not exist" in " ".join(missing.replace("│", " ").split())  # a frame wraps where the path is long
    weights = saved / "pruned" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "no model can be read from this folder" in refused("verify", saved / "pruned")
    (saved / "dense" / "config.json").write_text("{")
    assert "no model can be read from this folder" in refused("show", saved / "dense")


def test_show_tells_sizes_and_the_certificate(saved, certificate):  # noqa: F811
    output = called("show", saved / "pruned").output
    assert "heads: 3 4" in output
    assert certificate.statement in output
    assert "No certificate." in called("show", saved / "dense").output


def test_show_does_not_repeat_a_certificate_about_other_weights(saved, tmp_path):
    shutil.copytree(saved / "dense", tmp_path / "other")
    shutil.copy(saved / "pruned" / "headprune_certificate.json", tmp_path / "other")
    assert "about other weights" in called("show", tmp_path / "other").output


def test_promise_plans_before_the_search():
    result = called("promise", 872, "--max-drop", "0.02")
    assert result.output.startswith("872 examples, 95 % confidence.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "{0}/dense"], "there is no headprune_certificate.json"),
        (["verify", "{0}/pruned", "--data", "{0}/pruned/model.safetensors"], "one JSON object per line"),
        (["promise", "872", "--max-drop", "2"], "--max-drop must be above 0 and below 1, received 2.0"),
        (["promise", "872", "--confidence", "0.4"], "--confidence must be above 0.5 and below 1, received 0.4"),
        (["promise", "872", "--disagreement", "0"], "disagreement must be in (0, 1), received 0.0"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(saved, words, message):
    words = [word.format(saved) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", "from hf_headprune.cli import main; main()", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("headprune: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr
