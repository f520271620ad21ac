"""Output projections are refitted to the heads that stay: against least squares written out, and where it is used."""

import copy

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.errors import InvalidPlanError, InvalidSettingError
from hf_headprune.masking import masked
from hf_headprune.pipeline.search import search_plan
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.moments import record_moments
from hf_headprune.refit.projections import REMEMBERED, RIDGE, Refit
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator, MetricEvaluator
from hf_headprune.search.plans import search_over_plans
from hf_headprune.search.problem import Question
from hf_headprune.search.settings import AStarSearch, SearchTuning
from hf_headprune.shrink.surgery import prune_model_
from tests.support.classifiers import batches_of, classifier, decided, examples
from tests.support.searches import over_heads, settings

SITE = "encoder.layer.1.attention"


def given_to(model, site, batches, plan):
    """What an output projection is given for each real token, before any head is closed."""
    found = []
    output = base_model(model).get_submodule(site.output)
    handle = output.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.no_grad(), masked(model, plan):
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    kept = [x[b["attention_mask"].bool()] for x, b in zip(found, batches, strict=True)]
    return torch.cat(kept).double()


def evenly(model, batches, start):
    """A refit for which every token counts alike."""

    def run():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return 0.0

    return MetricEvaluator(run, model).use_refit(start, ffn=True)


@pytest.fixture
def case():
    model = classifier()
    batches = batches_of(examples(40))
    return model, batches, ExampleEvaluator(model, batches)


def test_the_refitted_projection_is_that_of_ridge_regression_on_real_tokens(case):
    model, batches, _ = case
    full = PruningPlan.of(model)
    start = full.replace(kept_heads={SITE: (0, 1, 2)})
    refit = evenly(model, batches, start)
    site = next(site for site in anatomy_of(model).sites if site.name == SITE)
    x = given_to(model, site, batches, start)
    width = site.unit_width
    output = base_model(model).get_submodule(site.output)
    lost, stay = slice(width, 2 * width), [*range(width), *range(2 * width, 3 * width)]
    inputs = torch.cat([x[:, stay], torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    target = x[:, lost] @ output.weight.double()[:, lost].T
    ridge = (RIDGE + (3 * width / len(x)) ** 2) * x[:, : 3 * width].square().sum(0).mean()
    free = torch.eye(inputs.shape[1], dtype=torch.float64)[:-1]  # the constant is not pulled to zero
    rows = torch.cat([inputs, ridge.sqrt() * free])
    aims = torch.cat([target, torch.zeros(len(free), target.shape[1], dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, aims).solution.T
    before = output.weight.detach().clone(), output.bias.detach().clone()
    with masked(model, RefittedPlan(start.replace(kept_heads={SITE: (0, 2)}), refit)):
        change = (output.weight.double() - before[0].double())[:, stay]
        torch.testing.assert_close(change, expected[:, :-1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(output.bias.double() - before[1].double(), expected[:, -1], rtol=1e-3, atol=1e-4)
    assert torch.equal(output.weight, before[0])
    assert torch.equal(output.bias, before[1])
    with masked(model, RefittedPlan(start, refit)):  # nothing is lost against the start
        assert torch.equal(output.weight, before[0])


def test_masked_and_cut_agree_in_every_family_and_are_nearer_to_the_whole_model(tiny_family, any_model):
    model, inputs = any_model, tiny_family.inputs()
    full = PruningPlan.of(model)
    base = base_model(model)
    with torch.no_grad():
        whole = base(**inputs).last_hidden_state
        recorded = record_moments(model, anatomy_of(model).sites, lambda: base(**inputs))
        refit = Refit(model, full, recorded)
        plan = full.replace(kept_heads={name: range(1, count) for name, count in full.num_heads.items()})
        with masked(model, plan):
            plain = base(**inputs).last_hidden_state
        with masked(model, RefittedPlan(plan, refit)):
            refitted = base(**inputs).last_hidden_state
        prune_model_(model, RefittedPlan(plan, refit))
        cut = base_model(model)(**inputs).last_hidden_state
    torch.testing.assert_close(cut, refitted, rtol=1e-4, atol=1e-5)
    assert (refitted - whole).norm() < (plain - whole).norm()


def test_without_any_head_the_mean_of_what_is_lost_stays_in_the_bias(case):
    model, batches, _ = case
    full = PruningPlan.of(model)
    refit = evenly(model, batches, full)
    site = next(site for site in anatomy_of(model).sites if site.name == SITE)
    output = base_model(model).get_submodule(site.output)
    mean = given_to(model, site, batches, full).mean(0)
    expected = output.bias.double() + output.weight.double() @ mean
    with masked(model, RefittedPlan(full.replace(kept_heads={SITE: ()}), refit)):
        torch.testing.assert_close(output.bias.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_probe_has_the_verdict_of_the_plain_evaluation():
    model = classifier()
    batches = batches_of(decided(model, examples(60)))
    plain, quick = ExampleEvaluator(model, batches), ExampleEvaluator(model, batches)
    full = PruningPlan.of(model)
    for evaluator in (plain, quick):
        evaluator.use_refit(full)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    margins = plain(full).margins
    rng = np.random.default_rng(0)
    differs = False
    for _ in range(12):
        plan = full.replace(
            kept_heads={
                name: sorted(rng.permutation(count)[: rng.integers(1, count + 1)].tolist())
                for name, count in full.num_heads.items()
            }
        )
        found, expected = quick.probe(plan, Question(margins)), plain(plan)
        assert (found.kind, found.metric) == ("exact", expected.metric)
        np.testing.assert_allclose(found.margins, expected.margins, rtol=1e-4, atol=2e-4)
        differs |= ExampleEvaluator(model, batches)(plan).metric != expected.metric
    assert differs
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("units", [("heads",), ("heads", "ffn")])
def test_the_cut_model_has_the_metric_that_the_search_found(units):
    model = classifier()
    dataset = decided(model, examples(80))
    objective = "heads" if units == ("heads",) else "parameters"
    search = settings(max_drop=0.1, max_evaluations=60, units=units, objective=objective, ffn_chunk=32)
    found = search_plan(model, dataset, search=search, progress=False).search
    assert found.gain > 0
    assert (found.plan.num_removed_ffn > 0) == ("ffn" in units)
    cut = prune_model_(copy.deepcopy(model), found)
    assert ExampleEvaluator(cut, batches_of(dataset))(PruningPlan.of(cut)).metric == found.metric
    assert "refit" not in found.to_json()


def test_any_function_of_the_model_can_be_measured_refitted(case):
    model, batches, _ = case

    def accuracy():
        hits = [model(b["input_ids"], b["attention_mask"]).logits.argmax(-1) == b["labels"] for b in batches]
        return torch.cat(hits).double().mean()

    measured = MetricEvaluator(accuracy, model)
    full = PruningPlan.of(model)
    plan = full.replace(kept_heads={SITE: (3,)})
    measured(full)
    before = measured(plan).metric
    refit = measured.use_refit(full)
    with masked(model, RefittedPlan(plan, refit)), torch.no_grad():
        expected = float(accuracy())
    assert measured(plan).metric == pytest.approx(expected)
    assert before != expected


@pytest.mark.parametrize("change", [lambda m: m.bert.encoder.layer[0].attention.output.dense.weight.data.neg_(), None])
def test_a_reconstruction_of_another_model_is_refused_before_a_tensor_changes(case, change):
    model, batches, _ = case
    full = PruningPlan.of(model)
    refit = evenly(model, batches, full)
    plan = full.replace(kept_heads={SITE: (3,)})
    prune_model_(copy.deepcopy(model).bfloat16(), RefittedPlan(plan, refit))  # rounded since, but the same
    rounded = copy.deepcopy(model)
    weight = rounded.bert.encoder.layer[0].attention.output.dense.weight
    weight.data = weight.nextafter(torch.tensor(torch.inf)).detach()  # as on another device
    prune_model_(rounded, RefittedPlan(plan, refit))
    other = copy.deepcopy(model) if change else classifier(seed=1)
    if change:
        change(other)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(InvalidPlanError, match="has another output projection than the model that was searched"):
        prune_model_(other, RefittedPlan(plan, refit))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_refit_that_is_no_choice_is_refused():
    with pytest.raises(InvalidSettingError, match=r"refit must be True or False\. Received refit='yes'"):
        SearchTuning(refit="yes")


def test_a_search_may_order_by_costs_and_refit_nothing(case):
    model, batches, _ = case
    evaluator = ExampleEvaluator(model, batches)
    found = search_over_plans(anatomy_of(model), evaluator, over_heads(max_drop=0.2, max_evaluations=8))
    assert (found.refit, evaluator.refit) == (None, None)
    assert evaluator(found.plan).metric == found.metric


def test_projections_are_refitted_on_the_calibration_where_there_is_one(case):
    model, batches, evaluator = case
    full = PruningPlan.of(model)
    other = batches_of(examples(24, seed=5))
    calibrated = ExampleEvaluator(model, batches, calibration=other)
    assert calibrated.fingerprint() != evaluator.fingerprint()
    found = calibrated.use_refit(full).blocks[SITE].moments.dense()
    torch.testing.assert_close(found, ExampleEvaluator(model, other).use_refit(full).blocks[SITE].moments.dense())
    assert not torch.allclose(found, evaluator.use_refit(full).blocks[SITE].moments.dense())
    search = AStarSearch(max_drop=0.2, max_evaluations=5)
    searched = search_plan(model, examples(40), search=search, calibration=examples(24, seed=5), progress=False).search
    assert searched.refit is not None


def test_refitted_projections_are_remembered_up_to_some_bytes(case):
    model, batches, _ = case
    full = PruningPlan.of(model)
    refit = evenly(model, batches, full)
    sites = [*full.kept_heads]
    for mask in range(1, 2 ** (4 * len(sites))):
        kept = {site: [head for head in range(4) if mask >> (4 * n + head) & 1] for n, site in enumerate(sites)}
        with masked(model, RefittedPlan(full.replace(kept_heads=kept), refit)):
            pass
    held = sum(weight.nbytes for weight, _ in refit._refitted.values())
    assert 0 < held <= REMEMBERED * sum(block.own_weight.nbytes for block in refit.blocks.values())
