"""Private names of other libraries: all of them, and what happens in a version that lacks one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, AutoModelForSequenceClassification, BertModel, Trainer

from hf_headprune import _compat
from hf_headprune.anatomy import anatomy_of
from hf_headprune.callback import HeadPruneCallback, trainer_compat
from hf_headprune.errors import UnsupportedVersionError
from hf_headprune.guarantee.records import record_of
from hf_headprune.learn.gates.settings import GateTuning, SubsetGates
from hf_headprune.masking import masked, plain_copy
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink import config
from hf_headprune.shrink.config import PrunableConfig, prunable_config
from hf_headprune.shrink.surgery import prune_model_
from tests.support.fresh_process import fresh_each
from tests.support.models import text_inputs, tiny_bert, tiny_marian, translation_inputs
from tests.support.trainers import labelled_rows, trainer_of

ROOT = Path(_compat.__file__).parents[1]
MODULES = (_compat, trainer_compat)
ROWS: dict[str, Callable] = {}
GONE = "_no_such_name"


def names_of(module) -> dict[str, str]:
    """The constants of a compat file that hold the name of something in another library."""
    return {
        constant: value
        for constant, value in vars(module).items()
        if constant.isupper() and isinstance(value, str) and value.isidentifier()
    }


def without(*constants):
    """Marks what happens without the names that these constants hold."""

    def register(check):
        ROWS.update(dict.fromkeys(constants, check))
        return check

    return register


@pytest.mark.parametrize("constant", [name for module in MODULES for name in names_of(module)])
def test_without_a_private_name(constant, monkeypatch, tmp_path):
    (module,) = [module for module in MODULES if constant in names_of(module)]
    monkeypatch.setattr(module, constant, GONE)
    ROWS[constant](tmp_path)


def test_every_row_is_about_a_name_that_is_used():
    assert set(ROWS) == {name for module in MODULES for name in names_of(module)}


@without("CARD_WRITER")
def _(folder):
    class Embedder:
        def _no_other_name(self, path):
            raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Embedder))
        _compat.wrap_card_writers_(*[lambda method: pytest.fail("there is nothing to wrap")] * 2)
    assert [name for name in vars(Embedder) if not name.startswith("__")] == ["_no_other_name"]


@without("NOT_SAVED")
def _(folder):
    model = tiny_marian()
    model.save_pretrained(folder)
    positions = [w for name, w in model.state_dict().items() if "embed_positions" in name]
    more = anatomy_of(model).num_bytes - (folder / "model.safetensors").stat().st_size
    assert sum(map(torch.Tensor.nbytes.__get__, positions)) >= more > 0  # counted although they are not saved


@without("LOOKED_UP_IN")
def _(folder):
    model = prune_first_head(tiny_bert())
    model.save_pretrained(folder)
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in (folder / "config.json").read_text()
    assert torch.equal(type(model).from_pretrained(folder)(**text_inputs()).logits, model(**text_inputs()).logits)


@without("NOT_LOADED")
def _(folder):
    model = prune_first_head(tiny_marian())
    model.save_pretrained(folder)
    read = type(model).from_pretrained(folder)
    assert torch.equal(read(**translation_inputs()).logits, model(**translation_inputs()).logits)


@without("LOADED_FROM")
def _(folder):
    model = tiny_bert()
    assert record_of(model).config == record_of(plain_copy(model)).config


@without("ATTENTION")
def _(folder):
    model = prune_first_head(tiny_bert(attn_implementation="eager"), kept=())
    given = model(**text_inputs(), output_attentions=True)
    assert given.logits.isfinite().all()
    assert len(given.attentions) == 1  # of two layers: the one without heads does not know that it was asked


@without("RECORDABLE", "RECORDABLE_OF_ALL")
def _(folder):
    class Other(BertModel):
        pass

    _compat.let_record_outputs_(Other)
    model = prune_first_head(tiny_bert(None)).eval()
    assert model(**text_inputs(), output_hidden_states=True).last_hidden_state.isfinite().all()


@without("REGISTERED")
def _(folder):
    names = {"bert": "BertModel"}
    mapping = type(MODEL_MAPPING)({"bert": "BertConfig"}, SimpleNamespace(keys=names.keys))
    made = []
    _compat.register_on_demand_(mapping, prunable_config("bert"), lambda: made.append(1) or BertModel)
    stand_in = mapping[prunable_config("bert")]
    assert made == []
    assert stand_in.from_pretrained == BertModel.from_pretrained
    assert type(stand_in(tiny_bert().config)) is BertModel


@without("DISPATCHED")
def _(folder):
    model = tiny_bert()
    assert not _compat.is_dispatched(model)
    model.hf_device_map = {"bert": "cpu", "classifier": "meta"}
    model.classifier.to("meta")
    assert _compat.is_dispatched(model)


@without("HOOKED_FORWARD")
def _(folder):
    module = nn.Linear(2, 2)
    module._old_forward = module.forward
    module.__class__ = type("Zero", (nn.Linear,), {"forward": lambda self, hidden: hidden * 0})
    _compat.let_class_run_(module)
    assert module._old_forward(torch.ones(2)).any()  # what accelerate's hook would run is as it was


@without("UNWRAPPED_FORWARD")
def _(folder):
    model = tiny_bert()
    model._original_forward, model.forward = model.forward, lambda **_: None
    assert torch.equal(plain_copy(model)(**text_inputs()).logits, type(model).forward(model, **text_inputs()).logits)


@without("COMPILED")
def _(folder):
    model = tiny_bert()
    with masked(model, PruningPlan.of(model)):
        assert model(**text_inputs()).logits.isfinite().all()


@without("HOOKS_BEFORE_FORWARD")
def _(folder):
    linear = nn.Linear(2, 2)
    linear.register_forward_pre_hook(lambda module, args: None)
    assert _compat.hooks_before_forward(linear) == ()


@without("RUN_EPOCH")
def _(folder):
    trainer = trainer_of(folder, None)
    trainer_compat.let_finished_runs_end(trainer)
    assert GONE not in vars(trainer)
    assert "_run_epoch" not in vars(trainer)


@without("SAVE_CHECKPOINT")
def _(folder):
    trainer = trainer_of(folder, None, save_total_limit=1)
    assert trainer_compat.save_checkpoint(trainer, folder / "state") is False
    assert trainer.args.save_total_limit == 1
    assert not list(folder.glob("**/checkpoint-*"))


@without("LOAD_CHECKPOINT")
def _(folder):
    class Own(Trainer):
        def _load_from_checkpoint(self, *args, **kwargs):
            raise AssertionError

    trainer = trainer_of(folder, None, trainer_class=Own)
    trainer_compat.let_loader_find(trainer, [])
    assert "_load_from_checkpoint" not in vars(trainer)


@without("PREPARE_INPUTS")
def _(folder):
    batch = {"input_ids": torch.zeros(1, 2)}
    assert trainer_compat.prepared(trainer_of(folder, None), batch)["input_ids"].device.type == "cpu"


@without("COUNT_ITEMS")
def _(folder):
    assert trainer_compat.items_of(trainer_of(folder, None), {"labels": torch.zeros(2)}) is None


@without("TAKES_NUM_ITEMS")
def _(folder):
    trainer = trainer_of(folder, None)
    assert trainer_compat.leaves_loss(trainer, 8)
    assert not trainer_compat.leaves_loss(trainer, None)


@without("MICRO_BATCHES")
def _(folder):
    assert trainer_compat.micro_batches(trainer_of(folder, None, gradient_accumulation_steps=3)) == 3


@without("LOSS_SCALER")
def _(folder):
    assert trainer_compat.loss_scale(trainer_of(folder, None)) == 1.0


@without("DDP_SETTINGS")
def _(folder):
    trainer = trainer_of(folder, None)
    trainer_compat.let_ddp_miss_scores(trainer)
    assert trainer.args.ddp_find_unused_parameters is True


def test_a_copy_runs_with_the_forward_method_of_the_run_and_never_runs_the_run_s_model():
    model = tiny_bert()
    before, ran = model.forward, []

    def forward(self, *args, scale=1.0, **kwargs):
        ran.append(self)
        found = before(*args, **kwargs)
        return {"logits": scale * found.logits}

    model.forward = MethodType(forward, model)
    twin = plain_copy(model)
    with torch.no_grad():
        twin.classifier.bias += 1.0
        alone = twin(**text_inputs()).logits
        with _compat.lent_forward(model, twin):
            lent = twin(**text_inputs(), scale=2.0)["logits"]
        assert torch.equal(lent, 2 * alone)
        assert ran == [twin]
        assert torch.equal(twin(**text_inputs()).logits, alone)


# --- with the names --------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_installed_versions(tmp_path):
    """Fails where a library has renamed something: then its function needs the new name, beside the old."""
    trainer, model = trainer_of(tmp_path, None), tiny_bert()
    owners = {
        "NOT_SAVED": model,
        "NOT_LOADED": model,
        "LOADED_FROM": model.config,
        "ATTENTION": model.config,
        "RECORDABLE": model,
        "RECORDABLE_OF_ALL": pytest.importorskip("transformers.utils.output_capturing"),
        "REGISTERED": MODEL_MAPPING,
        "LOOKED_UP_IN": AutoModel,
        "COMPILED": pytest.importorskip("torch._dynamo.utils"),
        "HOOKS_BEFORE_FORWARD": model,
        "LOSS_SCALER": trainer.accelerator,
        "DDP_SETTINGS": trainer.accelerator,
    }
    given_later = {
        "DISPATCHED",
        "HOOKED_FORWARD",
        "UNWRAPPED_FORWARD",
        "MICRO_BATCHES",
        "CARD_WRITER",
    }  # not before something is spread, wrapped, run, imported
    for module in MODULES:
        for constant in names_of(module).keys() - given_later:
            assert hasattr(owners.get(constant, trainer), names_of(module)[constant]), constant


def test_accelerate_and_torch_mark_models_as_they_are_looked_for():
    hooks = pytest.importorskip("accelerate.hooks")
    model = tiny_bert()
    hooks.add_hook_to_module(model.classifier, hooks.ModelHook())
    assert _compat.is_dispatched(model)
    assert hasattr(model.classifier, _compat.HOOKED_FORWARD)


# --- all at once -----------------------------------------------------------------------------------------------------

ALL_GONE = """
import hf_headprune._compat as compat
for name, value in vars(compat).copy().items():
    if name.isupper() and isinstance(value, str) and value.isidentifier():
        setattr(compat, name, "_no_such_name")
import hf_headprune
from transformers import {first}
model = hf_headprune.PrunableBertForSequenceClassification.from_pretrained(sys.argv[1])
out["own class"] = type(model).__name__
from transformers import AutoModelForSequenceClassification
out["Auto class"] = type(AutoModelForSequenceClassification.from_pretrained(sys.argv[1])).__name__
"""


@pytest.mark.slow
def test_without_any_of_the_names_the_package_is_imported_and_a_checkpoint_is_read(tmp_path):
    prune_first_head(tiny_bert()).save_pretrained(tmp_path)
    found = fresh_each({first: ALL_GONE.format(first=first) for first in ("AutoConfig", "AutoModel")}, str(tmp_path))
    expected = dict.fromkeys(("own class", "Auto class"), "PrunableBertForSequenceClassification")
    assert found == {"AutoConfig": expected, "AutoModel": expected}


def test_without_any_of_the_names_a_model_is_trained_cut_and_saved(tmp_path, monkeypatch):
    for module in MODULES:
        for constant in names_of(module):
            monkeypatch.setattr(module, constant, GONE)
    callback = HeadPruneCallback(gates=SubsetGates(kept_heads=3, tuning=GateTuning(scoring_examples=8)), latency=None)
    trainer = trainer_of(tmp_path / "run", callback, train_dataset=labelled_rows(32, 0))
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert anatomy_of(read).num_heads == callback.plan.num_kept_heads <= 3
    assert torch.equal(read(**text_inputs()).logits, trainer.model.eval()(**text_inputs()).logits)


# --- what nothing can stand for --------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_the_versions_that_have_it():
    with pytest.raises(UnsupportedVersionError, match=r"no SimpleNamespace\.self_attention_cache.*generate.*5\.14 to"):
        _compat.part_of_cache(SimpleNamespace(), "self_attention_cache")
    with pytest.raises(UnsupportedVersionError, match=r"no PreTrainedConfig\.per_layer_config, .*numbers of heads"):
        config._native_entries(type("NoSuchConfig", (PrunableConfig,), {}))


def test_the_supported_versions_are_those_that_are_tested():
    oldest, newest = _compat.SUPPORTED_TRANSFORMERS.split(" to ")
    assert f'"transformers>={oldest}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\ntransformers=={newest}." in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def prune_first_head(model, kept=(1,)):
    plan = PruningPlan.of(model)
    return prune_model_(model, plan.replace(kept_heads={next(iter(plan.kept_heads)): kept}))
