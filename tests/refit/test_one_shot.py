"""A budget without training: the plan, and what it may not depend on."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hf_headprune import PruningPlan, SecondOrder, anatomy_of, linear_density, plan_for_budget, prune_model_
from hf_headprune.cost import latency_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.masking import masked
from hf_headprune.refit import one_shot
from hf_headprune.refit.choice import choose, record_refit, removal_path
from hf_headprune.refit.one_shot import ExampleLosses, second_order_plan
from hf_headprune.refit.reach import budget_gap
from hf_headprune.refit.settings import SecondOrderTuning
from hf_headprune.tasks import own_answers
from tests.support.classifiers import batches_of, classifier, decisive, examples
from tests.support.models import tiny_bert, tiny_marian


@pytest.fixture
def case():
    return classifier().eval(), batches_of(examples(40))


def test_a_fine_tuned_model_is_cut_to_a_budget_without_training_and_left_as_it_was(case):
    model, _ = case
    state = copy.deepcopy(model.state_dict())
    found = second_order_plan(
        model, examples(40), SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8)), batch_size=8
    )
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    batch = {name: batches_of(examples(40))[0][name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), masked(model, found):
        expected = model(**batch).logits
    cut = prune_model_(copy.deepcopy(model), found)
    with torch.no_grad():
        torch.testing.assert_close(cut(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    assert linear_density(found.plan, anatomy_of(model)) == pytest.approx(0.5, abs=0.05)


def token_rows(count):
    """Examples with a label for each token but the first and the last."""
    texts = [row["input_ids"] for row in examples(count)]
    return [{"input_ids": ids, "labels": [-100, *[int(i > 50) for i in ids[1:-1]], -100]} for ids in texts]


def choice_rows(count):
    """Examples of four choices each: their labels are choices, of which the configuration knows no number."""
    texts = [row["input_ids"] for row in examples(4 * count)]
    return [{"input_ids": texts[4 * i : 4 * i + 4], "labels": i % 4} for i in range(count)]


def as_they_are(rows):
    ids = [
        torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in row["input_ids"]], batch_first=True) for row in rows
    ]
    length = max(each.shape[1] for each in ids)
    padded = [torch.nn.functional.pad(each, (0, length - each.shape[1])) for each in ids]
    return {"input_ids": torch.stack(padded), "labels": torch.tensor([row["labels"] for row in rows])}


def test_labels_of_a_multiple_choice_are_choices_and_no_classes():
    model, rows = tiny_bert("MultipleChoice"), choice_rows(16)
    assert model.config.num_labels == 2
    found = plan_for_budget(model, rows, density=0.5, data_collator=as_they_are)
    assert linear_density(found.plan, anatomy_of(model)) < 0.75
    wrong = [{**row, "labels": 4} for row in rows]
    with pytest.raises(InvalidSettingError, match=r"labels must be 0\.\.3, received \[4\]"):
        plan_for_budget(model, wrong, density=0.5, data_collator=as_they_are)


ROWS = {
    "classes": (classifier, examples),
    "tokens": (lambda: decisive(tiny_bert("TokenClassification", num_labels=2)), token_rows),
}


def alike(found, expected):
    for name, block in expected.refit.blocks.items():
        other = found.refit.blocks[name]
        torch.testing.assert_close(other.moments.dense(), block.moments.dense(), rtol=1e-3, atol=1e-4)
        scale = float(block.sensitivity.abs().max())
        torch.testing.assert_close(other.sensitivity, block.sensitivity, rtol=1e-3, atol=1e-5 * scale)
    return found.plan == expected.plan


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("count", [40, 200])  # all examples are looked at, or 64 of them
def test_a_plan_depends_neither_on_the_batch_size_nor_on_the_order_of_the_data(task, count):
    make, rows_of = ROWS[task]
    model, rows = make().eval(), rows_of(count)
    settings = SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8, scoring_examples=64))
    expected = second_order_plan(model, rows, settings)
    assert expected.plan != PruningPlan.of(model)
    assert alike(second_order_plan(model, rows, settings, batch_size=5), expected)
    assert alike(second_order_plan(model, rows[::-1], settings, batch_size=64), expected)
    other = replace(settings, tuning=replace(settings.tuning, seed=1))
    drawn = [tuple(seen["input_ids"]) for seen in _drawn_by(model, rows, settings)]
    assert (sorted(drawn) == sorted(tuple(s["input_ids"]) for s in _drawn_by(model, rows, other))) == (count == 40)


def _drawn_by(model, rows, settings):
    return ExampleLosses(model, rows, settings.tuning.scoring_examples, settings.tuning.seed or 0).drawn


def test_examples_without_a_label_that_counts_change_nothing():
    model = decisive(tiny_bert("TokenClassification", num_labels=2)).eval()
    rows = token_rows(12)
    silent = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}]
    settings = SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8))
    expected = second_order_plan(model, rows, settings)
    for size in (1, 32):
        assert alike(second_order_plan(model, rows + silent, settings, batch_size=size), expected)
    with pytest.raises(InvalidSettingError, match="no example has a label that counts"):
        second_order_plan(model, silent, settings)


def test_of_many_examples_a_part_is_read(monkeypatch):
    monkeypatch.setattr(one_shot, "MOST_DIGESTED", 50)
    read = []

    class Rows(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    losses = ExampleLosses(classifier().eval(), Rows(examples(200)), 8, 0)
    assert len(losses.drawn) == 8
    assert len(set(read)) <= 51  # and the first, to see what the examples hold


def test_one_shot_pruning_works_in_every_family(tiny_family, any_model):
    inputs = tiny_family.inputs()
    labels = {"labels": inputs["input_ids"][0].tolist()} if any_model.config.is_encoder_decoder else {"labels": 1}
    rows = [{"input_ids": row.tolist(), **labels} for row in inputs["input_ids"]]
    heads = PruningPlan.of(any_model).num_kept_heads
    found = second_order_plan(any_model, rows, SecondOrder(kept_heads=heads - 2))
    assert found.plan.num_kept_heads == heads - 2


def unlabelled(rows):
    return [{"input_ids": row["input_ids"]} for row in rows]


TASKS = {
    "classes": ("SequenceClassification", {"num_labels": 3}),
    "several labels": ("SequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    "a number": ("SequenceClassification", {"num_labels": 1}),
    "tokens": ("TokenClassification", {"num_labels": 2}),
    "spans": ("QuestionAnswering", {}),
}


@pytest.mark.parametrize("task", TASKS)
def test_without_labels_a_model_s_own_answers_choose_and_the_plan_depends_on_nothing_else(task):
    name, sizes = TASKS[task]
    model, rows = decisive(tiny_bert(name, **sizes)).eval(), unlabelled(examples(40))
    settings = SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8))
    expected = second_order_plan(model, rows, settings)
    assert expected.plan != PruningPlan.of(model)
    assert alike(second_order_plan(model, rows[::-1], settings, batch_size=5), expected)


@pytest.mark.parametrize("sizes", [{}, {"problem_type": "multi_label_classification"}])
def test_random_projections_have_the_curvature_of_the_answers(monkeypatch, sizes):
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    model = tiny_bert(num_labels=3, **sizes)
    directions = []
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        monkeypatch.setattr(own_answers, "signs_like", lambda values, drawn, signs=signs: torch.tensor([signs]))
        directions.append(own_answers._direction(model, logits, None, -1, torch.Generator())[0])
    found = torch.stack([torch.outer(it, it) for it in directions]).mean(0)
    share = logits[0].sigmoid() if sizes else logits[0].softmax(-1)
    expected = torch.diag(share * (1 - share)) if sizes else torch.diag(share) - torch.outer(share, share)
    torch.testing.assert_close(found, expected)


def test_padding_has_no_answer_of_its_own():
    logits, real = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    model = tiny_bert("TokenClassification", num_labels=3)
    direction = own_answers._direction(model, logits, real, -1, torch.Generator().manual_seed(0))
    assert direction[0, 2:].eq(0).all()
    assert direction[1].ne(0).all()


def test_the_ends_of_spans_are_projected_in_half_precision_too():
    ends = {name: torch.randn(2, 4).half().requires_grad_() for name in own_answers.ENDS}
    batch = {"attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])}
    drawn = torch.Generator().manual_seed(0)
    model = tiny_bert("QuestionAnswering")
    loss = own_answers.projected(model, SimpleNamespace(**ends), batch, drawn, where="plan_for_budget")
    for grad in torch.autograd.grad(loss, list(ends.values())):
        assert grad.isfinite().all()
        assert grad[0, 2:].eq(0).all()
        assert grad[1].ne(0).any()


def test_examples_that_are_labelled_in_part_are_refused(case):
    model, _ = case
    rows = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [1, 2], "labels": None}]
    with pytest.raises(InvalidSettingError, match="example 1 has no label"):
        second_order_plan(model, rows, SecondOrder(density=0.5))


def test_a_model_that_writes_texts_needs_labels():
    with pytest.raises(InvalidSettingError, match="second_order_plan: examples must hold 'labels'"):
        second_order_plan(tiny_marian(), [{"input_ids": [5, 6]}], SecondOrder(density=0.5))


# --- a budget of measured ms ---


def stairs(anatomy):
    """Ms of blocks that get faster by steps, as matrix products do."""
    return {
        site.name: {0: 0.5, 1: 1.5, 2: 1.5, 3: 3.0, 4: 3.5} if site.is_attention else {0: 0.5, 32: 2.0, 64: 6.0}
        for site in anatomy.sites
    }


def test_a_budget_of_ms_is_met_and_no_other_removals_that_meet_it_cost_less(case):
    model, _ = case
    anatomy, table = anatomy_of(model), stairs(anatomy_of(model))
    settings = SecondOrder.to_speedup(2.0, latency_ms=table, width_multiple=32)
    losses = ExampleLosses(model, examples(40), 40, 0)
    refit = record_refit(model, anatomy.sites, PruningPlan.of(model), losses)
    paths = [removal_path(site, refit, PruningPlan.of(model), settings) for site in anatomy.sites]
    full = PruningPlan.full(anatomy)
    best = min(  # of all numbers of removals in each block
        sum(removal.cost for path, level in zip(paths, levels, strict=True) for removal in path[:level])
        for levels in itertools.product(*(range(len(path) + 1) for path in paths))
        if latency_of(without(full, paths, levels), table) <= latency_of(full, table) / 2 + 1e-9
    )
    found = plan_for_budget(model, examples(40), speedup=2.0, latency=table, batch_size=8)
    assert latency_of(found.plan, table) <= latency_of(full, table) / 2 + 1e-9
    gone = {site.name: site.units - len(found.plan.kept(site.name)) for site in anatomy.sites}
    paid = 0.0
    for path in paths:
        left = gone[path[0].site]
        for removal in path:
            if left > 0:
                paid, left = paid + removal.cost, left - len(removal.units)
        assert left == 0
    assert paid == pytest.approx(best, rel=1e-6)


def without(plan, paths, levels):
    gone = {
        path[0].site: {unit for removal in path[:level] for unit in removal.units}
        for path, level in zip(paths, levels, strict=True)
    }
    kept = {site: [unit for unit in plan.kept(site) if unit not in units] for site, units in gone.items()}
    heads = {site: units for site, units in kept.items() if site in plan.kept_heads}
    return plan.replace(kept_heads=heads, kept_ffn={site: kept[site] for site in kept if site not in heads})


def test_a_budget_of_ms_holds_between_its_rounds_too():
    anatomy = anatomy_of(classifier())
    settings = SecondOrder.to_speedup(2.0, latency_ms=stairs(anatomy))
    full = PruningPlan.full(anatomy)
    assert "1.0000 of the ms is kept, where 0.5000 was to be" in budget_gap(full, settings, anatomy)
    assert budget_gap(full, settings, anatomy, share=0.0) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, table: SecondOrder(density=0.5, counts="latency"), "latency_ms is for counts='latency'"),
        (lambda model, table: SecondOrder.to_speedup(2.0, latency_ms={"a": 1}), "latency_ms must be"),
        (
            lambda model, table: plan_for_budget(model, examples(4), density=0.5, latency=table),
            "belongs to speedup=",
        ),
        (
            lambda model, table: plan_for_budget(model, examples(4), speedup=2.0, latency={"x": {0: 0.0, 1: 1.0}}),
            r"missing are \['encoder.layer.0.attention'.*unknown \['x'\]",
        ),
    ],
)
def test_a_table_of_ms_that_does_not_fit_is_refused(case, call, message):
    with pytest.raises(InvalidSettingError, match=message):
        call(case[0], stairs(anatomy_of(case[0])))


@pytest.mark.parametrize("counts", ["parameters", "macs", "bytes"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_is_chosen_meets_the_budget_that_a_run_is_checked_against(case, counts, share):
    model, batches = case
    full = PruningPlan.of(model)
    for density in torch.linspace(0.1, 0.95, 18).tolist():
        settings = SecondOrder(density=density, counts=counts)
        losses = (model(**batch).loss for batch in batches[:1])
        plan, _ = choose(model, settings, full, losses, share=share)
        assert budget_gap(plan, settings, anatomy_of(model), share) is None, density


def test_of_a_uniform_model_a_time_that_the_rest_already_takes_leaves_the_smallest_plan(case):
    model, batches = case
    anatomy, full = anatomy_of(model), PruningPlan.of(model)
    table = {site.name: {0: 0.0, site.units: 1.0} for site in anatomy.sites}
    plans = {}
    for density in (0.01, 0.3, 0.45):  # attention alone takes half, and BERT can't say fewer heads
        settings = SecondOrder(
            density=density, counts="latency", tuning=SecondOrderTuning(latency_ms=table, uniform=True)
        )
        plans[density], _ = choose(model, settings, full, (model(**batch).loss for batch in batches[:1]))
    assert plans[0.01] == plans[0.3] == plans[0.45]
    assert plans[0.01].num_kept_heads == full.num_kept_heads
    assert 0 < plans[0.01].num_kept_ffn < full.num_kept_ffn
