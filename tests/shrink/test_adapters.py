"""LoRA: adapters are pruned with their base, merged or not; stale ones are refused, new ones fit the pruned model."""

import copy

import pytest
import torch

from hf_headprune.callback import HeadPruneCallback
from hf_headprune.errors import InvalidPlanError, UnsupportedModelError
from hf_headprune.families import FAMILIES
from hf_headprune.masking import masked
from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.prunable import PrunableModel
from hf_headprune.shrink.surgery import prune_model_
from tests.support.documentation import ROOT, blocks, stand_ins
from tests.support.families import made
from tests.support.models import TINY_FAMILIES, text_inputs, tiny_bert
from tests.support.trainers import labelled_rows, trainer_of

peft = pytest.importorskip("peft", reason="PEFT comes with the extra `dev`")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT reads it
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.* have invalid shape"),  # as it says of biases
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


@pytest.mark.slow
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


def logits_of(model, inputs=None):
    with torch.no_grad():
        return model.eval()(**(inputs or text_inputs())).logits


def merged_copy(live):
    return copy.deepcopy(live).merge_and_unload()


def every_other_unit(model, *, emptied=()):
    """A plan that keeps every other unit, and none at the sites whose name has one of the words in it."""
    full = PruningPlan.of(model)
    sizes = {**full.num_heads, **full.num_ffn}
    kept = {
        site: () if any(word in site for word in emptied) else range(0, units, 2 if units > 1 else 1)
        for site, units in sizes.items()
    }
    return full.replace(
        kept_heads={site: kept[site] for site in full.num_heads}, kept_ffn={site: kept[site] for site in full.num_ffn}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", EVERYWHERE),
        ("roberta", {"target_modules": "all-linear"}),
        ("t5", {}),
        ("llama", {"target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], "use_rslora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "lora_bias": True}),
    ],
    ids=["bert", "roberta", "t5", "llama", "gpt2"],
)
def test_a_live_adapter_is_cut_with_its_base(name, settings, tmp_path):
    dense, inputs = made(name)
    live = adapted(dense, **settings)
    base, plan = live.get_base_model(), every_other_unit(dense)
    with live.disable_adapter():
        alone = logits_of(live, inputs)
    with masked(base, plan):
        expected = logits_of(live, inputs)
    assert not torch.allclose(alone, expected, atol=1e-3)  # the adapter says something
    assert prune_model_(live, plan) is live
    assert isinstance(base, PrunableModel)
    torch.testing.assert_close(logits_of(live, inputs), expected)
    live.save_pretrained(tmp_path / "adapter")
    copy.deepcopy(live).unload().save_pretrained(tmp_path / "base")
    read = type(base).from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(read, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(again, inputs), expected)
    torch.testing.assert_close(logits_of(merged_copy(again), inputs), expected)


def test_the_base_loses_nothing_but_what_the_plan_removes():
    dense = tiny_bert()
    plan = every_other_unit(dense)
    live = prune_model_(adapted(copy.deepcopy(dense), task_type="SEQ_CLS", **EVERYWHERE), plan)
    with live.disable_adapter():
        torch.testing.assert_close(logits_of(live), logits_of(prune_model_(dense, plan)), rtol=0, atol=0)
    assert {name.split(".")[-3] for name, it in live.named_parameters() if it.requires_grad} >= {"lora_A", "lora_B"}


@pytest.mark.parametrize("excluded", [None, ["decoder"], "decoder"])
def test_blocks_that_lose_all_units_lose_their_adapter(excluded, tmp_path):
    dense = tiny_bert()
    plan = every_other_unit(dense, emptied=("layer.0.attention", "layer.1.intermediate"))
    live = adapted(dense, task_type="SEQ_CLS", exclude_modules=excluded, **EVERYWHERE)
    with masked(live.get_base_model(), plan):
        expected = logits_of(live)
    torch.testing.assert_close(logits_of(prune_model_(live, plan)), expected)
    assert not [name for name, _ in live.named_modules() if "lora" in name and "layer.0.attention" in name]
    live.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(live).unload(), tmp_path)
    torch.testing.assert_close(logits_of(again), expected)


@pytest.mark.slow
def test_a_refit_for_base_and_adapter_goes_into_the_base(tmp_path):
    live = adapted(tiny_bert(), task_type="SEQ_CLS", **EVERYWHERE)
    found = plan_for_budget(merged_copy(live), labelled_rows(16, 0), density=0.6)
    with masked(merged := merged_copy(live), found):
        expected = logits_of(merged)
    with masked(live.get_base_model(), found.plan):
        assert not torch.allclose(logits_of(live), expected, atol=1e-5)  # the refit does something
    with pytest.raises(InvalidPlanError, match=r"no weight of its own, .* cut the model with its adapter"):
        masked(live.get_base_model(), found).__enter__()
    torch.testing.assert_close(logits_of(prune_model_(live, found)), expected)
    assert not any(module.merged for module in live.modules() if hasattr(module, "lora_A"))
    live.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(live).unload(), tmp_path)
    torch.testing.assert_close(logits_of(again), expected)


def test_a_model_with_adapters_and_no_wrapper_is_cut_with_them():
    model = tiny_bert()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, init_lora_weights=False, **EVERYWHERE), model)
    plan = every_other_unit(model)
    with masked(model, plan):
        expected = logits_of(model)
    torch.testing.assert_close(logits_of(prune_model_(model, plan)), expected)


def test_of_a_plan_for_another_model_nothing_changes():
    live = adapted(tiny_bert(), task_type="SEQ_CLS", **EVERYWHERE)
    other = plan_for_budget(tiny_bert(seed=3), labelled_rows(16, 0), density=0.6)
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    with pytest.raises(InvalidPlanError, match="does not fit"):
        prune_model_(live, other)
    assert {name: torch.equal(tensor, before[name]) for name, tensor in live.state_dict().items()} == dict.fromkeys(
        before, True
    )


@pytest.mark.parametrize("config", [{"use_dora": True}, None], ids=["DoRA", "IA3"])
def test_other_adapters_are_refused_unmerged(config):
    model = tiny_bert()
    if config is None:
        live = peft.get_peft_model(model, peft.IA3Config(target_modules=["key"], feedforward_modules=[]))
    else:
        live = adapted(model, **config)
    with pytest.raises(
        UnsupportedModelError, match=r"only plain LoRA on linear modules .* \(merge_and_unload of PEFT\)"
    ):
        prune_model_(live, every_other_unit(tiny_bert()))
    assert [name for name, _ in live.named_modules() if "lora_A" in name or "ia3_l" in name]


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
def test_nothing_is_measured_on_a_live_adapter(call, message):
    with pytest.raises(UnsupportedModelError, match=message):
        call(adapted(tiny_bert(), task_type="SEQ_CLS"))


@pytest.mark.parametrize(("kept", "problem"), [((1,), r"has shape \(32, 2\) and needs \(8, 2\)"), ((), "any more")])
def test_an_adapter_of_the_dense_model_is_refused_on_a_pruned_one(dense_adapter, kept, problem):
    advice = "with the adapter in it .* or train a new adapter on the pruned model"
    message = rf"made for a model of another shape, .*{problem}.*{advice}"
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


@pytest.mark.parametrize(
    "name", sorted(TINY_FAMILIES.keys() & peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.keys())
)
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
    (code,) = [code for code in blocks(ROOT / "docs" / "use_it_with.md", "python") if "peft" in code]
    names = {**stand_ins(tmp_path, code), "plan_for_budget": plan_for_budget, "prune_model_": prune_model_}
    exec(code, names)
    read = peft.PeftModel.from_pretrained(
        names["AutoModelForSequenceClassification"].from_pretrained("base"), "adapter"
    )
    assert isinstance(read.get_base_model(), PrunableModel)
    assert [name for name, _ in read.named_parameters() if "lora_A" in name]
