"""What each declared family must do beyond the cut: gates, movement, second order, folding, costs, generation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from hf_headprune.anatomy import anatomy_of, base_model, layer_lists
from hf_headprune.cost import cost_of
from hf_headprune.errors import InvalidSettingError
from hf_headprune.families import FAMILIES
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.movement.pruner import MovementPruner
from hf_headprune.learn.training_loop import TrainingLoop
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan, RefittedPlan
from hf_headprune.refit.choice import choose
from hf_headprune.shrink.folding import fold_dead_units_
from hf_headprune.shrink.surgery import prune_model_
from hf_headprune.shrink.trained_weights import TrainedWeights
from tests.support.families import made, prompts, random_plan
from tests.support.models import TINY_FAMILIES
from tests.support.settings import gates, movement, second_order

WITH_HEADS = [name for name, family in FAMILIES.items() if family.attentions]
GROUPED = [name for name, family in FAMILIES.items() if any(block.groups for block in family.attentions)]
GENERATING = [name for name in FAMILIES if TINY_FAMILIES[name].generates]
# What a layer's own forward pass multiplies beyond the units: DeBERTa's scores of positions.
MULTIPLY_MORE = {"deberta-v2"}
TOKENS = {  # that the layers see of what is no text: (encoder, decoder)
    "whisper": (10, 7),
    "wav2vec2": (19, 19),
}


def loss_of(model, inputs):
    return model(**inputs)[0].float().square().sum()


@torch.no_grad()
def output_of(model, inputs):
    return model(**inputs)[0]


def assert_close(received, expected):
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(received / scale, expected / scale, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_gates_reach_every_head(name):
    model, inputs = made(name)
    anatomy = anatomy_of(model)
    bank = GatePruner(anatomy, gates(kept_heads=3, warmup_ratio=0.0))
    bank.attach(model)
    assert bank.num_heads == sum(site.groups for site in anatomy.attention_sites)
    bank.probe = torch.full((bank.num_heads,), 0.5, requires_grad=True)
    loss_of(model, inputs).backward()
    assert (bank.probe.grad != 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_movement_scores_every_unit_and_its_masks_become_a_cut(name):
    model, inputs = made(name)
    settings = movement(
        attention_block="unit" if FAMILIES[name].attentions else None,
        ffn_block="unit",
        density=0.5,
        score_gradient="unit",
        width_multiple=1,
        warmup_ratio=0.0,
    )
    bank = MovementPruner.of(model, anatomy_of(model), settings, TrainingLoop(learning_rate=1e-3))
    bank.prepare(10)
    bank.set_step(0)
    loss_of(model.train(), inputs).backward()
    model.eval()
    for tensor, part in zip(bank.layout, bank.importance_bias.grad.split([t.numel for t in bank.layout]), strict=True):
        assert (part != 0).float().mean() > 0.7, tensor.name  # a ReLU may be silent on so few tokens
    bank.set_scores(torch.randn(bank.num_scores, generator=torch.Generator().manual_seed(1)))
    bank.set_step(9)
    masked_output = output_of(model, inputs)
    bank.apply_(model)
    assert_close(output_of(model, inputs), masked_output)
    plan = fold_dead_units_(model)
    assert plan.num_removed_ffn > 0
    prune_model_(model, plan)
    assert_close(output_of(model, inputs), masked_output)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_movement_masks_blocks_where_each_matrix_has_its_own(name):
    model, inputs = made(name)
    settings = movement(attention_block=(4, 8), ffn_block="unit", density=0.5, width_multiple=1)
    if any(len(block.inputs) == 1 for block in FAMILIES[name].attentions):
        with pytest.raises(InvalidSettingError, match="holds several matrices in one"):
            MovementPruner.of(model, anatomy_of(model), settings, TrainingLoop(learning_rate=1e-3))
        return
    bank = MovementPruner.of(model, anatomy_of(model), settings, TrainingLoop(learning_rate=1e-3))
    bank.prepare(10)
    bank.set_scores(torch.randn(bank.num_scores, generator=torch.Generator().manual_seed(1)))
    bank.set_step(9)
    expected, density = output_of(model, inputs), bank.density(bank.final_mask())
    bank.apply_(model)
    plan = fold_dead_units_(model)
    assert_close(output_of(model, inputs), expected)
    prune_model_(model, plan)
    assert_close(output_of(model, inputs), expected)
    assert 0.4 < density <= 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_second_order_prices_every_block_and_its_refit_survives_the_cut(name):
    model, inputs = made(name)
    full = PruningPlan.of(model)
    settings = second_order(density=0.5, width_multiple=1)
    plan, refit = choose(model, settings, full, (loss_of(model, inputs) for _ in range(1)))
    assert set(refit.blocks) == {site.name for site in anatomy_of(model).sites}
    assert all(block.sensitivity.abs().sum() > 0 for block in refit.blocks.values())
    found = RefittedPlan(plan, refit)
    with masked(model, found):
        expected = output_of(model, inputs)
    assert_close(output_of(prune_model_(model, found), inputs), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_model_that_trained_on_is_made_again_of_the_dense_one(name):
    model, inputs = made(name)
    dense, plan = copy.deepcopy(model), random_plan(model, seed=3)
    prune_model_(model, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    trained = RefittedPlan(plan, TrainedWeights(dense, model, plan))
    assert_close(output_of(prune_model_(dense, trained), inputs), output_of(model, inputs))


@pytest.mark.parametrize("name", FAMILIES)
def test_units_of_zeros_are_found_and_their_constants_stay(name):
    model, inputs = made(name)
    dead = {}
    with torch.no_grad():
        for site in anatomy_of(model).sites:
            part = site.parts[-1]
            linear = base_model(model).get_submodule(part.path)
            rows = part.rows.indices((1,))
            (linear.weight.T if site.block.transposed else linear.weight)[rows] = 0.0
            dead[site.name] = site
    expected = output_of(model, inputs)
    plan = fold_dead_units_(model)
    assert_close(output_of(model, inputs), expected)
    for name_of_site, site in dead.items():
        has_constant = base_model(model).get_submodule(site.parts[-1].path).bias is not None
        takes_it = base_model(model).get_submodule(site.output).bias is not None
        gone = not {*site.units_of((1,))} & {*plan.kept(name_of_site)}
        assert gone == (not has_constant or (takes_it and not site.is_gated)), name_of_site


def counted_macs(model, inputs):
    base = base_model(model)
    present = dict(base.named_modules())
    lists = [path for stack in FAMILIES[anatomy_of(model).model_type].stacks for path in layer_lists(present, stack)]
    layers = {layer for path in lists for layer in base.get_submodule(path)}
    names = {name for name, module in model.named_modules() if module in layers}
    with FlopCounterMode(display=False, depth=None) as counter:
        model(**inputs)
    counts = counter.get_flop_counts().items()
    return sum(sum(found.values()) for path, found in counts if path.partition(".")[2] in names) // 2


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_are_those_that_torch_counts(name):
    model, inputs = made(name)
    model.set_attn_implementation("eager")
    plan = random_plan(model, seed=0)
    source, target = TOKENS.get(name, (9, 7 if model.config.is_encoder_decoder else 9))
    full = PruningPlan.of(model)
    removed = cost_of(full, anatomy_of(model), seq_len=source, target_len=target).macs
    removed -= (cost := cost_of(plan, anatomy_of(model), seq_len=source, target_len=target)).macs
    one = {key: tensor[:1] for key, tensor in inputs.items()}
    before = counted_macs(model, one)
    after = counted_macs(prune_model_(model, plan), one)
    if name in MULTIPLY_MORE:
        assert after > cost.macs
        assert before - after > removed > 0
    elif FAMILIES[name].left_out is None:
        assert after == cost.macs > 0
    else:
        assert before - after == removed > 0


@pytest.mark.parametrize(("name", "seed"), [(n, 1) for n in GENERATING] + [(n, 0) for n in GROUPED if n in GENERATING])
def test_a_pruned_model_generates_what_the_masked_one_generates(name, seed):
    model, inputs = made(name)
    plan, given = random_plan(model, seed=seed), prompts(name, inputs)  # with 1, the first block is empty
    twin = prune_model_(copy.deepcopy(model), plan)
    for way in ({}, {"use_cache": False}, {"num_beams": 2}, {"do_sample": True}):
        settings = {"max_new_tokens": 5, "do_sample": False, **way}
        with masked(model, plan):
            torch.manual_seed(0)
            expected = model.generate(**given, **settings)
        torch.manual_seed(0)
        assert torch.equal(twin.generate(**given, **settings), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_model_is_copied_pruned_again_and_trained(name):
    model, inputs = made(name)
    prune_model_(model, random_plan(model, seed=2))
    expected = output_of(model, inputs)
    assert torch.equal(output_of(copy.deepcopy(model), inputs), expected)
    if not any(map(is_parametrized, model.modules())):  # which torch does not pickle
        assert torch.equal(output_of(pickle.loads(pickle.dumps(model)), inputs), expected)
    again = PruningPlan.of(model)
    plan = again.replace(
        kept_heads={site: sum(again.groups(site)[1:], ()) for site in again.num_heads},
        kept_ffn={site: range(1, units) for site, units in again.num_ffn.items()},
    )
    cost = cost_of(plan, anatomy_of(model), seq_len=9)
    with masked(model, plan):
        expected = output_of(model, inputs)
    assert_close(output_of(prune_model_(model, plan), inputs), expected)
    assert cost_of(PruningPlan.of(model), anatomy_of(model), seq_len=9) == cost
    model.train()
    loss_of(model, inputs).backward()
    body = [p for p in base_model(model).parameters() if p.grad is not None]
    assert len(body) > 4
    assert all(p.grad.isfinite().all() for p in body)
