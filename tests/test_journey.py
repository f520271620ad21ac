"""The journey of a model at smoke size: fine-tuned and pruned, pushed to a Hub, read elsewhere in every way."""

import pytest

from tests.support.fresh_process import fresh
from tests.support.hub import local_hub

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="the extra `onnx` is not installed")

HERE = """
import copy
import torch
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments
from hf_headprune import HeadPruneCallback, certify, export_model, export_onnx
from tests.support.command_line import sentences, tokenizer_of_words
from tests.support.models import tiny_bert

root, tokenizer = sys.argv[1], tokenizer_of_words()
def encoded(rows):
    return [{**tokenizer(row["sentence"]), "labels": int(row["label"] == "positive")} for row in rows]
train, unseen = sentences(480, seed=0), sentences(120, seed=1)
args = TrainingArguments(root + "/out", num_train_epochs=4, learning_rate=3e-3, per_device_train_batch_size=16,
    use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", hub_model_id="me/pruned")
callback = HeadPruneCallback(density=0.8, uniform=True, confidence=None, latency=None)
trainer = Trainer(tiny_bert(num_labels=2), args, train_dataset=encoded(train), processing_class=tokenizer,
    callbacks=[callback])
trainer.train()
model = trainer.model.eval()
trainer.push_to_hub()

def upload(name, folder):
    tokenizer.save_pretrained(folder)
    HfApi().create_repo("me/" + name)
    HfApi().upload_folder(repo_id="me/" + name, folder_path=folder)
upload("plain", export_model(model, root + "/plain", mode="plain"))
for name in ("onnx", "int8"):
    found = export_onnx(model, root + "/" + name, int8=name == "int8")
    upload(name, root + "/" + name)
certificate = certify(model, found.path, encoded(unseen), max_drop=0.05)
evidence = certificate.evidence
out |= {"verdict": certificate.verdict, "excluded drop": evidence.upper_bound}
out |= {"accuracy": evidence.dense_metric, "certified accuracy": evidence.pruned_metric}
out["width"] = len(model.bert.encoder.layer[0].intermediate.dense.weight)
texts = [row["sentence"] for row in unseen]
with torch.no_grad():
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
torch.save({"texts": texts, "labels": [row["labels"] for row in encoded(unseen)], "logits": logits}, root + "/given.pt")
"""
# What another machine does, with this package for the native mode and without it for all others.
READ = """
root, *names = sys.argv[1:]
if "native" not in names:
    sys.modules["hf_headprune"] = None  # importing it fails, as where it is not installed
else:
    import hf_headprune
import onnxruntime, torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer
given = torch.load(root + "/given.pt")

def by_torch(repo, inputs, **options):
    model = AutoModelForSequenceClassification.from_pretrained(repo, **options)
    out.setdefault("modules", {})[name] = type(model).__module__.split(".")[0]
    with torch.no_grad():
        return model(**inputs).logits

def by_onnxruntime(repo, inputs):
    session = onnxruntime.InferenceSession(hf_hub_download(repo, "onnx/model.onnx"))
    known = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
    return torch.from_numpy(session.run(None, known)[0])

for name in names:
    repo = "me/" + {"remote": "pruned", "native": "pruned"}.get(name, name)
    options = {"trust_remote_code": True} if name == "remote" else {}
    inputs = AutoTokenizer.from_pretrained(repo, **options)(given["texts"], padding=True, return_tensors="pt")
    is_torch = name in ("remote", "native", "plain")
    logits = by_torch(repo, inputs, **options) if is_torch else by_onnxruntime(repo, inputs)
    labels = torch.tensor(given["labels"])
    out[name] = {
        "difference": float((logits - given["logits"]).abs().max()),
        "accuracy": float((logits.argmax(-1) == labels).float().mean()),
        "same": bool((logits.argmax(-1) == given["logits"].argmax(-1)).all()),
    }
"""


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """What the process that made the model says, and those that read it elsewhere."""
    root = tmp_path_factory.mktemp("journey")
    with local_hub() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment(root / "home").items():
            patch.setenv(name, value)
        patch.setenv("PYTHONWARNINGS", "ignore")  # torch's exporter names what it will change
        here = fresh(HERE, str(root))
        patch.setenv("HF_HOME", str(root / "elsewhere"))
        there = fresh(READ, str(root), "remote", "plain", "onnx", "int8")
        patch.setenv("HF_HOME", str(root / "third"))
        return here, there | {"native": fresh(READ, str(root), "native")["native"]}


def test_the_model_that_is_read_elsewhere_has_learned_its_task_and_lost_weights(journey):
    here, _ = journey
    assert here["accuracy"] > 0.9
    assert here["width"] == 32


@pytest.mark.parametrize("mode", ["remote", "native", "plain"])
def test_it_computes_the_same_in_each_mode(mode, journey):
    assert journey[1][mode]["difference"] == 0.0


def test_each_mode_has_the_code_that_it_is_said_to_have(journey):
    assert journey[1]["modules"] == {"remote": "transformers_modules", "plain": "transformers"}


def test_its_onnx_file_gives_the_same_answers(journey):
    assert 0 < journey[1]["onnx"]["difference"] < 1e-4
    assert journey[1]["onnx"]["same"]


def test_its_int8_file_is_within_its_certificate(journey):
    here, there = journey
    assert here["verdict"] == "PASS"
    assert there["int8"]["difference"] > 1e-4  # int8 it is
    assert there["int8"]["accuracy"] == pytest.approx(here["certified accuracy"])
    assert here["accuracy"] - there["int8"]["accuracy"] <= here["excluded drop"]
