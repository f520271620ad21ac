"""Pruned models on a Hub, by its real client: uploaded by the model and by the Trainer, and read in each mode."""

import json
from importlib.util import find_spec

import pytest
import torch

from tests.support.fresh_process import fresh
from tests.support.hub import local_hub
from tests.support.models import text_inputs

pytestmark = pytest.mark.slow

UPLOAD = """
import logging, os, torch
from huggingface_hub import upload_file
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
import hf_headprune
from hf_headprune import AStarSearch, HeadPruneCallback, PruningPlan, certify, export_model, prune_model_
from tests.support.documentation import examples
from tests.support.models import text_inputs, tiny_bert
root = sys.argv[1]

dense, pruned = tiny_bert(num_labels=2), tiny_bert(num_labels=2)
prune_model_(pruned, PruningPlan.of(pruned).replace(kept_heads={"encoder.layer.1.attention": (0, 3)}))
certify(dense, pruned, examples(60, 1), max_drop=0.9)
pruned.push_to_hub("again")
pruned.push_to_hub("again", max_shard_size="20KB")
pruned.push_to_hub("first", tags=["mine"], private=True)
pruned.save_pretrained(root + "/second", push_to_hub=True)  # beside something private
ffn = tiny_bert(num_labels=2)
prune_model_(ffn, PruningPlan.of(ffn).replace(kept_ffn={f"encoder.layer.{i}.intermediate": range(9) for i in (0, 1)}))
plain = AutoModelForSequenceClassification.from_pretrained(export_model(ffn, root + "/plain", mode="plain"))
plain.push_to_hub("plain")
upload_file(path_or_fileobj=b"# By hand", path_in_repo="README.md", repo_id="me/second")
pruned.push_to_hub("second")
for _ in range(2):
    ffn.push_to_hub("first", revision="narrow")
with torch.no_grad():
    torch.save({"remote": pruned(**text_inputs()).logits, "plain": ffn(**text_inputs()).logits}, root + "/logits.pt")

args = TrainingArguments(root + "/trained", max_steps=4, save_steps=2, use_cpu=True, disable_tqdm=True,
    report_to="none", push_to_hub=True, hub_model_id="me/trained", hub_strategy="every_save")
callback = HeadPruneCallback(search=AStarSearch(max_drop=0.9, max_evaluations=6), latency=None)
trainer = Trainer(tiny_bert(num_labels=2), args, train_dataset=examples(48, 0), eval_dataset=examples(60, 1),
    callbacks=[callback])
trainer.train()
out["parameters"] = {"dense": tiny_bert(num_labels=2).num_parameters(), "pruned": trainer.model.num_parameters()}
out["kept here"] = os.listdir(root + "/trained")
trainer.push_to_hub()
out["report"] = callback.report.to_text()
native = AutoModelForSequenceClassification.from_pretrained("me/first")
out["native"] = type(native).__name__
with torch.no_grad():
    out["difference"] = float((native(**text_inputs()).logits - pruned(**text_inputs()).logits).abs().max())
narrow = AutoModelForSequenceClassification.from_pretrained("me/first", revision="narrow")
with torch.no_grad():
    out["narrow"] = float((narrow(**text_inputs()).logits - ffn(**text_inputs()).logits).abs().max())
native.save_pretrained(root + "/from-hub")
AutoModelForSequenceClassification.from_pretrained("me/trained").save_pretrained(root + "/trained-from-hub")
"""
ELSEWHERE = """
sys.modules["hf_headprune"] = None
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
expected = torch.load(sys.argv[1] + "/logits.pt")
inputs = torch.load(sys.argv[1] + "/inputs.pt")
remote = AutoModelForSequenceClassification.from_pretrained("me/first", trust_remote_code=True)
plain = BertForSequenceClassification.from_pretrained("me/plain")
trained = AutoModelForSequenceClassification.from_pretrained("me/trained", trust_remote_code=True)
with torch.no_grad():
    out["remote"] = float((remote(**inputs).logits - expected["remote"]).abs().max())
    out["plain"] = float((plain(**inputs).logits - expected["plain"]).abs().max())
out["module"] = type(remote).__module__.split(".")[0]
out["parameters"] = trained.num_parameters()
"""
EMBEDDERS = """
from pathlib import Path
import numpy as np
from huggingface_hub import hf_hub_download
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
from hf_headprune import PruningResult, anatomy_of
from hf_headprune.publish.report import PruningReport
from tests.support.texts import TEXTS, save_text_model
def embedder(body, name):
    save_text_model(Path(root, name), "BertModel")
    found = SentenceTransformer(root + "/" + name, device="cpu")
    plan = PruningPlan.of(found[0].auto_model).replace(**body)
    report = PruningReport.of(plan, anatomy_of(found[0].auto_model))
    result = PruningResult(plan, reference=PruningPlan.of(found[0].auto_model), report=report)
    prune_model_(found[0].auto_model, result)
    return found
pruned_embedder = embedder({"kept_heads": {"encoder.layer.1.attention": (0, 3)}}, "embedder")
pruned_embedder.push_to_hub("embedder")
card = Path(hf_hub_download("me/embedder", "README.md")).read_text()
upload_file(path_or_fileobj=(card + "\\nMine.\\n").encode(), path_in_repo="README.md", repo_id="me/embedder")
pruned_embedder.push_to_hub("embedder", exist_ok=True)
narrow = embedder({"kept_ffn": {f"encoder.layer.{i}.intermediate": range(9) for i in (0, 1)}}, "narrow")
np.save(root + "/embeddings.npy", [it.encode(TEXTS) for it in (pruned_embedder, narrow)])
plain_body = export_model(narrow[0].auto_model, root + "/plain-body", mode="plain")
narrow.save_pretrained(root + "/narrow-plain", create_model_card=False)
AutoModel.from_pretrained(plain_body).save_pretrained(root + "/narrow-plain")
SentenceTransformer(root + "/narrow-plain", device="cpu").push_to_hub("embedder-plain")
out["embedder"] = float(np.abs(SentenceTransformer("me/embedder", device="cpu").encode(TEXTS)
    - pruned_embedder.encode(TEXTS)).max())
"""
EMBEDDERS_ELSEWHERE = """
import numpy as np
from sentence_transformers import SentenceTransformer
from tests.support.texts import TEXTS
for name, embeddings in zip(("embedder", "embedder-plain"), np.load(sys.argv[1] + "/embeddings.npy")):
    read = SentenceTransformer("me/" + name, device="cpu", trust_remote_code=name == "embedder")
    out[name] = float(np.abs(read.encode(TEXTS) - embeddings).max())
"""
HAS_EMBEDDERS = find_spec("sentence_transformers") is not None
needs_embedders = pytest.mark.skipif(not HAS_EMBEDDERS, reason="sentence-transformers comes with the extra `demo`")


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory):
    """What is on the Hub after two processes, and what they have found."""
    root = tmp_path_factory.mktemp("hub")
    torch.save(text_inputs(), root / "inputs.pt")
    (root / "second").mkdir()
    (root / "second" / "ledger.jsonl").write_text("private")
    with local_hub() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment(root / "home").items():
            patch.setenv(name, value)
        here = fresh(UPLOAD + EMBEDDERS * HAS_EMBEDDERS, str(root))
        patch.setenv("HF_HOME", str(root / "elsewhere"))
        there = fresh(ELSEWHERE + EMBEDDERS_ELSEWHERE * HAS_EMBEDDERS, str(root))
    return hub, here, there, root


MODEL_FILES = {"config.json", "model.safetensors", "headprune_plan.json", "modeling_prunable_bert.py"}


def test_weights_that_are_uploaded_again_in_several_files_leave_none_that_would_be_loaded_instead(uploaded):
    hub, *_ = uploaded
    files = hub.files("me/again")
    assert "model.safetensors.index.json" in files
    assert "model.safetensors" not in files


def test_a_model_uploads_weights_plan_certificate_code_and_card(uploaded):
    hub, *_ = uploaded
    assert hub.files("me/first").keys() == MODEL_FILES | {"headprune_certificate.json", "README.md"}
    assert hub.private == {"me/first"}
    assert b"- mine" in hub.files("me/first")["README.md"]


def test_saving_with_an_upload_leaves_other_files_of_the_folder_where_they_are(uploaded):
    hub, *_ = uploaded
    assert hub.files("me/second").keys() == MODEL_FILES | {"headprune_certificate.json", "README.md"}


def test_a_model_is_read_from_the_hub_in_each_mode_with_equal_outputs(uploaded):
    _, here, there, _ = uploaded
    assert (here["native"], here["difference"]) == ("PrunableBertForSequenceClassification", 0.0)
    assert (there["module"], there["remote"]) == ("transformers_modules", 0.0)
    assert there["plain"] == 0.0


@needs_embedders
def test_a_sentence_transformer_is_read_from_the_hub_in_each_mode_with_equal_embeddings(uploaded):
    _, here, there, _ = uploaded
    assert (here["embedder"], there["embedder"], there["embedder-plain"]) == (0.0, 0.0, 0.0)


@needs_embedders
def test_the_card_of_a_sentence_transformer_names_it_and_its_class_and_a_second_upload_keeps_what_is_there(uploaded):
    hub, *_ = uploaded
    card = hub.files("me/embedder")["README.md"].decode()
    assert "## What was pruned" in card
    assert 'SentenceTransformer("me/embedder", trust_remote_code=True)' in card
    for strange in ("<this model>", "AutoModel", "sentence_transformers_model_id"):
        assert strange not in card
    assert "\nMine.\n" in card


def test_the_certificate_and_the_plan_come_with_a_model_from_the_hub(uploaded):
    hub, _, _, root = uploaded
    for name in ("headprune_certificate.json", "headprune_plan.json"):
        assert (root / "from-hub" / name).read_bytes() == hub.files("me/first")[name]


def test_report_and_pictures_come_with_the_card_from_the_hub(uploaded):
    hub, _, _, root = uploaded
    for name in ("headprune_report.json", "headprune_kept.png"):
        assert (root / "trained-from-hub" / name).read_bytes() == hub.files("me/trained")[name]


def test_a_branch_holds_a_model_of_its_own(uploaded):
    hub, here, _, _ = uploaded
    assert here["narrow"] == 0.0
    assert hub.files("me/first", "narrow")["model.safetensors"] != hub.files("me/first")["model.safetensors"]


def test_a_second_upload_keeps_a_card_that_a_person_edited(uploaded):
    hub, *_ = uploaded
    card = hub.files("me/second")["README.md"].decode()
    assert "# By hand" in card
    assert len(hub.commits["me/second"]) == 4  # the empty repository, two uploads and the edit between them


def test_no_upload_ever_holds_a_private_file(uploaded):
    hub, here, _, _ = uploaded
    assert "_headprune_search.jsonl" in here["kept here"]  # the search has written it
    names = {name for commits in hub.commits.values() for files in commits for name in files}
    assert not [name for name in names if name.endswith("jsonl") or "checkpoint-" in name]


def test_the_trainer_uploads_the_dense_model_during_training_and_the_pruned_one_after_it(uploaded):
    hub, here, there, _ = uploaded
    types = [
        json.loads(files["config.json"])["model_type"] for files in hub.commits["me/trained"] if "config.json" in files
    ]
    assert (types[0], types[-1]) == ("bert", "prunable_bert")
    files = hub.files("me/trained")
    assert files.keys() >= MODEL_FILES | {"README.md"}
    assert json.loads(files["config.json"])["model_type"] == "prunable_bert"
    assert there["parameters"] == here["parameters"]["pruned"] < here["parameters"]["dense"]


def test_the_card_of_the_trainer_is_kept_and_tells_of_the_pruning(uploaded):
    hub, here, _, _ = uploaded
    card = hub.files("me/trained")["README.md"].decode()
    assert "generated_from_trainer" in card
    assert "### Training hyperparameters" in card
    assert here["report"].splitlines()[0] in card
    assert 'from_pretrained("me/trained", trust_remote_code=True)' in card
