"""Probes: the verdicts of a plain evaluation of every example, with less work."""

import numpy as np
import pytest
import torch

from hf_headprune.anatomy import anatomy_of, base_model
from hf_headprune.errors import InvalidPlanError
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.evaluator import ExampleEvaluator
from hf_headprune.search.problem import ROUND_OFF, Question
from hf_headprune.tasks.batches import length_sorted_batches
from tests.support.classifiers import (
    NUM_LABELS,
    asked,
    batches_of,
    classifier,
    decided,
    decisive,
    examples,
    near,
    random_plan,
)
from tests.support.models import tiny_bert, tiny_distilbert, tiny_roberta

CLASSIFIERS = {
    "bert": classifier,
    "roberta": lambda: decisive(tiny_roberta(num_labels=NUM_LABELS)),
    "distilbert": lambda: decisive(tiny_distilbert(num_labels=NUM_LABELS)),
    "one layer": lambda: classifier(num_hidden_layers=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_verdicts_of_random_plans_equal_those_of_the_plain_evaluation(name):
    model = CLASSIFIERS[name]()
    batches = batches_of(decided(model, examples(40)))
    plain = ExampleEvaluator(model, batches)
    fast = ExampleEvaluator(model, batches)
    rng = np.random.default_rng(0)
    full = PruningPlan.of(model)
    kinds = []
    for turn in range(30):
        base = full if turn % 3 else random_plan(model, turn)
        base_margins = plain(base).margins
        for plan in (near(base, rng), near(base, rng)):
            expected = plain(plan)
            floor = float(rng.choice([0.3, 0.6, 0.8, 0.9, 1.0]))
            found = fast.probe(plan, asked(base_margins, rng, floor=floor, tentative=turn % 2 == 0))
            kinds.append(found.kind)
            if found.kind == "bound":
                assert expected.metric <= found.metric < floor
            elif found.kind == "estimate":
                assert found.metric >= floor
            else:
                assert found.metric == expected.metric
            seen = ~np.isnan(found.margins)
            assert seen.all() or found.kind != "exact"
            np.testing.assert_allclose(found.margins[seen], expected.margins[seen], rtol=1e-4, atol=2e-4)
            exact = fast.probe(plan, asked(base_margins, rng))
            assert (exact.kind, exact.metric) == ("exact", expected.metric)
    assert {"bound", "exact"} <= set(kinds)


def test_what_stands_within_round_off_of_a_tie_is_decided_as_a_plain_evaluation_decides_it():
    model, rows = classifier(), examples(96)
    with torch.no_grad():  # two classes that only round-off tells apart, whatever the batch
        noise = torch.randn(model.classifier.in_features, generator=torch.Generator().manual_seed(0))
        model.classifier.weight[1] = model.classifier.weight[0] + 1e-7 * noise
        model.classifier.weight[2].zero_()
        model.classifier.bias[1:] = model.classifier.bias[0]
    batches = batches_of([{**row, "label": i % 2} for i, row in enumerate(rows)], batch_size=13)
    plain = ExampleEvaluator(model, batches)
    fast = ExampleEvaluator(model, batches)
    base = PruningPlan.of(model)
    margins = plain(base).margins
    for seed in range(4):
        plan = random_plan(model, seed)
        assert fast.probe(plan, Question(margins)).metric == plain(plan).metric


def test_early_verdicts_look_at_fewer_examples():
    model = classifier()
    batches = batches_of(decided(model, examples(64)))
    fast = ExampleEvaluator(model, batches)
    base = PruningPlan.of(model)
    margins, rng = fast(base).margins, np.random.default_rng(1)
    nothing = base.replace(kept_heads=dict.fromkeys(base.kept_heads, ()))
    rejected = fast.probe(nothing, Question(margins, floor=0.99))
    assert rejected.kind == "bound"
    assert 0 < (~np.isnan(rejected.margins)).sum() < 64
    accepted = fast.probe(base, Question(margins, floor=0.9))
    assert accepted.kind == "estimate"
    assert (~np.isnan(accepted.margins)).sum() == 16
    assert fast.probe(base, asked(margins, rng, floor=0.9, tentative=False)).kind == "exact"


def test_a_floor_that_is_met_but_for_round_off_rejects_nothing():
    model = classifier()
    rows = [
        {**row, "label": (row["label"] + (i < 12)) % NUM_LABELS} for i, row in enumerate(decided(model, examples()))
    ]
    fast = ExampleEvaluator(model, batches_of(rows))
    base = PruningPlan.of(model)
    whole = fast(base)
    for excess, kind in ((0.5, "exact"), (2.0, "bound")):
        question = Question(whole.margins, floor=whole.metric + excess * ROUND_OFF, tentative=False)
        assert fast.probe(base, question).kind == kind


def test_a_confirmation_computes_only_the_examples_that_the_estimate_left_out():
    model = classifier()
    fast = ExampleEvaluator(model, batches_of(decided(model, examples(64))))
    base = PruningPlan.of(model)
    margins = fast(base).margins
    question = Question(margins, floor=0.5)
    estimate = fast.probe(base, question)
    seen = fast._stopper.examples_seen
    assert estimate.kind == "estimate"
    assert seen == (~np.isnan(estimate.margins)).sum()
    fast.probe(base, Question(margins))
    assert fast._stopper.examples_seen == 64


def test_a_fresh_evaluator_measures_the_bits_of_one_that_has_measured_before():
    model = classifier()
    batches = batches_of(decided(model, examples(40)))
    used = ExampleEvaluator(model, batches)
    base, rng = PruningPlan.of(model), np.random.default_rng(3)
    margins = used(base).margins
    for _ in range(10):
        plan = near(base, rng)
        question = asked(margins, rng, floor=0.8)
        fresh = ExampleEvaluator(model, batches)
        np.testing.assert_array_equal(used.probe(plan, question).margins, fresh.probe(plan, question).margins)


def test_a_metric_that_is_no_mean_of_zeros_and_ones_is_measured_to_the_end():
    model = classifier()
    batches = batches_of(examples(40))
    plain = ExampleEvaluator(model, batches, metric="macro_f1")
    base, rng = PruningPlan.of(model), np.random.default_rng(4)
    margins = plain(base).margins
    for _ in range(5):
        plan = near(base, rng)
        found = plain.probe(plan, asked(margins, rng, floor=1.0))
        assert (found.kind, found.metric) == ("exact", plain(plan).metric)


@pytest.mark.parametrize("given", ["autocast", "bf16 weights"])
def test_low_precision_keeps_the_batches_given_and_their_bits(given):
    model = classifier()
    batches = batches_of(examples(40))
    if given == "bf16 weights":
        model = model.to(torch.bfloat16)
    else:
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # as accelerate wraps it
    evaluator = ExampleEvaluator(model, batches)
    base, rng = PruningPlan.of(model), np.random.default_rng(5)
    margins = evaluator(base).margins
    for _ in range(8):
        plan = near(base, rng)
        found = evaluator.probe(plan, asked(margins, rng))
        np.testing.assert_array_equal(found.margins, evaluator(plan).margins)


def test_near_ties_are_decided_by_the_batches_given():
    model = classifier()
    with torch.no_grad():
        model.classifier.weight[1] = model.classifier.weight[0]
        model.classifier.bias[1] = model.classifier.bias[0]
    dataset = [{**example, "label": index % 2} for index, example in enumerate(examples(40))]
    evaluator = ExampleEvaluator(model, batches_of(dataset))
    base, rng = PruningPlan.of(model), np.random.default_rng(6)
    margins = evaluator(base).margins
    assert (np.abs(margins) < 1e-4).any()
    for _ in range(20):
        plan = near(base, rng)
        assert evaluator.probe(plan, asked(margins, rng)).metric == evaluator(plan).metric


def wide_inputs(rows):
    """A collator that pads on the left: positions then depend on the padding, which has to stay."""
    longest = max(len(row["input_ids"]) for row in rows)
    pads = [longest - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor([[0] * pad + row["input_ids"] for pad, row in zip(pads, rows, strict=True)]),
        "attention_mask": torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def no_mask(rows):
    """A collator without a mask: the model reads the padding, which has to stay."""
    return {name: value for name, value in wide_inputs(rows).items() if name != "attention_mask"}


def odd_mask(rows):
    """A mask of two dimensions per example."""
    batch = wide_inputs(rows)
    mask = batch["attention_mask"][:, None, None, :].bool()
    return {**batch, "attention_mask": mask.expand(-1, 1, mask.shape[-1], -1)}


@pytest.mark.parametrize("collate", [wide_inputs, no_mask, odd_mask])
def test_inputs_of_any_collator_give_the_verdicts_of_the_plain_evaluation(collate):
    model = classifier()
    rows = [{"input_ids": e["input_ids"], "labels": e["label"]} for e in decided(model, examples(40))]
    evaluator = ExampleEvaluator(model, length_sorted_batches(rows, collate, batch_size=7))
    base, rng = PruningPlan.of(model), np.random.default_rng(7)
    margins = evaluator(base).margins
    for _ in range(12):
        plan = near(base, rng)
        found, expected = evaluator.probe(plan, asked(margins, rng)), evaluator(plan)
        assert found.metric == expected.metric
        np.testing.assert_allclose(found.margins, expected.margins, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("refits", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_closed_units_are_taken_out_of_the_products_and_put_back(name, refits):
    model = CLASSIFIERS[name]()
    batches = batches_of(decided(model, examples(60)))
    plain = ExampleEvaluator(model, batches)
    narrow = ExampleEvaluator(model, batches)
    base, rng = PruningPlan.of(model), np.random.default_rng(13)
    if refits:
        plain.use_refit(base, ffn=True)
        narrow.use_refit(base, ffn=True)
    margins = plain(base).margins
    before = {key: value.clone() for key, value in model.state_dict().items()}
    site = anatomy_of(model).attention_sites[0]
    widths = set()
    handle = (
        base_model(model)
        .get_submodule(site.output)
        .register_forward_hook(lambda module, args, output: widths.add(args[0].shape[-1]))
    )
    for kept in ([0], [1, 3], [], range(4)):
        plan = base.replace(kept_heads={site.name: kept})
        expected = plain(plan)
        widths.clear()
        found = narrow.probe(plan, asked(margins, rng))
        assert found.metric == expected.metric
        assert np.allclose(found.margins, expected.margins, atol=1e-4)
        assert (len(kept) or 4) * site.unit_width in widths
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    handle.remove()


def test_where_shapes_do_not_follow_from_the_projections_closed_units_stay_in_the_products(monkeypatch):
    def refuse(self, plan):
        raise RuntimeError("shape '[4, 8]' is invalid")

    monkeypatch.setattr("hf_headprune.search.evaluation.weight_slices.WeightSlices.take_out", refuse)
    model = classifier()
    batches = batches_of(decided(model, examples(60)))
    plain, evaluator = ExampleEvaluator(model, batches), ExampleEvaluator(model, batches)
    base, rng = PruningPlan.of(model), np.random.default_rng(14)
    plan = near(base, rng)
    assert evaluator.probe(plan, asked(plain(base).margins, rng)).metric == plain(plan).metric


def test_the_model_is_left_as_it_was():
    model = classifier().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluator = ExampleEvaluator(model, batches_of(examples()))
    base, rng = PruningPlan.of(model), np.random.default_rng(8)
    margins = evaluator(base).margins
    evaluator.probe(near(base, rng), asked(margins, rng))
    with pytest.raises(InvalidPlanError):
        evaluator.probe(PruningPlan.of(tiny_bert(num_hidden_layers=1)), asked(margins, rng))
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert len(model.bert.encoder.layer) == 2
    assert all(parameter.grad is None for parameter in model.parameters())
