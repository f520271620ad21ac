"""Second-order removal: its costs against ridge regression written out, its budgets, and the callback around it."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_headprune import PruningPlan, SecondOrder, anatomy_of, linear_density, prune_model_
from hf_headprune.callback import HeadPruneCallback
from hf_headprune.cost import cost_of, macs_per_unit
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement
from hf_headprune.learn.second_order.pruner import SecondOrderPruner
from hf_headprune.masking import masked
from hf_headprune.refit.moments import EVEN_SHARE, record_moments, record_moments_by_gradient
from hf_headprune.refit.one_shot import second_order_plan
from hf_headprune.refit.projections import Block
from hf_headprune.refit.removal_costs import Removal, cheapest_first, elimination
from hf_headprune.refit.settings import SecondOrderTuning
from tests.callback.test_callback import _trainer
from tests.callback.test_callback_parts import _logits, assert_reloads_alike
from tests.support.classifiers import batches_of, classifier, examples
from tests.support.models import EOS, PAD, text_inputs, tiny_bart, tiny_bert, tiny_bert_decoder, tiny_marian
from tests.support.settings import second_order

ATTENTION, FFN = "encoder.layer.1.attention", "encoder.layer.0.intermediate"


def losses_of(model, batches):
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        yield cross_entropy(logits, batch["labels"], reduction="sum")


@pytest.fixture
def case():
    return classifier().eval(), batches_of(examples(40))


def site_of(model, name):
    return next(site for site in anatomy_of(model).sites if site.name == name)


def seen_at(model, site, batches):
    """Inputs of an output projection and gradients of the summed loss for its outputs, over real tokens."""
    inputs, gradients = [], []
    output = model.bert.get_submodule(site.output)

    def note(module, args, result):
        inputs.append(args[0].detach())
        result.register_hook(gradients.append)

    handle = output.register_forward_hook(note)
    for loss in losses_of(model, batches):
        loss.backward()
    handle.remove()
    model.zero_grad()
    masks = [batch["attention_mask"].bool() for batch in batches]
    pairs = zip(inputs, gradients, masks, strict=True)
    return [(x[m].double(), g[m].double()) for x, g, m in pairs]


@pytest.mark.parametrize("name", [ATTENTION, FFN])
def test_moments_weigh_tokens_by_their_squared_gradient_and_leave_no_trace(case, name):
    model, batches = case
    site = site_of(model, name)
    moments = record_moments_by_gradient(model, [site], losses_of(model, batches))[name]
    assert all(parameter.grad is None for parameter in model.parameters())
    total, count, sensitivity = 0.0, 0, 0.0
    for x, g in seen_at(model, site, batches):
        given = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        shares = g.square().sum(1, keepdim=True) / g.square().sum() * len(x)
        total = total + (given * (EVEN_SHARE + (1 - EVEN_SHARE) * shares)).T @ given
        count += len(x)
        sensitivity = sensitivity + g.T @ g
    torch.testing.assert_close(moments.inputs.dense(), (total / count).float(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(moments.sensitivity, sensitivity.float(), rtol=1e-3, atol=1e-7)
    assert moments.tokens == pytest.approx(count, rel=1e-5)


def test_without_losses_every_real_token_counts_alike(case):
    model, batches = case
    site = site_of(model, ATTENTION)

    def run():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    moments = record_moments(model, [site], run)[ATTENTION]
    x = torch.cat([x for x, _ in seen_at(model, site, batches)])
    assert moments.tokens == len(x) == sum(int(batch["attention_mask"].sum()) for batch in batches)
    torch.testing.assert_close(moments.inputs.dense()[:-1, :-1], (x.T @ x / len(x)).float(), rtol=1e-4, atol=1e-6)
    assert moments.sensitivity is None


def test_padding_of_a_model_that_is_a_decoder_is_not_counted():
    model = tiny_bert_decoder(add_cross_attention=False)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    sites = [site_of(model, name) for name in (ATTENTION, FFN)]
    moments = record_moments(model, sites, lambda: model(input_ids=torch.full((2, 4), 5), attention_mask=mask))
    assert [found.tokens for found in moments.values()] == [6, 6]


def test_padding_of_a_decoder_that_reads_what_its_encoder_reads_is_not_counted():
    model = tiny_bart("BartForSequenceClassification")
    tokens, mask = torch.full((2, 4), 5), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    tokens[0, 3], tokens[1, 1] = EOS, EOS
    sites = anatomy_of(model).sites
    moments = record_moments(model, sites, lambda: model(input_ids=tokens, attention_mask=mask))
    assert {found.tokens for found in moments.values()} == {6}
    target = torch.tensor([[PAD, 7, 8], [PAD, 7, PAD]])  # the first token starts the text, whatever it is
    moments = record_moments(model.model, sites, lambda: model.model(input_ids=tokens, decoder_input_ids=target))
    assert moments["decoder.layers.0.fc1"].tokens == 5


def test_padding_is_not_counted_where_generation_runs_the_encoder_alone():
    model = tiny_marian()
    batches = [text_inputs(seed=1, batch=2, length=12), text_inputs(seed=2, batch=2, length=12)]
    batches[1]["attention_mask"] = batches[1]["attention_mask"].flip(0)  # as large as before, another padding
    site = anatomy_of(model).sites[0]

    def translate():
        for batch in batches:
            model.generate(**batch, max_new_tokens=3, num_beams=1)

    def read():
        for batch in batches:
            model(**batch, decoder_input_ids=torch.full((2, 1), 7))

    generated, whole = (
        record_moments(model, [site], translate)[site.name],
        record_moments(model, [site], read)[site.name],
    )
    assert generated.tokens == sum(int(batch["attention_mask"].sum()) for batch in batches) == 40
    torch.testing.assert_close(generated.inputs.dense(), whole.inputs.dense())


def test_padding_is_not_counted_where_inputs_are_passed_by_position():
    model, inputs = tiny_bert(None), text_inputs()
    site = anatomy_of(model).sites[0]
    moments = record_moments(model, [site], lambda: model(inputs["input_ids"], inputs["attention_mask"]))
    assert moments[site.name].tokens == int(inputs["attention_mask"].sum()) < inputs["input_ids"].numel()


def error_without(block, gone):
    """What ridge regression on the units of the start that stay leaves unpredicted, in the metric of the loss."""
    columns = block.columns([unit for unit in block.start if unit not in gone], constant=True)
    lost = block.columns(gone, constant=False)
    moments = block.regularised(torch.arange(len(block.moments)))
    fit = torch.linalg.solve(moments[columns][:, columns], moments[columns][:, lost])
    left = moments[lost][:, lost] - moments[lost][:, columns] @ fit
    weight = block.weight[:, lost]
    return float(torch.trace(block.sensitivity.double() @ weight @ left @ weight.T))


@pytest.mark.parametrize("name", [ATTENTION, FFN])
def test_summed_costs_are_the_error_that_ridge_regression_leaves(case, name):
    model, batches = case
    site = site_of(model, name)
    recorded = record_moments_by_gradient(model, [site], losses_of(model, batches))[name]
    kept = tuple(range(site.units))
    block = Block.of(model, recorded, kept)
    path = elimination(block, kept, width_multiple=4)
    assert sorted(unit for removal in path for unit in removal.units) == list(kept)
    gone: list[int] = []
    cost = 0.0
    for removal in path:
        gone += removal.units
        cost += removal.cost
        assert cost == pytest.approx(error_without(block, gone), rel=1e-6)


def test_the_first_removal_is_the_cheapest_single_one(case):
    model, batches = case
    site = site_of(model, ATTENTION)
    recorded = record_moments_by_gradient(model, [site], losses_of(model, batches))[ATTENTION]
    kept = tuple(range(site.units))
    block = Block.of(model, recorded, kept)
    costs = {head: error_without(block, [head]) for head in kept}
    first = elimination(block, kept)[0]
    assert first.units == (min(costs, key=costs.__getitem__),)
    assert first.cost == pytest.approx(min(costs.values()), rel=1e-6)


def test_only_what_may_leave_leaves_and_without_a_loss_the_price_is_the_share_lost(case):
    model, batches = case
    site = site_of(model, ATTENTION)

    def run():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    kept = tuple(range(site.units))
    block = Block.of(model, record_moments(model, [site], run)[ATTENTION], kept)
    path = elimination(block, kept, removable=kept[1:])
    assert {unit for removal in path for unit in removal.units} == set(kept[1:])
    assert sum(removal.cost for removal in elimination(block, kept)) <= 1.0 + 1e-6


def test_sites_take_turns_by_cost_per_weight_in_their_own_order():
    a = [Removal("a", (1,), 3.0, 1), Removal("a", (0,), 1.0, 1)]
    b = [Removal("b", (0, 1), 4.0, 2), Removal("b", (2, 3), 9.0, 2)]
    found = [removal.units for removal in cheapest_first([a, b, []])]
    assert found == [(0, 1), (1,), (0,), (2, 3)]


@pytest.mark.parametrize(("factor", "seq_len"), [(1.3, 16), (2.0, 16), (2.0, 512)])
def test_a_speed_up_is_met_in_macs_to_the_nearest_unit(case, factor, seq_len):
    model, batches = case
    anatomy = anatomy_of(model)
    bank = SecondOrderPruner(anatomy, SecondOrder.to_speedup(factor, width_multiple=8, seq_len=seq_len))
    bank.choose(model, losses_of(model, batches), 1)
    macs = [cost_of(plan, anatomy, seq_len=seq_len).macs for plan in (PruningPlan.full(anatomy), bank.plan())]
    steps = [macs_per_unit(s, seq_len, seq_len) * (1 if s.is_attention else 8) for s in anatomy.sites]
    assert abs(macs[0] / factor - macs[1]) <= max(steps) / 2


def test_a_speed_up_must_be_one():
    with pytest.raises(InvalidSettingError, match=r"above 1, received 1\.0"):
        SecondOrder.to_speedup(1.0)


@pytest.mark.parametrize("density", [0.3, 0.55, 0.8, 1.0])
def test_a_density_is_met_to_the_nearest_unit_and_widths_stay_multiples(case, density):
    model, batches = case
    bank = SecondOrderPruner(
        anatomy_of(model), SecondOrder(density=density, tuning=SecondOrderTuning(width_multiple=8))
    )
    bank.attach(model)
    bank.remove(model, losses_of(model, batches), 1)
    plan = bank.plan()
    anatomy = anatomy_of(model)
    largest = max(site.hidden_size * site.unit_width * 4 for site in anatomy.attention_sites)
    total = sum(parameter.numel() for parameter in model.bert.encoder.parameters() if parameter.dim() == 2)
    assert abs(linear_density(plan, anatomy) - density) <= max(largest, 16 * 64) / total
    assert all(len(kept) % 8 == 0 for kept in plan.kept_ffn.values())


def test_each_round_removes_its_share_of_what_a_density_lets_go(case):
    model, batches = case
    anatomy = anatomy_of(model)
    bank = SecondOrderPruner(
        anatomy, SecondOrder(density=0.4, rounds=3, tuning=SecondOrderTuning(start_at=0.2, width_multiple=1))
    )
    bank.attach(model)
    for number in (1, 2, 3):
        bank.remove(model, losses_of(model, batches), number)
        assert linear_density(bank.plan(), anatomy) == pytest.approx(1 - 0.6 * number / 3, abs=0.03)


@pytest.mark.parametrize("changes", [{"rounds": 2}, {"width_multiple": 16}, {"density": 0.5}], ids=str)
def test_a_checkpoint_of_other_rounds_or_widths_is_refused(case, changes):
    settings = {"density": 0.4, "rounds": 3, "start_at": 0.2, "width_multiple": 8}
    model, _ = case
    SecondOrderPruner(anatomy_of(model), second_order(**settings)).attach(model)
    saved = model.state_dict()
    other = classifier()
    SecondOrderPruner(anatomy_of(other), second_order(**settings | changes)).attach(other)
    with pytest.raises(TrainingStateError, match="another budget"):
        other.load_state_dict(saved)


def test_the_first_units_to_leave_a_ragged_width_make_it_a_multiple(case):
    model, batches = case
    refit = SecondOrderPruner(anatomy_of(model), SecondOrder(density=0.9)).choose(model, losses_of(model, batches), 1)
    removals = elimination(refit.blocks[FFN], range(60), width_multiple=32)
    assert [len(removal.units) for removal in removals] == [28, 32]


@pytest.mark.parametrize("kept_heads", [0, 3, 8])
def test_heads_alone_are_met_exactly_and_ffns_stay_whole(case, kept_heads):
    model, batches = case
    full = PruningPlan.of(model)
    kept_heads = min(kept_heads, full.num_kept_heads)
    bank = SecondOrderPruner(
        anatomy_of(model), SecondOrder(kept_heads=kept_heads, rounds=2, tuning=SecondOrderTuning(start_at=0.5))
    )
    bank.attach(model)
    bank.remove(model, losses_of(model, batches), 1)
    halfway = bank.plan().num_kept_heads
    assert kept_heads <= halfway <= full.num_kept_heads
    bank.remove(model, losses_of(model, batches), 2)
    assert bank.plan().num_kept_heads == kept_heads
    assert bank.plan().kept_ffn == full.kept_ffn


def test_refitted_outputs_are_nearer_to_the_whole_model_than_closed_ones(case):
    model, batches = case
    whole = copy.deepcopy(model)
    bank = SecondOrderPruner(anatomy_of(model), SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8)))
    bank.attach(model)
    bank.remove(model, losses_of(model, batches), 1)
    batch = {name: batches[0][name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = whole(**batch).logits
        refitted = (model(**batch).logits - expected).norm()
        with masked(whole, bank.plan()):
            closed = (whole(**batch).logits - expected).norm()
    assert refitted < closed


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"density": 0.5, "kept_heads": 3},
        {"density": 0.0},
        {"density": 1.5},
        {"kept_heads": -1},
        {"density": 0.5, "rounds": 0},
        {"density": 0.5, "rounds": 2, "start_at": 0.7},
        {"density": 0.5, "start_at": 0.4},
        {"density": 0.5, "scoring_examples": 0},
        {"density": 0.5, "width_multiple": 0},
        {"density": 0.5, "counts": "bits"},
        {"kept_heads": 3, "counts": "bytes"},
        {"kept_heads": 3, "counts": "macs"},
        {"density": 0.5, "counts": "macs", "seq_len": 0},
        {"density": 0.5, "counts": "macs", "target_len": 0},
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings):
    with pytest.raises(InvalidSettingError, match="SecondOrder"):
        second_order(**settings)


def test_rounds_are_spread_evenly_between_first_and_last():
    settings = SecondOrder(density=0.5, rounds=3, tuning=SecondOrderTuning(start_at=0.2))
    due = [settings.rounds_due(step, 10) for step in range(10)]
    assert due == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]


def test_a_density_alone_prunes_both_kinds_and_the_saved_model_reloads(tmp_path):
    callback = HeadPruneCallback(density=0.5, search=None)
    assert callback.settings.second_order == SecondOrder(density=0.5)
    assert callback.settings.gates is None
    trainer = _trainer(tmp_path / "run", callback)
    trainer.train()
    assert_reloads_alike(trainer, tmp_path / "saved")
    assert abs(linear_density(callback.plan, anatomy_of(tiny_bert())) - 0.5) < 0.1
    assert any(key.startswith("headprune/kept_units/") for entry in trainer.state.log_history for key in entry)


def test_the_cut_computes_what_evaluation_computed(tmp_path):
    callback = HeadPruneCallback(
        second_order=SecondOrder(density=0.6, tuning=SecondOrderTuning(width_multiple=8)), search=None
    )
    trainer = _trainer(tmp_path, callback)
    seen = []
    finish = trainer.callback_handler.on_train_end
    trainer.callback_handler.on_train_end = lambda *given: (seen.append(_logits(trainer.model)), finish(*given))[1]
    trainer.train()
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    torch.testing.assert_close(_logits(trainer.model), seen[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("killed_after", [3, 4, 6])
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, killed_after):
    def build(folder, *others):
        settings = SecondOrder(
            density=0.5,
            rounds=2,
            freeze_at=0.75,
            tuning=SecondOrderTuning(width_multiple=8, start_at=0.5, scoring_examples=8),
        )
        callback = HeadPruneCallback(second_order=settings, search=None)
        changes = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1}
        return callback, _trainer(folder, callback, *others, **changes)

    whole, trainer = build(tmp_path / "whole")
    trainer.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{killed_after}"
    resumed, again = build(tmp_path / "again")
    again.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.plan == whole.plan
    state = trainer.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())


def test_rounds_that_the_best_model_has_not_seen_are_done_at_the_end(tmp_path):
    settings = SecondOrder(kept_heads=3, freeze_at=1.0, tuning=SecondOrderTuning(scoring_examples=8))
    callback = HeadPruneCallback(second_order=settings, search=None)
    _trainer(tmp_path, callback).train()
    assert callback.plan.num_kept_heads == 3


def test_no_model_from_before_the_removal_is_the_best(tmp_path):
    settings = SecondOrder(kept_heads=3, freeze_at=0.75, tuning=SecondOrderTuning(scoring_examples=8))
    callback = HeadPruneCallback(second_order=settings, search=None)
    every = {
        f"{what}_{name}": value
        for what in ("eval", "save")
        for name, value in {"strategy": "steps", "steps": 1}.items()
    }
    trainer = _trainer(
        tmp_path,
        callback,
        max_steps=4,
        learning_rate=0.5,  # the loss explodes, so that the first model would be the best
        load_best_model_at_end=True,
        **every,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert callback.plan.num_kept_heads == 3


def test_a_checkpoint_of_another_callback_is_refused(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    _trainer(tmp_path, None, **settings).train()
    later = _trainer(tmp_path, HeadPruneCallback(density=0.5, search=None), **settings)
    with pytest.raises(TrainingStateError, match="kept"):
        later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    "parts",
    [
        {"second_order": SecondOrder(density=0.5), "gates": SubsetGates(kept_heads=3)},
        {"second_order": SecondOrder(density=0.5), "movement": BlockMovement(density=0.5)},
        {"second_order": SecondOrder(density=0.5), "density": 0.5},
        {"second_order": 0.5},
    ],
)
def test_parts_that_would_both_choose_are_refused(parts):
    with pytest.raises(InvalidSettingError, match="second_order"):
        HeadPruneCallback(**parts)


def test_a_loss_that_is_not_finite_is_refused(case):
    model, batches = case
    bank = SecondOrderPruner(anatomy_of(model), SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8)))
    bank.attach(model)
    broken = (loss * np.inf for loss in losses_of(model, batches))
    with pytest.raises(TrainingStateError, match="non-finite"):
        bank.remove(model, broken, 1)
    assert bool(bank.kept.all())


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


def test_an_example_counts_alike_in_whatever_batch_it_comes(case):
    model, _ = case
    rows = examples(5)
    settings = SecondOrder(density=0.5, tuning=SecondOrderTuning(width_multiple=8))
    found = [second_order_plan(model, rows, settings, batch_size=size) for size in (4, 5)]
    of_four, of_five = (one.refit.blocks[ATTENTION].sensitivity for one in found)
    torch.testing.assert_close(of_four, of_five, rtol=1e-3, atol=1e-7)


def test_one_shot_pruning_works_in_every_family(tiny_family, any_model):
    inputs = tiny_family.inputs()
    labels = {"labels": inputs["input_ids"][0].tolist()} if any_model.config.is_encoder_decoder else {"labels": 1}
    rows = [{"input_ids": row.tolist(), **labels} for row in inputs["input_ids"]]
    heads = PruningPlan.of(any_model).num_kept_heads
    found = second_order_plan(any_model, rows, SecondOrder(kept_heads=heads - 2))
    assert found.plan.num_kept_heads == heads - 2


def test_one_shot_pruning_refuses_examples_without_labels(case):
    model, _ = case
    with pytest.raises(InvalidSettingError, match="second_order_plan: examples must hold"):
        second_order_plan(model, [{"input_ids": [1, 2]}], SecondOrder(density=0.5))
