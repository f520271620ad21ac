"""The journey of a model at smoke size: fine-tuned and pruned, pushed to a Hub, read elsewhere in every way.

Each in an environment of its own: the model is made, and read natively, where the built wheel is; it is read as remote
code and plainly where there are torch and Transformers alone; its ONNX files where there is onnxruntime and no torch.
`make journey` installs these environments anew; in the suite they are made of what is installed.
"""

import shutil
from pathlib import Path

import pytest

from tests.support.fresh_process import ROOT, fresh
from tests.support.hub import local_hub

pytestmark = pytest.mark.slow

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="the extra `onnx` is not installed")

HERE = """
import copy
import numpy as np
import torch
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments
import hf_headprune
from hf_headprune import HeadPruneCallback, certify, export_model, export_onnx
from tests.support.command_line import sentences, tokenizer_of_words
from tests.support.models import tiny_bert

root, tokenizer = sys.argv[1], tokenizer_of_words()
def encoded(rows):
    return [{**tokenizer(row["sentence"]), "labels": int(row["label"] == "positive")} for row in rows]
train, unseen = sentences(480, seed=0), sentences(120, seed=1)
args = TrainingArguments(root + "/out", num_train_epochs=3, learning_rate=3e-3, per_device_train_batch_size=16,
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
labels = [row["labels"] for row in encoded(unseen)]
np.savez(root + "/given.npz", texts=np.array(texts), labels=np.array(labels), logits=logits.numpy())
out["package"] = hf_headprune.__file__
"""
# What another machine does, with this package for the native mode and without it for all others.
READ = """
from importlib.util import find_spec
root, *names = sys.argv[1:]
out["has"] = {name: find_spec(name) is not None for name in ("hf_headprune", "torch", "onnxruntime")}
if "native" in names:
    import hf_headprune
import numpy as np
from huggingface_hub import hf_hub_download
from transformers import AutoTokenizer
given = np.load(root + "/given.npz")

def by_torch(repo, inputs, **options):
    import torch
    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained(repo, **options)
    out.setdefault("modules", {})[name] = type(model).__module__.split(".")[0]
    with torch.no_grad():
        return model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()

def by_onnxruntime(repo, inputs):
    import onnxruntime
    session = onnxruntime.InferenceSession(hf_hub_download(repo, "onnx/model.onnx"))
    blank = np.zeros_like(inputs["input_ids"])  # of the types of tokens, which this tokenizer does not return
    return session.run(None, {each.name: inputs.get(each.name, blank) for each in session.get_inputs()})[0]

for name in names:
    repo = "me/" + {"remote": "pruned", "native": "pruned"}.get(name, name)
    options = {"trust_remote_code": True} if name == "remote" else {}
    tokenizer = AutoTokenizer.from_pretrained(repo, **options)
    inputs = dict(tokenizer(list(given["texts"]), padding=True, return_tensors="np"))
    is_torch = name in ("remote", "native", "plain")
    logits = by_torch(repo, inputs, **options) if is_torch else by_onnxruntime(repo, inputs)
    out[name] = {
        "difference": float(np.abs(logits - given["logits"]).max()),
        "accuracy": float((logits.argmax(-1) == given["labels"]).mean()),
        "same": bool((logits.argmax(-1) == given["logits"].argmax(-1)).all()),
    }
"""


def made_here(root, python):
    """Makes and uploads the model, from the wheel."""
    shutil.copytree(ROOT / "tests" / "support", root / "helpers" / "tests" / "support")  # and not the package
    (root / "helpers" / "tests" / "__init__.py").touch()
    return fresh(HERE, str(root), python=python, path=root / "helpers", cwd=root)


@pytest.fixture(scope="module")
def journey(tmp_path_factory, clean_python):
    """What the process that made the model says, and those that read it elsewhere."""
    root = tmp_path_factory.mktemp("journey")
    found = {"has": {}, "modules": {}}
    with local_hub() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment(root / "home").items():
            patch.setenv(name, value)
        patch.setenv("PYTHONWARNINGS", "ignore")  # torch's exporter names what it will change
        here = made_here(root, clean_python("wheel"))
        readers = {"torch": ("remote", "plain"), "onnx": ("onnx", "int8"), "wheel": ("native",)}
        for environment, names in readers.items():
            patch.setenv("HF_HOME", str(root / f"home_{environment}"))  # no name of a package
            there = fresh(READ, str(root), *names, python=clean_python(environment), path=None, cwd=root)
            found["has"][environment] = there.pop("has")
            found["modules"] |= there.pop("modules", {})
            found |= there
    return here, found


def test_the_model_that_is_read_elsewhere_has_learned_its_task_and_lost_weights(journey):
    here, _ = journey
    assert here["accuracy"] > 0.9
    assert here["width"] == 32


@pytest.mark.parametrize("mode", ["remote", "native", "plain"])
def test_it_computes_the_same_in_each_mode(mode, journey):
    assert journey[1][mode]["difference"] == 0.0


def test_each_mode_has_the_code_that_it_is_said_to_have(journey):
    modules = {"remote": "transformers_modules", "plain": "transformers", "native": "hf_headprune"}
    assert journey[1]["modules"] == modules


def test_the_environments_are_clean_and_the_package_comes_from_the_wheel(journey, clean_python):
    here, there = journey
    assert Path(here["package"]).is_relative_to(clean_python("wheel").parents[1])
    assert there["has"]["wheel"]["hf_headprune"]
    assert there["has"]["torch"] == {"hf_headprune": False, "torch": True, "onnxruntime": False}
    assert there["has"]["onnx"] == {"hf_headprune": False, "torch": False, "onnxruntime": True}


def test_its_onnx_file_gives_the_same_answers(journey):
    assert 0 < journey[1]["onnx"]["difference"] < 1e-4
    assert journey[1]["onnx"]["same"]


def test_its_int8_file_is_within_its_certificate(journey):
    here, there = journey
    assert here["verdict"] == "PASS"
    assert there["int8"]["difference"] > 1e-4  # int8 it is
    assert there["int8"]["accuracy"] == pytest.approx(here["certified accuracy"])
    assert here["accuracy"] - there["int8"]["accuracy"] <= here["excluded drop"]
