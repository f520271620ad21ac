"""The front door: what importing the package costs and offers, in fresh processes; and what type checkers see of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import transformers

import hf_headprune
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.prunable import class_names
from hf_headprune.shrink.surgery import prune_model_
from tests.support.fresh_process import fresh_each
from tests.support.models import tiny_bert
from tools.stubs import STUB, stub

HEAVY = [
    "transformers.trainer",
    "transformers.modeling_utils",
    "transformers.models",
    "accelerate",
    "datasets",
    "pandas",
    "scipy",
    "sklearn",
    "hf_headprune.callback",
    "hf_headprune.pipeline",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved BERT of which the first layer has one head left."""
    path = tmp_path_factory.mktemp("pruned")
    model = tiny_bert()
    prune_model_(model, PruningPlan.of(model).replace(kept_heads={"encoder.layer.0.attention": (1,)}))
    model.save_pretrained(path)
    return path


ORDERS = {
    "Auto classes before the package": "from transformers import AutoModelForSequenceClassification as A, AutoConfig",
    "a configuration first": "import hf_headprune\nfrom transformers import BertConfig",
    "a tokenizer first": "import hf_headprune\nfrom transformers import AutoTokenizer",
    "a class by its module first": "from hf_headprune.shrink.prunable import PrunableBertForSequenceClassification",
}
READ = """
import hf_headprune
from transformers import AutoConfig, AutoModelForSequenceClassification, TOKENIZER_MAPPING
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
config = AutoConfig.from_pretrained(sys.argv[1])
out["is_known"] = type(model) is hf_headprune.PrunableBertForSequenceClassification
out["is_config"] = type(config) is type(model.config) is hf_headprune.PrunableBertConfig
out["tokenizer"] = TOKENIZER_MAPPING[type(config)].__name__
out["heads"] = [len(layer.attention.self.query.weight) for layer in model.bert.encoder.layer]
"""
ALONE = "before = set(sys.modules); import hf_headprune; out['new'] = sorted(set(sys.modules) - before)"
READ_ALONE = """
import hf_headprune
from transformers import AutoModelForSequenceClassification
out["class"] = type(AutoModelForSequenceClassification.from_pretrained(sys.argv[1])).__name__
out["imported"] = [name for name in sys.modules if name.startswith(("transformers.", "hf_headprune.", "datasets"))]
"""
PICKLED = """
import torch, transformers
config = torch.load(sys.argv[2], weights_only=False)
out["class"] = type(transformers.AutoModel.from_config(config)).__name__
"""


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    """What each script finds in a process that has imported torch and Transformers, and nothing of this package."""
    file = tmp_path_factory.mktemp("pickled") / "config.pt"
    torch.save(transformers.AutoConfig.from_pretrained(folder), file)
    scripts = {name: f"{first}\n{READ}" for name, first in ORDERS.items()}
    scripts |= {"alone": ALONE, "read alone": READ_ALONE, "pickled": PICKLED}
    return fresh_each(scripts, str(folder), str(file))


@pytest.mark.slow
def test_importing_the_package_imports_nothing_heavy(found):
    new = found["alone"]["new"]
    assert "hf_headprune.errors" in new
    assert not set(new) & set(HEAVY)
    assert len(new) < 15


@pytest.mark.slow
def test_reading_a_pruned_bert_imports_the_modeling_file_of_bert_alone(found):
    read = found["read alone"]
    assert read["class"] == "PrunableBertForSequenceClassification"
    modeling = [name for name in read["imported"] if name.startswith("transformers.models.") and ".modeling_" in name]
    assert sorted(modeling) == ["transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert"]
    rooms = {name.split(".")[1] for name in read["imported"] if name.startswith("hf_headprune.")}
    assert rooms & {"callback", "pipeline", "search", "guarantee", "learn", "refit", "publish"} == set()
    assert set(read["imported"]) & {"transformers.trainer", "datasets"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_pruned_checkpoints_in_any_order_of_imports(order, found):
    expected = {"is_known": True, "is_config": True, "tokenizer": "BertTokenizer", "heads": [8, 32]}
    assert found[order] == expected


@pytest.mark.slow
def test_a_pickled_configuration_is_enough_to_build_its_model(found):
    assert found["pickled"] == {"class": "PrunableBertModel"}


def test_every_public_name_is_found_and_no_other():
    names = hf_headprune.__all__
    assert names == dir(hf_headprune) == sorted(names)
    assert {"HeadPruneCallback", "search_plan", "prune_model_", "errors", *class_names()} <= set(names)
    assert all(getattr(hf_headprune, name) is not None for name in names)
    for wrong in ("PrunableBert", "headprunecallback", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"has no attribute '{wrong}'"):
            getattr(hf_headprune, wrong)


def test_a_star_import_offers_every_public_name():
    namespace: dict = {}
    exec("from hf_headprune import *", namespace)
    assert set(hf_headprune.__all__) <= set(namespace)


def test_a_subclass_of_a_prunable_class_is_read_and_is_one(folder):
    class Weighted(hf_headprune.PrunableBertForSequenceClassification):
        pass

    model = Weighted.from_pretrained(folder)
    assert isinstance(model, hf_headprune.PrunableBertForSequenceClassification)
    assert isinstance(model, transformers.BertForSequenceClassification)


# --- type checkers ---------------------------------------------------------------------------------------------------


def test_the_stub_is_what_the_declarations_give():
    assert STUB.read_text(encoding="utf-8") == stub(), "run python -m tools.stubs"


def test_prunable_classes_derive_from_the_dense_ones_in_the_stub():
    classes = {n.name: n for n in ast.parse(STUB.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)}
    assert set(classes) == set(class_names())
    for name, node in classes.items():
        shared = "PrunableConfig" if name.endswith("Config") else "PrunableModel"
        assert [ast.unparse(base) for base in node.bases] == [shared, name.removeprefix("Prunable")]


RIGHT = """
from hf_headprune import HeadPruneCallback, PrunableBertConfig, PrunableBertForSequenceClassification, PruningPlan
from hf_headprune import prune_model_, search_plan
import hf_headprune

callback = HeadPruneCallback(density=0.5)
config: PrunableBertConfig = PrunableBertForSequenceClassification.from_pretrained("folder").config
plan: PruningPlan = PruningPlan.from_json("{}")
version: str = hf_headprune.__version__
"""
WRONG = {
    "from hf_headprune import PrunableBertKonfig": "attr-defined",
    "from hf_headprune import HeadPruneCallback\nHeadPruneCallback(densty=0.5)": "call-arg",
    "from hf_headprune import PruningPlan\nPruningPlan.from_json(3)": "arg-type",
    "from hf_headprune import PrunableBertConfig\nnumber: int = PrunableBertConfig": "assignment",
}


@pytest.mark.slow
def test_mypy_sees_the_public_names_and_refuses_their_wrong_use(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    (tmp_path / "right.py").write_text(RIGHT)
    for number, source in enumerate(WRONG):
        (tmp_path / f"wrong_{number}.py").write_text(source)
    settings = tmp_path / "mypy.ini"
    settings.write_text(
        "[mypy]\nfollow_imports = silent\n"
        + "".join(
            f"[mypy-{library}.*]\nfollow_imports = skip\nignore_missing_imports = True\n"
            for library in ("torch", "transformers", "numpy", "scipy", "huggingface_hub", "accelerate", "tqdm")
        )
    )
    files = sorted(str(path) for path in tmp_path.glob("*.py"))
    report, errors, _ = mypy.run(["--config-file", str(settings), "--cache-dir", str(tmp_path / "cache"), *files])
    assert errors == ""
    found = [line for line in report.splitlines() if ": error:" in line]
    codes = {f"wrong_{number}.py": code for number, code in enumerate(WRONG.values())}
    assert {Path(line.split(":")[0]).name: line.rsplit("[", 1)[-1].rstrip("]") for line in found} == codes
