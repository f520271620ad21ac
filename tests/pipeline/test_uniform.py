"""Equal numbers in all layers: what each call finds under that constraint is loaded by unmodified Transformers."""

import copy

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.cost import latency_of
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from hf_headprune.families import FAMILIES
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.pipeline.budget import plan_for_budget
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.choice import choose
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.search.settings import AStarSearch, SearchTuning
from hf_headprune.shrink import export
from hf_headprune.shrink.export import export_model
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.uniform import tied_sites
from tests.support.classifiers import examples, own_examples
from tests.support.families import made
from tests.support.models import TINY_FAMILIES, tiny_bert
from tests.support.settings import second_order
from tests.support.trainers import trainer_of

SAYS_NOTHING = {"gpt2", "swin", "siglip_vision_model"}
LAYERS = 3


def classifier(family):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": LAYERS, "vocab_size": 100}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    config = AutoConfig.for_model(family, num_labels=3, pad_token_id=0, **sizes, **heads)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture
def mistral():
    """A model whose configuration takes any number of heads."""
    return classifier("mistral")


@pytest.fixture
def llama():
    """A model whose configuration takes numbers of heads that divide the hidden size."""
    return classifier("llama")


@pytest.fixture(scope="module")
def rows():
    return own_examples(classifier("mistral"))


def numbers(plan):
    """The numbers of heads and of FFN units in the layers of a plan."""
    return {len(units) for units in plan.kept_heads.values()}, {len(units) for units in plan.kept_ffn.values()}


def assert_equal_layers(plan):
    assert list(map(len, numbers(plan))) == [1, 1]
    assert 0 not in set().union(*numbers(plan))


def difference_of_plain(model, found, folder, inputs):
    """How far the dense class, read from a plain folder of the pruned model, is from the pruned model."""
    pruned = prune_model_(copy.deepcopy(model), found)
    read = type(model).from_pretrained(export_model(pruned, folder, mode="plain"))
    assert type(read).__module__.startswith("transformers.")
    assert sum(map(torch.numel, read.parameters())) < sum(map(torch.numel, model.parameters()))
    with torch.no_grad():
        return float((read(**inputs)[0] - pruned(**inputs)[0]).abs().max())


def test_what_the_dense_class_computes_otherwise_is_never_in_the_folder(tmp_path, monkeypatch):
    answers = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr(export, "probe", lambda model: next(answers))
    (tmp_path / "earlier.txt").touch()
    model = tiny_bert()
    pruned = prune_model_(model, PruningPlan.of(model))
    with pytest.raises(UnsupportedModelError, match=r"compute something else than the pruned model\. Nothing was"):
        export_model(pruned, tmp_path, mode="plain")
    assert [it.name for it in tmp_path.iterdir()] == ["earlier.txt"]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in SAYS_NOTHING])
def test_every_family_that_can_say_equal_numbers_is_pruned_to_some_and_is_of_the_dense_class(name, tmp_path):
    model, inputs = made(name)
    losses = (model(**inputs)[0].float().square().sum() for _ in range(1))
    settings = second_order(density=0.8, width_multiple=1, uniform=True)
    found = RefittedPlan(*choose(model, settings, PruningPlan.of(model), losses))
    for tie in tied_sites(anatomy_of(model).sites):
        assert len({len(found.plan.kept(site.name)) for site in tie}) == 1
    assert found.plan != PruningPlan.of(model)
    if FAMILIES[name].body is None:
        assert isinstance(model, getattr(transformers, TINY_FAMILIES[name].auto)._model_mapping[type(model.config)])
    assert difference_of_plain(model, found, tmp_path, inputs) == 0.0


@pytest.mark.parametrize("budget", [{"density": 0.5}, {"speedup": 2.0}, {"kept_heads": 6}, {"size_mb": 0.08}], ids=str)
def test_a_budget_is_met_by_equal_layers_that_differ_in_which_units_they_keep(mistral, rows, budget, tmp_path):
    found = plan_for_budget(mistral, rows, uniform=True, **budget)
    assert_equal_layers(found.plan)
    assert len({*found.plan.kept_heads.values(), *found.plan.kept_ffn.values()}) > 2  # by costs
    inputs = {"input_ids": torch.tensor([rows[0]["input_ids"]])}
    assert difference_of_plain(mistral, found, tmp_path, inputs) == 0.0


def test_a_search_over_whole_layers_gives_a_model_with_fewer_of_them(mistral, rows, tmp_path):
    found = search_plan(mistral, rows, search=AStarSearch(max_drop=0.2, units=("layers",), max_evaluations=20))
    emptied = [name for name, heads in found.plan.kept_heads.items() if not heads]
    assert 0 < len(emptied) < LAYERS
    inputs = {"input_ids": torch.tensor([rows[0]["input_ids"]])}
    assert difference_of_plain(mistral, found, tmp_path, inputs) == 0.0
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == LAYERS - len(emptied)


@pytest.mark.parametrize(("kept", "density"), [(1, 0.25), (2, 0.5), (4, 0.9)])
def test_numbers_that_a_configuration_refuses_are_passed_over(llama, rows, kept, density, tmp_path):
    labelled = [{"input_ids": row["input_ids"], "label": 0} for row in rows]
    tuning = second_order(density=density, uniform=True, width_multiple=8)
    found = second_order_plan(llama, labelled, tuning)
    assert numbers(found.plan)[0] <= {2, 4, 8}  # of groups of two; 6 do not divide 32
    assert linear_density(found.plan, anatomy_of(llama)) == pytest.approx(density, abs=0.09)
    inputs = {"input_ids": torch.tensor([rows[0]["input_ids"]])}
    assert difference_of_plain(llama, found, tmp_path, inputs) == 0.0
    by_heads = plan_for_budget(llama, rows, kept_heads=kept * LAYERS, uniform=True)
    assert numbers(by_heads.plan)[0] == {2 * kept}  # a budget counts groups


def test_a_budget_of_measured_ms_is_met_by_equal_layers(mistral, rows):
    table = {site.name: {0: 0.0, site.units: 1.0} for site in anatomy_of(mistral).sites}
    found = plan_for_budget(mistral, rows, speedup=2.0, latency=table, uniform=True)
    assert_equal_layers(found.plan)
    assert latency_of(found.plan, table) <= latency_of(PruningPlan.of(mistral), table) / 2 + 1e-9


def test_rounds_of_training_meet_a_budget_by_equal_layers(rows, tmp_path):
    callback = HeadPruneCallback(density=0.5, uniform=True, latency=None)
    labelled = [{"input_ids": row["input_ids"][:3], "labels": row["label"]} for row in rows]
    trainer = trainer_of(tmp_path, callback, model=classifier("mistral"), train_dataset=labelled, eval_dataset=labelled)
    trainer.train()
    assert_equal_layers(callback.plan)
    folder = export_model(trainer.model, tmp_path / "plain", mode="plain")
    read = AutoModelForSequenceClassification.from_pretrained(folder)
    assert ({read.config.num_attention_heads}, {read.config.intermediate_size}) == numbers(callback.plan)


def test_the_order_of_costs_is_walked_down_in_steps_of_equal_layers(mistral, rows):
    found = search_plan(mistral, rows, calibration=examples(40, 3), max_drop=0.5, uniform=True)
    assert len(found.history) > 2
    for measured in found.history:
        assert_equal_layers(measured.plan)


def test_a_walk_removes_units_of_ffns_that_a_search_would_take_for_one_chunk():
    model = classifier("bert")  # whose configuration says fewer FFN units only
    assert model.config.intermediate_size < AStarSearch().tuning.ffn_chunk
    found = search_plan(model, own_examples(model), calibration=examples(40, 3), max_drop=0.5, uniform=True)
    assert_equal_layers(found.plan)
    assert found.plan.num_removed_ffn > 0


@pytest.mark.parametrize("scores", [None, range(8 * LAYERS)], ids=["by costs", "by scores"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_search_and_the_candidates_of_its_certificate_have_equal_layers(family, rows, scores):
    model = classifier(family)
    search = AStarSearch(max_drop=0.6, max_evaluations=12, tuning=SearchTuning(ffn_chunk=32))
    unseen = [{"input_ids": row["input_ids"], "label": 0} for row in examples(60, 5)]
    options = {"calibration": examples(40, 3), "certify": unseen, "progress": False, "head_scores": scores}
    found = search_plan(model, rows, search=search, uniform=True, **options)
    assert found.search.plan != found.reference
    assert len(found.history) > 2
    for plan in (found.plan, found.search.plan, *(measured.plan for measured in found.history)):
        assert_equal_layers(plan)
    heads = {site: set(range(8)) for site in found.plan.kept_heads}
    assert {site: set(searched) for site, searched in found.search.heads.items()} == heads


def refused(call, message):
    with pytest.raises(InvalidSettingError, match=message):
        call()


def test_what_no_configuration_can_say_is_refused_with_the_reason(llama, mistral, rows):
    bert, gpt2 = tiny_bert(num_labels=3), made("gpt2")[0]
    refused(
        lambda: plan_for_budget(bert, rows, kept_heads=4, uniform=True),
        r"bert has no field that says fewer heads: the width of a head follows from their number",
    )
    refused(
        lambda: plan_for_budget(bert, rows, density=0.4, uniform=True),
        r"this bert keeps at least 0\.\d+ of its parameters \(the width .* all heads are kept\); 0\.400 is asked",
    )
    refused(
        lambda: plan_for_budget(gpt2, rows, density=0.5, uniform=True), "gpt2 has no field that says fewer heads or"
    )
    refused(
        lambda: plan_for_budget(llama, rows, kept_heads=9, uniform=True),
        r"3 layers with equally many heads, .* keep one of 3, 6, 12 heads, received 9\.",
    )
    refused(lambda: plan_for_budget(mistral, rows, kept_heads=5, uniform=True), "one of 3, 6, 9, 12 heads, received 5")
    uneven = classifier("llama")
    prune_model_(uneven, PruningPlan.of(uneven).replace(kept_heads={"layers.0.self_attn": (0, 1)}))
    refused(lambda: search_plan(uneven, rows, uniform=True), "the layers of this model have 2 to 8 units already")
    for setting in ({"units": ("layers",)}, {"units": ("heads",), "objective": "latency"}):
        table = {"tuning": latency_tuning(llama)} if "objective" in setting else {}
        refused(
            lambda search=AStarSearch(**setting, **table): search_plan(llama, rows, search=search, uniform=True),
            r"are searched by heads and FFN units, .* received AStarSearch\((units|objective)=",
        )
    refused(
        lambda: HeadPruneCallback(uniform=True, gates=SubsetGates(kept_heads=6)),
        "gates select units in each layer alone. Leave it out",
    )


def latency_tuning(model):
    sites = anatomy_of(model).attention_sites
    return SearchTuning(latency_ms={site.name: {0: 0.0, site.units: 1.0} for site in sites})
