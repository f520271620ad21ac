"""`headprune migrate`: a checkpoint that was pruned elsewhere in, a pruned folder of this package out."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from tests.support.command_line import called, tokenizer_of_words
from tests.support.foreign_checkpoints import cut_heads_, save_config, weights_of
from tests.support.models import tiny_bert


def test_a_checkpoint_of_transformers_4_becomes_a_pruned_folder(tmp_path, capsys):
    model = tiny_bert(num_labels=2)
    save_config(tmp_path / "old", model, pruned_heads={0: [1, 2]})
    save_file(cut_heads_(weights_of(model), "bert", {0: [1, 2]}), tmp_path / "old" / "model.safetensors")
    tokenizer_of_words().save_pretrained(tmp_path / "old")
    said = called(capsys, "migrate", tmp_path / "old", tmp_path / "new")
    assert (said.code, "6 heads and 128 FFN units are kept" in said.out) == (0, True), said.err
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "prunable_bert"
    assert (tmp_path / "new" / "tokenizer.json").exists()
    assert "heads: 2 4" in called(capsys, "show", tmp_path / "new").out
    again = called(capsys, "migrate", tmp_path / "old", tmp_path / "new", "--overwrite", "--json")
    sites = json.loads(again.out)["sites"]
    assert [(site["kept"], site["removed_heads"]) for site in sites if "attention" in site["site"]] == [
        (2, [1, 2]),
        (4, []),
    ]


def test_a_pickle_needs_a_word_of_its_own(tmp_path, capsys):
    tiny_bert(num_labels=2).save_pretrained(tmp_path / "old")
    torch.save(torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]]), tmp_path / "old" / "head_mask.pt")
    refused = called(capsys, "migrate", tmp_path / "old", tmp_path / "new")
    assert (refused.code, refused.out) == (2, "")
    assert "head_mask.pt: it is a pickle" in refused.problem
    assert not (tmp_path / "new").exists()
    said = called(capsys, "migrate", tmp_path / "old", tmp_path / "new", "--allow-pickle")
    assert (said.code, "6 heads" in said.out) == (0, True), said.err
