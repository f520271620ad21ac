"""`headprune show`, `card`, `verify` and `power`, on saved models of a real certificate."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard

import hf_headprune
from hf_headprune.anatomy import anatomy_of
from hf_headprune.cli import app
from hf_headprune.guarantee.certify import certify
from hf_headprune.guarantee.power import PowerAssumptions, power_of
from hf_headprune.plan import PruningPlan
from hf_headprune.publish.measurements import MetricChange
from hf_headprune.publish.report import PruningReport
from hf_headprune.shrink.surgery import prune_model_
from tests.support.classifiers import classifier, decided, examples
from tests.support.command_line import called
from tests.support.models import tiny_bert


@pytest.fixture(scope="module")
def dense():
    return classifier()


@pytest.fixture(scope="module")
def rows(dense):
    return decided(dense, examples(160))


@pytest.fixture(scope="module")
def pruned(dense):
    plan = PruningPlan.of(dense)
    first = next(iter(plan.kept_heads))
    return prune_model_(copy.deepcopy(dense), plan.replace(kept_heads={first: (0, 2, 3)}))


@pytest.fixture(scope="module")
def certificate(dense, pruned, rows):
    return certify(dense, pruned, rows, max_drop=0.4)


@pytest.fixture
def saved(certificate, dense, pruned, rows, tmp_path):
    """Folders of the pruned model with its certificate, the dense one, and the certification split."""
    pruned.save_pretrained(tmp_path / "pruned")
    certificate.save(tmp_path / "pruned")
    dense.save_pretrained(tmp_path / "dense")
    Dataset.from_list(rows).to_json(tmp_path / "data.jsonl")
    return tmp_path


@pytest.mark.slow
def test_verify_reaches_every_level_with_models_and_data(saved, capsys):
    result = called(capsys, "verify", saved / "pruned", "--dense", saved / "dense", "--data", saved / "data.jsonl")
    assert result.code == 0, result.out
    assert result.out.startswith("The certificate holds. It says PASS.")
    assert "models: the pruned model was run on 160 examples" in result.out
    assert "not checked: that the train split holds none of the examples" in result.out
    said = called(capsys, "verify", saved / "pruned", "--json")
    content = json.loads(said.out)
    assert (said.code, content["holds"], content["findings"]) == (0, True, [])
    assert content["skipped"]


def test_verify_says_what_differs_and_fails(saved, dense, capsys):
    with torch.no_grad():
        other = dense.state_dict()["classifier.bias"].clone()
        dense.classifier.bias += 0.5
        dense.save_pretrained(saved / "dense")
        dense.classifier.bias.copy_(other)
    result = called(capsys, "verify", saved / "pruned", "--dense", saved / "dense")
    assert result.code == 1
    assert "DOES NOT HOLD" in result.out
    said = called(capsys, "verify", saved / "pruned", "--dense", saved / "dense", "--json")
    assert (said.code, json.loads(said.out)["holds"]) == (1, False)
    assert json.loads(said.out)["findings"][0]["name"] == "dense weights"
    assert "dense weights" in result.out


def test_what_can_not_be_read_is_no_verdict(saved, capsys):
    def refused(*words):
        said = called(capsys, *words)
        assert said.code == 2
        return said.problem

    assert "there is no such folder" in refused("verify", saved / "pruned", "--dense", saved / "nowhere")
    weights = saved / "pruned" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "no model can be read from this folder" in refused("verify", saved / "pruned")
    (saved / "dense" / "config.json").write_text("{")
    assert "no model can be read from this folder" in refused("show", saved / "dense")


def test_show_tells_sizes_and_the_certificate(saved, certificate, capsys):
    output = called(capsys, "show", saved / "pruned").out
    assert "heads: 3 4" in output
    assert certificate.statement in output
    assert "No certificate." in called(capsys, "show", saved / "dense").out


def test_show_says_in_words_which_heads_went(saved, capsys):
    output = called(capsys, "show", saved / "pruned").out
    assert "7 of 8 heads are kept (88%)." in output
    assert "encoder.layer.0.attention lost head 1 of 4." in output
    (saved / "pruned" / "headprune_plan.json").unlink()
    assert "Which heads of the dense model went is not known" in called(capsys, "show", saved / "pruned").out


def test_show_names_blocks_of_which_nothing_is_kept(dense, tmp_path, capsys):
    site = "encoder.layer.1.attention"
    prune_model_(copy.deepcopy(dense), PruningPlan.of(dense).replace(kept_heads={site: ()})).save_pretrained(tmp_path)
    output = called(capsys, "show", tmp_path).out
    assert f"Nothing is kept of {site}; the bias of each still counts." in output
    assert f"{site} lost heads 0-3 of 4." in output


def test_show_prints_one_json_object(saved, certificate, pruned, capsys):
    content = json.loads(called(capsys, "show", saved / "pruned", "--json").out)
    assert content["parameters"] == pruned.num_parameters()
    assert content["certificate"] == certificate.statement
    assert [site["kept"] for site in content["sites"] if site["kind"] == "encoder"] == [3, 4]
    assert content["sites"][0]["removed_heads"] == [1]


def test_show_writes_the_report_of_the_run_as_a_page(saved, pruned, dense, capsys):
    page, report = saved / "report.html", saved / "pruned" / "headprune_report.json"
    words = ("show", saved / "pruned", "--html", page)
    refused = called(capsys, *words)
    assert (refused.code, page.exists()) == (2, False)
    assert "there is no headprune_report.json" in refused.problem
    report.write_text(PruningReport.of(PruningPlan.of(pruned), anatomy_of(pruned)).to_json())
    assert called(capsys, *words).code == 0
    assert "<h1>pruned</h1>" in page.read_text()
    report.write_text(PruningReport.of(PruningPlan.of(dense), anatomy_of(dense)).to_json())
    assert "is about another model" in called(capsys, *words).problem


def test_card_is_written_from_the_report_and_keeps_what_else_it_says(saved, pruned, capsys):
    folder, report = saved / "pruned", saved / "pruned" / "headprune_report.json"
    report.write_bytes(b"\xff\xfe{}")
    assert f"card: {report} can't be read: " in called(capsys, "card", folder).problem
    report.unlink()
    assert "card: there is no headprune_report.json" in called(capsys, "card", folder).problem
    unseen = MetricChange("accuracy", "unseen examples", 500, 0.9, 0.89)
    report.write_text(PruningReport.of(PruningPlan.of(pruned), anatomy_of(pruned), unseen=unseen).to_json())
    for broken in (b"---\nlicense: [mit\n---\n# Mine\n", "# M\u00fcll\n".encode("latin-1")):
        (folder / "README.md").write_bytes(broken)
        assert "README.md: nothing was changed in it" in called(capsys, "card", folder).problem
        assert (folder / "README.md").read_bytes() == broken
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n", encoding="utf-8-sig")
    said = called(capsys, "card", folder, "--base-model", "owner/bert", "--dataset", "owner/sst2", "--json")
    assert json.loads(said.out)["card"] == str(folder / "README.md")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", "owner/bert", ["owner/sst2"])
    assert "# Mine" in card.text
    assert "0.8900" in card.text
    said = called(capsys, "card", folder, "--dataset", "owner/sst2", "--task", "default", "--json")
    (file,) = json.loads(said.out)["eval_results"]
    assert file == str(folder / ".eval_results" / "sst2.yaml")
    assert yaml.safe_load(Path(file).read_text())[0]["value"] == 0.89
    assert "Pass its --dataset, too" in called(capsys, "card", folder, "--task", "default").problem
    assert called(capsys, "card", folder).code == 0  # once more is the same section
    assert ModelCard.load(folder / "README.md").text.count("## Limits") == 1
    assert "--dataset is a name on the Hub" in called(capsys, "card", folder, "--dataset", "a b/c").problem


def test_the_version_is_that_of_the_package(capsys):
    assert called(capsys, "--version").out.strip() == hf_headprune.__version__


def test_bench_measures_both_models_and_names_the_bound(saved, capsys):
    words = ("bench", saved / "pruned", "--dense", saved / "dense", "--batch-size", "2", "--length", "8")
    output = called(capsys, *words).out.splitlines()
    assert [line.partition(":")[0] for line in output[:2]] == ["dense", "pruned"]
    assert "2 x 8 tokens, cpu, float32" in output[2]
    assert "fewer MACs" in output[3]
    content = json.loads(called(capsys, *words, "--json").out)
    assert content["mac_bound"] > 1
    assert content["before"]["median_ms"] > 0


def test_bench_takes_a_length_that_the_model_has_positions_for(saved, capsys):
    content = json.loads(called(capsys, "bench", saved / "pruned", "--dense", saved / "dense", "--json").out)
    assert content["seq_len"] == tiny_bert().config.max_position_embeddings // 2


def test_show_does_not_repeat_a_certificate_about_other_weights(saved, tmp_path, capsys):
    shutil.copytree(saved / "dense", tmp_path / "other")
    shutil.copy(saved / "pruned" / "headprune_certificate.json", tmp_path / "other")
    assert "about other weights" in called(capsys, "show", tmp_path / "other").out


def test_power_is_known_before_the_search(capsys):
    result = called(capsys, "power", 872, "--max-drop", "0.02")
    assert result.out.startswith("872 examples, 95 % confidence.")
    content = json.loads(called(capsys, "power", 872, "--max-drop", "0.02", "--json").out)
    assert content["chance"] == power_of(872, 0.02, PowerAssumptions(alpha=1 - content["confidence"]))
    assert power_of(content["examples_needed"], 0.02) >= 0.8 > content["detectable_drop"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "{0}/dense"], "there is no headprune_certificate.json"),
        (["verify", "{0}/pruned", "--data", "{0}/pruned/model.safetensors"], "the name must end with one of"),
        (["power", "872", "--max-drop", "2"], "--max-drop must be above 0 and below 1, received 2.0"),
        (["power", "872", "--confidence", "0.4"], "--confidence must be above 0.5 and below 1, received 0.4"),
        (["power", "872", "--disagreement", "0"], "disagreement must be in (0, 1), received 0.0"),
        (["bench", "{0}/pruned"], "Missing option '--dense'"),
        (["bench", "{0}/pruned", "--dense", "{0}/dense", "--length", "999"], "seq_len must be at most"),
        (["power"], "Missing argument 'examples'"),
        (["power", "many"], "Invalid value for"),
        (["promise", "872"], "No such command 'promise'"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(saved, capsys, words, message):
    said = called(capsys, *(word.format(saved) for word in words))
    assert said.code == 2
    assert said.out == ""
    assert message in said.problem


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda it: it.name)
def test_every_command_is_listed_with_the_first_sentence_of_its_help_and_prints_json_when_asked(command, capsys):
    said = called(capsys, command.name, "--help").out
    assert "--json" in said
    assert command.help in said
    assert command.help in called(capsys).out


def test_listing_the_commands_imports_no_torch():
    lists = "import sys, hf_headprune.cli as it\ntry: it.main([])\nexcept SystemExit: print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", lists], check=True, capture_output=True, text=True).stdout
    assert "prune" in printed
    assert printed.endswith("False\n")


def test_a_fault_of_the_program_is_one_line_too(saved, capsys, monkeypatch):
    monkeypatch.setattr("hf_headprune.cli.inspect.anatomy_of", lambda model: 1 / 0)
    said = called(capsys, "show", saved / "dense")
    assert said.code == 3
    assert "ZeroDivisionError" in said.problem
