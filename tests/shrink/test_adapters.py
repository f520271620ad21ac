"""LoRA: merged adapters are pruned with their base, live and stale ones are refused, new ones fit the pruned model."""

import copy

import pytest
import torch

from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.families import FAMILIES
from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.prunable import PrunableModel
from hf_headprune.shrink.surgery import prune_model_
from tests.support.documentation import ROOT, blocks, stand_ins
from tests.support.families import made
from tests.support.models import text_inputs, tiny_bert
from tests.support.trainers import labelled_rows, trainer_of

peft = pytest.importorskip("peft", reason="PEFT comes with the extra `dev`")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT reads it
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # as it says of GPT-2, and sets it
]

SITE = "encoder.layer.0.attention"
EVERYWHERE = {"target_modules": ["query", "value", "intermediate.dense", "output.dense"]}


def adapted(model, **settings):
    """The model with an adapter whose weights are not zero."""
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **settings))


def with_heads(kept):
    model = tiny_bert()
    return prune_model_(model, PruningPlan.of(model).replace(kept_heads={SITE: kept}))


@pytest.fixture(scope="module")
def dense_adapter(tmp_path_factory):
    """Folder of an adapter that was made for the dense model."""
    folder = tmp_path_factory.mktemp("adapter")
    adapted(tiny_bert()).save_pretrained(folder)
    return folder


def test_a_merged_adapter_is_pruned_with_its_base():
    live = adapted(tiny_bert(), task_type="SEQ_CLS", **EVERYWHERE)
    with torch.no_grad():
        expected = live(**text_inputs()).logits
    model = copy.deepcopy(live).merge_and_unload()
    full = PruningPlan.of(model)
    with torch.no_grad():
        torch.testing.assert_close(prune_model_(model, full)(**text_inputs()).logits, expected)
    found = plan_for_budget(live.merge_and_unload(), labelled_rows(16, 0), density=0.6)
    assert isinstance(prune_model_(live.get_base_model(), found), PrunableModel)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (PruningPlan.of, r"not a wrapper around it; .* what its merge_and_unload\(\) returns"),
        (
            lambda live: plan_for_budget(live, labelled_rows(8, 0), density=0.5),
            r"what its merge_and_unload\(\) returns",
        ),
        (
            lambda live: plan_for_budget(live.get_base_model(), labelled_rows(8, 0), density=0.5),
            r"query is a peft\.tuners\.lora\.layer\.Linear; .* Merge adapters \(merge_and_unload of PEFT\)",
        ),
        (
            lambda live: trainer_of("unused", HeadPruneCallback(density=0.5), model=live),
            r"query is a peft\.tuners\.lora\.layer\.Linear; .* Merge adapters",
        ),
    ],
    ids=["plan", "wrapper", "base", "Trainer"],
)
def test_a_live_adapter_is_refused_before_any_work(call, message):
    with pytest.raises(UnsupportedModelError, match=message):
        call(adapted(tiny_bert(), task_type="SEQ_CLS"))


@pytest.mark.parametrize(("kept", "problem"), [((1,), r"has shape \(32, 2\) and needs \(8, 2\)"), ((), "any more")])
def test_an_adapter_of_the_dense_model_is_refused_on_a_pruned_one(dense_adapter, kept, problem):
    message = rf"made for a model of another shape, .*{problem}.*train a new adapter on the pruned model"
    with pytest.raises(UnsupportedModelError, match=message):
        peft.PeftModel.from_pretrained(with_heads(kept), dense_adapter)


@pytest.mark.parametrize("kept", [(1,), ()])
def test_so_it_is_by_transformers_own_call(dense_adapter, kept):
    with pytest.raises(UnsupportedModelError, match="made for a model of another shape"):
        with_heads(kept).load_adapter(dense_adapter)


def test_a_new_adapter_of_a_pruned_model_is_saved_and_loaded(tmp_path):
    live = adapted(with_heads((1,)), task_type="SEQ_CLS", **EVERYWHERE)
    live.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(with_heads((1,)), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**text_inputs()).logits, live(**text_inputs()).logits)
    by_transformers = with_heads((1,))
    adapted(with_heads((1,))).save_pretrained(tmp_path / "other")
    by_transformers.load_adapter(tmp_path / "other")


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "llama", "gpt2"])
def test_pefts_default_modules_are_those_of_the_family(name):
    dense, _ = made(name)
    pruned, _ = made(name)
    prune_model_(pruned, PruningPlan.of(pruned))
    defaults = [set(adapted(model).peft_config["default"].target_modules) for model in (dense, pruned)]
    assert defaults[0] == defaults[1] != set()
    known = peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    assert known.get(FAMILIES[name].prunable_type) == known.get(name)


def test_the_block_of_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [code for code in blocks(ROOT / "docs" / "use_it_with.md", "text") if "peft" in code]
    names = {**stand_ins(tmp_path, code), "plan_for_budget": plan_for_budget, "prune_model_": prune_model_}
    exec(code, names)
    assert isinstance(names["merged"], PrunableModel)
    assert sum(parameter.requires_grad for parameter in names["adapted"].parameters()) > 0
