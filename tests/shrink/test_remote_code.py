"""The code that travels with a checkpoint: every family loads by it where this package can't be imported."""

from __future__ import annotations

import ast
import contextlib
import json
import sys

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from hf_headprune._compat import is_older_than
from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidConfigError, InvalidSettingError, UnsupportedModelError
from hf_headprune.families import FAMILIES
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.export import export_model
from hf_headprune.shrink.prunable import PrunableModel, register_prunable
from hf_headprune.shrink.remote_code import code_of, file_name
from hf_headprune.shrink.surgery import prune_model_
from tests.support.families import made, random_plan
from tests.support.fresh_process import fresh
from tests.support.hub import local_hub
from tests.support.models import TINY_FAMILIES, text_inputs, tiny_bert

SUPPORTED = [name for name, family in FAMILIES.items() if family.since is None or not is_older_than(family.since)]
GENERATING = [name for name in SUPPORTED if TINY_FAMILIES[name].generates]
OWNER = "me"
ELSEWHERE = """
from importlib.util import find_spec
from pathlib import Path
assert find_spec("hf_headprune") is None
import torch, transformers
root, *owner = sys.argv[1:]
for folder in sorted(Path(root).iterdir()):
    given = torch.load(folder / "given.pt")
    read = getattr(transformers, given["auto"])
    model = read.from_pretrained("/".join([*owner, folder.name]) if owner else folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**given["inputs"])[0]
    found = {"difference": float((logits - given["logits"]).abs().max()), "class": type(model).__name__}
    found["module"] = type(model).__module__.split(".")[0]
    if given["again"]:  # saved there, and read there
        model.save_pretrained(folder / "again")
        again = read.from_pretrained(folder / "again", trust_remote_code=True)
        with torch.no_grad():
            found["again"] = float((again(**given["inputs"])[0] - logits).abs().max())
    if given["tokens"] is not None:
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        found["same tokens"] = model.generate(**given["prompt"], **options).tolist() == given["tokens"]
    out[folder.name] = found
"""


UPLOAD = """
from pathlib import Path
from huggingface_hub import HfApi
for folder in sorted(Path(sys.argv[1]).iterdir()):
    name = f"{sys.argv[2]}/{folder.name}"
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=folder, ignore_patterns=["given.pt", "again/*"])
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with a pruned checkpoint of each family, and what it computes here."""
    root = tmp_path_factory.mktemp("checkpoints")
    for number, name in enumerate(SUPPORTED):
        model, inputs = made(name, seed=number)
        prune_model_(model, random_plan(model, seed=number)).save_pretrained(root / name)
        given = {"auto": TINY_FAMILIES[name].auto, "inputs": inputs, "again": number % 6 == 0, "tokens": None}
        with torch.no_grad():
            given["logits"] = model(**inputs)[0]
        if name in GENERATING:
            given_prompt = {key: tensor[:1] for key, tensor in inputs.items() if not key.startswith("decoder")}
            prompt = {key: tensor[:, :5] if tensor.dim() == 2 else tensor for key, tensor in given_prompt.items()}
            options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
            given |= {"prompt": prompt, "tokens": model.generate(**prompt, **options).tolist()}
        torch.save(given, root / name / "given.pt")
    return root


def read_elsewhere(python, root, modules, *owner):
    """Reads all of them where there are torch and Transformers alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(modules))
        return fresh(ELSEWHERE, str(root), *owner, python=python, path=None, cwd=modules)


@pytest.fixture(scope="module")
def elsewhere(checkpoints, clean_python, tmp_path_factory):
    """What each family's checkpoint is there, read from its folder."""
    return read_elsewhere(clean_python("torch"), checkpoints, tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def from_hub(checkpoints, clean_python, tmp_path_factory):
    """What each family's checkpoint is there, read from a Hub."""
    home = tmp_path_factory.mktemp("home")
    with local_hub() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment(home).items():
            patch.setenv(name, value)
        fresh(UPLOAD, str(checkpoints), OWNER)
        return read_elsewhere(clean_python("torch"), checkpoints, home, OWNER)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_every_family_loads_elsewhere_and_computes_the_same(name, elsewhere):
    found = elsewhere[name]
    assert found["module"] == "transformers_modules"
    assert found["class"].startswith("Prunable")
    assert found["difference"] == 0.0
    assert found.get("again", 0.0) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_every_family_loads_from_a_hub_where_there_are_torch_and_transformers_alone(name, from_hub):
    found = from_hub[name]
    assert found["module"] == "transformers_modules"
    assert found["difference"] == 0.0


@pytest.mark.parametrize("name", GENERATING)
def test_every_family_generates_the_same_tokens_elsewhere(name, elsewhere):
    assert elsewhere[name]["same tokens"]


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_code_needs_torch_and_transformers_alone(name):
    tree = ast.parse(code_of(name))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module.split(".")[0] for module in imported} - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_the_code_below_the_declaration_is_the_same_for_all_families():
    ends = {code_of(name).split("def resize_to_config_", 1)[1] for name in ("bert", "t5", "llama", "gpt2")}
    assert len(ends) == 1


@pytest.fixture
def folder(tmp_path):
    """A pruned BERT that is saved with its code."""
    model = tiny_bert()
    prune_model_(model, PruningPlan.of(model).replace(kept_heads={"encoder.layer.0.attention": (1,)}))
    model.save_pretrained(tmp_path / "pruned")
    return tmp_path / "pruned"


def test_where_the_package_is_imported_its_own_classes_are_preferred(folder):
    for trusts in (None, True):
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trusts)
        assert isinstance(model, PrunableModel)
        assert type(model.config).__module__.startswith("hf_headprune.")


@pytest.mark.slow
def test_without_the_package_and_without_trust_the_error_names_the_argument(folder):
    script = """
from transformers import AutoModelForSequenceClassification
try:
    AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
except ValueError as error:
    out["error"] = str(error)
"""
    assert "trust_remote_code=True" in fresh(script, str(folder))["error"]


@pytest.mark.slow
def test_code_that_is_read_before_the_package_is_imported_goes_on_working(folder):
    script = """
from transformers import AutoConfig, AutoModelForSequenceClassification
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
import hf_headprune
options = {"config": config, "trust_remote_code": True}
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], **options)
out["module"] = type(model).__module__.split(".")[0]
try:
    hf_headprune.PrunableBertForSequenceClassification.from_pretrained(sys.argv[1], config=config)
except hf_headprune.errors.InvalidConfigError as error:
    out["error"] = str(error)
out["own"] = type(AutoModelForSequenceClassification.from_pretrained(sys.argv[1])).__module__.split(".")[0]
"""
    found = fresh(script, str(folder))
    assert found["module"] == "transformers_modules"
    assert "received a PrunableBertConfig of transformers_modules" in found["error"]
    assert "whose classes go together" in found["error"]
    assert found["own"] == "hf_headprune"


def test_registering_for_an_auto_class_copies_no_file_that_imports_the_package(folder, monkeypatch):
    model = AutoModel.from_pretrained(folder)
    monkeypatch.setattr(type(model), "_auto_class", None, raising=False)
    type(model).register_for_auto_class("AutoModel")
    type(model.config).register_for_auto_class()
    model.save_pretrained(folder / "again")
    assert [file.name for file in (folder / "again").glob("*.py")] == [file_name("bert")]
    auto_map = json.loads((folder / "again" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_prunable_bert.PrunableBertModel"
    assert {"AutoConfig", "AutoModelForTokenClassification"} <= auto_map.keys()


class OwnBert(transformers.BertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.post_init()

    def forward(self, **inputs):
        return self.bert(**inputs)


def test_a_class_of_the_users_is_saved_without_code_and_says_so(folder, tmp_path):
    model = register_prunable(OwnBert)(AutoConfig.from_pretrained(folder))
    model.save_pretrained(tmp_path / "own")
    assert not list((tmp_path / "own").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "own" / "config.json").read_text())
    with pytest.raises(UnsupportedModelError, match=r'whose code is not ours to write\. Pass mode="native"'):
        export_model(model, tmp_path / "remote", mode="remote")


# --- export_model ----------------------------------------------------------------------------------------------------


def every_other(model, kind):
    plan = PruningPlan.of(model)
    if kind == "heads":
        return plan.replace(kept_heads={site: range(0, units, 2) for site, units in plan.num_heads.items()})
    return plan.replace(kept_ffn={site: range(1, units, 2) for site, units in plan.num_ffn.items()})


@pytest.mark.parametrize("kind", ["heads", "ffn"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_equal_numbers_are_saved_as_a_dense_class_where_it_can_say_them(name, kind, tmp_path):
    model, inputs = made(name)
    if kind == "heads" and not PruningPlan.of(model).num_heads:
        pytest.skip("its heads are not pruned")
    said = {site.block.said for site in anatomy_of(model).sites if site.is_attention == (kind == "heads")}
    prune_model_(model, every_other(model, kind))
    if None in said:  # of two towers, one
        with pytest.raises(UnsupportedModelError, match=r"can't be what this Prunable\w+ is: .*mode=\"remote\""):
            export_model(model, tmp_path, mode="plain")
        return
    export_model(model, tmp_path, mode="plain")
    read = getattr(transformers, type(model).__name__.removeprefix("Prunable")).from_pretrained(tmp_path)
    assert type(read).__module__.startswith("transformers.")
    with torch.no_grad():
        assert torch.equal(read(**inputs)[0], model(**inputs)[0])
    assert not list(tmp_path.glob("*.py"))


def test_a_plain_checkpoint_is_not_put_beside_what_is_about_a_pruned_class(tmp_path):
    model, _ = made("bert")
    prune_model_(model, every_other(model, "ffn"))
    export_model(model, tmp_path)
    with pytest.raises(InvalidSettingError, match=r"holds \['headprune_plan.json'.*Choose another folder"):
        export_model(model, tmp_path, mode="plain")
    assert AutoModel.from_pretrained(tmp_path).config.model_type == "prunable_bert"


@pytest.mark.parametrize("name", [name for name in SUPPORTED if FAMILIES[name].attentions])
def test_a_dense_configuration_takes_the_numbers_of_heads_that_its_family_declares(name):
    config = made(name)[0].config
    block = FAMILIES[name].attentions[0]
    if block.said is None:
        pytest.skip("it can't say fewer heads")
    taken = set()
    for heads in range(1, 9):
        sizes = {"hidden_size": 48, "head_dim": 6, "num_key_value_heads": heads, "num_attention_heads": heads}
        with contextlib.suppress(ValueError, StrictDataclassError):
            type(config).from_dict(config.to_dict() | sizes)
            taken.add(heads)
    assert taken == ({1, 2, 3, 4, 6, 8} if block.said == "divisors" else set(range(1, 9)))


def test_a_number_of_heads_that_the_dense_configuration_refuses_is_refused_with_its_words(tmp_path):
    model = made("llama")[0]  # 4 groups of two heads, hidden size 32
    sites = {site: range(6) for site in PruningPlan.of(model).num_heads}
    prune_model_(model, PruningPlan.of(model).replace(kept_heads=sites))
    with pytest.raises(UnsupportedModelError, match=r"size \(32\) is not a multiple of the number of attention heads"):
        export_model(model, tmp_path, mode="plain")


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ({"kept_ffn": {"encoder.layer.0.intermediate": range(8)}}, "its layers have 8 to 64 intermediate_size"),
        ({"kept_ffn": {f"encoder.layer.{i}.intermediate": () for i in (0, 1)}}, "intermediate_size is 0"),
        (
            {"kept_heads": {f"encoder.layer.{i}.attention": (0, 1) for i in (0, 1)}},
            "the width of a head follows from the number of heads there",
        ),
    ],
)
def test_what_no_dense_configuration_says_is_refused_with_the_reason(kept, reason, tmp_path):
    model = tiny_bert()
    prune_model_(model, PruningPlan.of(model).replace(**kept))
    with pytest.raises(UnsupportedModelError, match=reason):
        export_model(model, tmp_path / "plain", mode="plain")
    assert not (tmp_path / "plain").exists()


def without_layers(model, *layers):
    """Removes all units of some layers, in place."""
    plan, sites = PruningPlan.of(model), anatomy_of(model).sites
    emptied = {site.name: () for site in sites if site.layer in layers}
    heads, ffn = ({name: () for name in kept if name in emptied} for kept in (plan.kept_heads, plan.kept_ffn))
    return prune_model_(model, plan.replace(kept_heads=heads, kept_ffn=ffn))


@pytest.mark.parametrize("kept_width", ["whole", "half"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_layers_that_hand_on_what_they_are_given_are_left_out_of_a_plain_checkpoint(name, kept_width, tmp_path):
    model, inputs = made(name)
    if kept_width == "half":
        prune_model_(model, every_other(model, "ffn"))
    layers = model.config.num_hidden_layers
    without_layers(model, 0)
    export_model(model, tmp_path, mode="plain")
    read = getattr(transformers, type(model).__name__.removeprefix("Prunable")).from_pretrained(tmp_path)
    assert type(read).__module__.startswith("transformers.")
    assert read.config.num_hidden_layers == len(read.base_model.layers) == layers - 1
    with torch.no_grad():
        assert (read(**inputs)[0] - model(**inputs)[0]).abs().max() == 0.0


def test_a_language_model_without_layers_generates_the_same_tokens_as_a_plain_one(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=64
    )
    model = without_layers(transformers.LlamaForCausalLM(config).eval(), 1, 3)
    export_model(model, tmp_path, mode="plain")
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert read.config.num_hidden_layers == 3
    tokens = torch.arange(2, 8).view(1, -1)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(read.generate(tokens, **settings), model.generate(tokens, **settings))


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_an_empty_layer_whose_norm_or_bias_acts_stays_and_the_error_says_so(name, tmp_path):
    model = without_layers(made(name)[0], 1)
    with pytest.raises(UnsupportedModelError, match=r"norm or bias of an empty layer still acts \(layers 1\)"):
        export_model(model, tmp_path / "plain", mode="plain")
    assert not (tmp_path / "plain").exists()


def test_a_native_folder_holds_no_code_and_loads_after_the_import(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    export_model(model, tmp_path / "native", mode="native")
    files = {file.name for file in (tmp_path / "native").iterdir()}
    assert files == {"config.json", "model.safetensors", "headprune_plan.json"}
    assert "auto_map" not in json.loads((tmp_path / "native" / "config.json").read_text())
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "native")
    assert torch.equal(read(**text_inputs()).logits, model(**text_inputs()).logits)


def test_export_refuses_an_unknown_mode_and_a_dense_model(folder, tmp_path):
    model = AutoModel.from_pretrained(folder)
    with pytest.raises(InvalidSettingError, match="mode must be one of 'remote', 'native', 'plain', received 'onnx'"):
        export_model(model, tmp_path / "x", mode="onnx")
    with pytest.raises(
        UnsupportedModelError, match=r"must be a pruned one, received a BertForSequenceClassification\."
    ):
        export_model(tiny_bert(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_configuration_of_another_origin_is_refused_with_where_it_comes_from(folder):
    model = AutoModel.from_pretrained(folder)
    with pytest.raises(InvalidConfigError, match=r"received a BertConfig of transformers\."):
        type(model)(tiny_bert().config)
