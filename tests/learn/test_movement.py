import copy
import functools

import pytest
import torch
import torch.utils.checkpoint
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_headprune.anatomy import anatomy_of
from hf_headprune.budgets import linear_density
from hf_headprune.cost import cost_of, macs_price, weights_price
from hf_headprune.errors import TrainingStateError
from hf_headprune.learn.movement.magnitude import magnitudes
from hf_headprune.learn.movement.pruner import MovementPruner
from hf_headprune.learn.movement.settings import BlockMovement, MovementTuning
from hf_headprune.learn.training_loop import TrainingLoop
from hf_headprune.plan import PruningPlan
from hf_headprune.shrink.folding import fold_dead_units_
from hf_headprune.shrink.surgery import prune_model_
from tests.support.models import text_inputs, tiny_bert, tiny_marian, translation_inputs
from tests.support.settings import movement

STEPS = 20
RECIPES = {
    "blocks and units": {"attention_block": (8, 8)},
    "macs": {"attention_block": (8, 8), "counts": "macs", "density": 0.37, "seq_len": 9},
    "head blocks": {"attention_block": "head", "width_multiple": 8},
    "heads and units": {"attention_block": "unit", "counts": "macs", "density": 0.4, "width_multiple": 8},
    "units": {"attention_block": None, "counts": "scores", "kept": 64},
    "blocks everywhere": {"attention_block": (4, 4), "ffn_block": (4, 4), "counts": "scores", "density": 0.3},
    "per matrix": {
        "attention_block": (8, 8),
        "counts": "scores",
        "ranking": "per_matrix",
        "density": 0.25,
        "width_multiple": 8,
    },
    "magnitude": {"attention_block": (8, 8), "method": "magnitude"},
}
THRESHOLD = {
    "attention_block": (8, 8),
    "method": "sigmoid_threshold",
    "penalty": 10.0,
    "width_multiple": 1,
    "ramp_end": 0.65,
    "freeze_at": 1.0,
}


def bert():
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def marian():
    return tiny_marian(dropout=0.0, attention_dropout=0.0)


def banked(model=None, *, learning_rate=1e-3, **settings):
    model = bert() if model is None else model
    asked = settings.pop("settings", None) or movement(**settings)
    bank = MovementPruner.of(model, anatomy_of(model), asked, TrainingLoop(learning_rate=learning_rate))
    bank.prepare(STEPS)
    return model, bank


def inputs_of(model, seed=1):
    make = translation_inputs if model.config.is_encoder_decoder else text_inputs
    return make(seed=seed)


def loss_of(model, seed=1):
    return model(**inputs_of(model, seed)).logits.float().square().mean()


@torch.no_grad()
def logits(model):
    return model(**inputs_of(model)).logits


def trained(model, bank, *, steps=range(STEPS)):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    model.train()
    for step in steps:
        bank.set_step(step)
        loss_of(model, seed=step).backward()
        bank.add_penalty_grad()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def scattered(bank, seed=0):
    """Scores spread around the threshold of sigmoid 0.1, as in a run that has begun."""
    bank.is_idle = False
    bank.set_scores(torch.randn(bank.num_scores, generator=torch.Generator().manual_seed(seed)) * 2 - 2.2)


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_masked_at_first_and_what_was_asked_stays_at_the_end(name):
    model = bert()
    dense = logits(model)
    model, bank = banked(model, **RECIPES[name])
    scattered(bank)
    bank.set_step(0)
    assert bank.mask.all()
    torch.testing.assert_close(logits(model.train()), dense)
    bank.set_step(STEPS - 1)
    wanted = float(bank.settings.kept)
    cheapest = min(tensor.cost * tensor.multiple for tensor in bank.layout) / bank.total_cost
    assert wanted - cheapest < bank.density(bank.mask) <= wanted + 1e-9
    assert torch.equal(bank.mask, bank.final_mask())


@pytest.mark.parametrize("threshold", [None, (0.4, 0.6)])
@pytest.mark.parametrize("method", ["threshold", "sigmoid_threshold"])
def test_no_threshold_masks_anything_at_first_or_what_never_learned(method, threshold):
    _, bank = banked(bert(), method=method, threshold=threshold, width_multiple=8)
    first = round(bank.schedule.open_steps)
    bank.set_step(first - 1)
    assert bank.mask.all()
    bank.set_step(first)
    assert bool(bank.mask.all()) == (threshold is None or (method == "sigmoid_threshold" and threshold[0] < 0.5))


def test_scores_that_rose_stay_where_a_threshold_falls_on_the_scores_themselves():
    _, bank = banked(bert(), method="threshold", width_multiple=1)
    bank.set_scores(torch.linspace(-0.5, 0.5, bank.num_scores))
    bank.set_step(bank.schedule.decided_step)
    assert bank.is_decided
    assert torch.equal(bank.kept, (bank.scores > 0).float())
    assert 0 < bank.kept.mean() < 1


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("make", [bert, marian])
def test_the_cut_model_computes_what_the_trained_one_evaluated_to(name, make):
    model, bank = banked(make(), **RECIPES[name])
    trained(model, bank)
    expected = logits(model)
    bank.apply_(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=1e-5)
    plan = fold_dead_units_(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-6, rtol=1e-5)
    prune_model_(model, plan)
    torch.testing.assert_close(logits(model), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("recipe", [THRESHOLD, THRESHOLD | {"mask_bias": False, "attention_block": "head"}])
def test_a_model_trained_with_a_threshold_is_cut_exactly_too(recipe):
    model, bank = banked(**recipe, score_learning_rate=0.05, score_gradient="weights")
    scattered(bank)
    trained(model, bank)
    assert 0.05 < bank.density(bank.final_mask()) < 0.95
    expected = logits(model)
    bank.apply_(model)
    plan = fold_dead_units_(model)
    prune_model_(model, plan)
    assert plan.num_removed_ffn > 0
    torch.testing.assert_close(logits(model), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("recipe", [THRESHOLD, RECIPES["heads and units"]])
def test_every_family_is_masked_and_cut_to_the_same_function(any_model, any_inputs, recipe):
    _, bank = banked(any_model, **recipe)
    scattered(bank)
    with torch.no_grad():
        expected = any_model(**any_inputs).logits
        bank.apply_(any_model)
        plan = fold_dead_units_(any_model)
        prune_model_(any_model, plan)
        torch.testing.assert_close(any_model(**any_inputs).logits, expected, atol=2e-6, rtol=1e-5)
    assert plan.num_removed_ffn > 0


@pytest.mark.parametrize("kept", [32, 64, 96])
def test_the_ffn_budget_is_met_exactly_in_whole_multiples(kept):
    model, bank = banked(attention_block=None, counts="scores", kept=kept)
    trained(model, bank)
    bank.apply_(model)
    widths = [len(units) for units in fold_dead_units_(model).kept_ffn.values()]
    assert sum(widths) == kept
    assert all(width % 32 == 0 for width in widths)


def test_a_density_or_macs_of_whole_units_is_that_of_the_cut_model():
    for of, measure in (
        ("parameters", linear_density),
        ("macs", lambda plan, a: cost_of(plan, a, seq_len=9).macs / cost_of(PruningPlan.full(a), a, seq_len=9).macs),
    ):
        model, bank = banked(attention_block="unit", counts=of, density=0.4, width_multiple=8, seq_len=9)
        anatomy = anatomy_of(model)
        trained(model, bank)
        bank.apply_(model)
        found = measure(fold_dead_units_(model), anatomy)
        assert 0.4 - 8 * 2 * 32 / (4 * 4096) < found <= 0.4 + 1e-9


def bert_of_wider_heads():
    return tiny_bert(hidden_size=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


NAMED = {
    "hybrid": BlockMovement.hybrid(density=0.26, attention_block=(8, 8), width_multiple=8),
    "hybrid, in macs": BlockMovement.hybrid(density=0.4, attention_block=(4, 8), width_multiple=8, counts="macs"),
    "struct": BlockMovement.struct(density=0.26, width_multiple=8),
    "blocks of several heads": BlockMovement.hybrid(density=0.5, attention_block=(16, 16), width_multiple=8),
    "blocks of FFN units": BlockMovement(
        attention_block="head", ffn_block=(4, 4), density=0.37, tuning=MovementTuning(width_multiple=16)
    ),
    "single weights": BlockMovement(
        attention_block=None, ffn_block=(1, 1), density=0.3, tuning=MovementTuning(width_multiple=8)
    ),
    "other blocks in some layers": BlockMovement(
        attention_block=(8, 8),
        ffn_block=(4, 4),
        density=0.4,
        tuning=MovementTuning(blocks={"*.0.*": "unit", "*.1.[if]*": None}),
    ),
    "blocks of attention alone": BlockMovement(attention_block=(8, 8), ffn_block=None, density=0.4),
    "magnitude": BlockMovement(
        attention_block=(8, 8), method="magnitude", density=0.3, tuning=MovementTuning(width_multiple=8)
    ),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("make", [bert, marian, bert_of_wider_heads])
def test_a_named_share_is_that_of_the_cut_model_whatever_its_blocks_are(name, make):
    settings = NAMED[name]
    model, bank = banked(make(), settings=settings)
    anatomy = anatomy_of(model)
    trained(model, bank)
    cheapest = min(site.groups.cost * site.groups.multiple for site in bank.sites) / bank.total_cost
    for level in (bank.settings.kept, 0.7):
        assert level - cheapest < bank.density(bank.mask_at(level)) <= level + 1e-9
    assert bank.settings.kept == pytest.approx(settings.kept, abs=cheapest / 2)
    expected, reached = logits(model), bank.density(bank.final_mask())
    bank.apply_(model)
    plan = fold_dead_units_(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-6, rtol=1e-5)
    assert share_of_scored(plan, anatomy, settings) == pytest.approx(reached, abs=1e-9)
    assert all(len(kept) % settings.tuning.width_multiple == 0 for kept in plan.kept_ffn.values())


def share_of_scored(plan, anatomy, settings):
    """Of the sites that are scored, in what the settings count."""
    scored = [site for site in anatomy.sites if settings.block_of(site) is not None]
    price = weights_price if settings.tuning.counts == "parameters" else lambda site: macs_price(site, 128, 128)
    kept = sum(site.price(price(site), plan.kept(site.name)) for site in scored)
    return kept / sum(site.price(price(site)) for site in scored)


def test_a_head_that_blocks_closed_can_return():
    model, bank = banked(settings=NAMED["hybrid"])
    scattered(bank)
    bank.mask.copy_(bank.mask_at(0.4))
    loss_of(model.train()).backward()
    for tensor, mask, grad in zip(
        bank.layout, bank.mask.split(bank._sizes), bank.importance_bias.grad.split(bank._sizes), strict=True
    ):
        if tensor.name.endswith("attention.output.dense"):
            closed = mask.view(tensor.shape).amax(0) == 0
            assert closed.any()
            assert (grad.view(tensor.shape).abs().sum(0)[closed] > 0).all()


def test_masks_fall_cubically_and_are_fixed_when_decided():
    model, bank = banked(attention_block=(8, 8), warmup_ratio=0.2, ramp_end=0.6, freeze_at=0.8)
    scattered(bank)
    seen = []
    for step in range(STEPS):
        bank.set_step(step)
        seen.append(bank.density(bank.mask))
    expected = [1.0] * 5 + [0.5 + 0.5 * (1 - (step - 4) / 8) ** 3 for step in range(5, 12)] + [0.5] * 8
    assert seen == pytest.approx(expected, abs=32 * 64 / (4 * 8192))
    fixed = bank.mask.clone()
    assert bool(bank.decided)
    scattered(bank, seed=5)
    bank.set_step(STEPS - 1)
    assert torch.equal(bank.mask, fixed)
    model.train()
    assert torch.autograd.grad(loss_of(model), [bank.importance_bias], allow_unused=True) == (None,)


def test_masks_of_an_evaluation_are_made_once_and_anew_after_training_or_loading(monkeypatch):
    model, bank = banked(**THRESHOLD)
    scattered(bank)
    made = []
    mask_at = MovementPruner.mask_at
    monkeypatch.setattr(MovementPruner, "mask_at", lambda self, level: made.append(level) or mask_at(self, level))
    first = [logits(model.eval()) for _ in range(3)]
    assert made == [0.1]
    assert torch.equal(first[0], first[2])
    state = copy.deepcopy(model.state_dict())
    scattered(bank, seed=7)
    logits(model.train())
    assert not torch.equal(logits(model.eval()), first[0])
    assert made == [0.1, 0.1]
    model.load_state_dict(state)
    assert torch.equal(logits(model), first[0])
    bank.set_step(3)
    logits(model)
    assert len(made) == 5


def test_the_penalty_gradient_is_that_of_a_penalty_in_the_loss():
    model, bank = banked(**THRESHOLD, attention_penalty=0.3)
    scattered(bank)
    bank.set_step(15)
    assert bank.penalty_strength == 10.0
    model.train()
    loss = loss_of(model)
    parts = bank.scores.split([tensor.numel for tensor in bank.layout])
    means = [torch.sigmoid(part).mean() for part in parts]
    attention = [m for m, tensor in zip(means, bank.layout, strict=True) if tensor.kind == "attention"]
    ffn = [m for m, tensor in zip(means, bank.layout, strict=True) if tensor.kind == "ffn"]
    added = 10.0 * (0.3 * sum(attention) / len(attention) + sum(ffn) / len(ffn)) / 2
    assert bank.penalty() == pytest.approx(added.item(), rel=1e-5)
    (expected,) = torch.autograd.grad(loss + added, [bank.importance_bias], retain_graph=True)
    (loss * 8.0).backward()
    bank.add_penalty_grad(loss_scale=8.0)
    torch.testing.assert_close(bank.importance_bias.grad, expected * 8.0)


def test_a_score_moves_by_its_own_learning_rate():
    model, bank = banked(attention_block=(8, 8), score_learning_rate=0.5, learning_rate=1e-3)
    model.train()
    bank.set_step(0)
    loss_of(model).backward()
    grad = bank.importance_bias.grad.clone()
    torch.optim.SGD([bank.importance_bias], lr=1e-3).step()
    torch.testing.assert_close(bank.scores.detach(), -0.5 * grad)


def checkpoint_layers(model):
    """Activation checkpointing as the Trainer switches it on, in a way that all supported versions know."""
    for layer in model.bert.encoder.layer:
        layer.forward = functools.partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)


@pytest.mark.parametrize("recipe", ["blocks and units", "heads and units"])
def test_micro_batches_and_activation_checkpointing_give_the_same_gradients(recipe):
    grads = []
    for checkpointing in (False, True):
        model, bank = banked(**RECIPES[recipe])
        scattered(bank)
        if checkpointing:
            checkpoint_layers(model)
        model.train()
        bank.set_step(12)
        for seed in (1, 2):
            loss_of(model, seed).backward()
        grads.append([bank.importance_bias.grad, *(p.grad for p in model.bert.encoder.parameters())])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    assert grads[0][0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_masks_stay_in_float32_when_the_model_is_cast(dtype):
    model, bank = banked(**THRESHOLD)
    scattered(bank)
    scores = bank.scores.detach().clone()
    model.to(dtype)
    assert torch.equal(bank.scores, scores)
    assert {tensor.dtype for tensor in (bank.mask, bank.kept, bank.penalty_weights)} == {torch.float32}
    model.train()
    bank.set_step(15)
    loss_of(model).backward()
    assert bank.importance_bias.grad.dtype == torch.float32
    assert bank.importance_bias.grad.isfinite().all()
    bank.apply_(model)
    assert model.bert.encoder.layer[0].attention.self.query.weight.dtype == dtype


STATE = ("importance_bias", "kept", "steps", "budget", "choice", "decided", "written_with")


def test_attaching_and_detaching_leave_the_model_as_it_was():
    model = bert()
    before, names, kinds = logits(model), list(model.state_dict()), [type(m) for m in model.modules()]
    _, bank = banked(model, **THRESHOLD)
    scattered(bank)
    changed = [name for name in model.state_dict() if name not in names]
    assert changed == [f"bert.{MovementPruner.module_name()}.{name}" for name in STATE]
    assert not torch.equal(logits(model), before)
    bank.detach(model)
    assert list(model.state_dict()) == names
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(logits(model), before)


def test_a_model_in_training_can_be_copied_with_its_bank():
    model, bank = banked(**THRESHOLD)
    scattered(bank)
    model.train()
    bank.set_step(15)
    loss_of(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    bank.set_scores(torch.full((bank.num_scores,), -9.0))
    twin.eval()
    assert not torch.equal(logits(twin), logits(model.eval()))


def test_weights_without_scores_are_refused():
    model, _ = banked(**THRESHOLD)
    with pytest.raises(TrainingStateError, match=f"{MovementPruner.module_name()}.importance_bias.*holds none"):
        model.load_state_dict(tiny_bert().state_dict())


def test_magnitudes_are_means_over_blocks_and_units():
    model, bank = banked(attention_block=(8, 16), method="magnitude", density=0.3)
    layer = model.bert.encoder.layer[0]
    query, up, down = layer.attention.self.query.weight, layer.intermediate.dense.weight, layer.output.dense.weight
    found = magnitudes(bank.layout, bank._linears)
    assert found[1].item() == pytest.approx(query[:8, 16:].abs().mean().item())
    units = found.split([tensor.numel for tensor in bank.layout])[4]
    assert units[7].item() == pytest.approx(torch.cat([up[7], down[:, 7]]).abs().mean().item())
    model.train()
    bank.set_step(15)
    assert torch.autograd.grad(loss_of(model), [bank.importance_bias], allow_unused=True) == (None,)


def test_a_probe_receives_the_derivative_by_each_factor():
    model, bank = banked(bert().double(), attention_block=(8, 8), mask_bias=False)
    model.eval()
    bank.probe = torch.full((bank.num_scores,), 0.5, requires_grad=True)
    (grad,) = torch.autograd.grad(loss_of(model), [bank.probe])
    for position in (35, 70):  # a block of the first value matrix, a unit of the first FFN
        losses = []
        for factor in (0.49, 0.51):
            bank.probe = torch.full((bank.num_scores,), 0.5)
            bank.probe[position] = factor
            losses.append(model(**inputs_of(model)).logits.square().mean().item())
        assert grad[position].item() == pytest.approx((losses[1] - losses[0]) / 0.02, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("blocks and units", {}),
        ("blocks and units", {"score_gradient": "weights"}),
        ("units", {"score_gradient": "weights"}),
        ("heads and units", {}),
        ("blocks everywhere", {}),
    ],
)
def test_masking_keeps_no_more_memory_for_the_backward_pass(recipe, changes):
    kept = []
    for has_bank in (False, True):
        model, storages = bert(), {}
        if has_bank:
            _, bank = banked(model, **RECIPES[recipe], **changes)
            bank.set_step(12)

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train()(**text_inputs(batch=32)).logits.sum()
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
    assert kept[1] <= 1.02 * kept[0]


@pytest.mark.parametrize("recipe", [*RECIPES.values(), THRESHOLD | {"min_kept": 0.1, "width_multiple": 8}])
def test_masks_and_gradients_never_wait_for_the_device(recipe):
    model, bank = banked(**recipe)
    model.to("meta")  # where anything that asks for a value fails
    assert bank.mask_at(0.3).is_meta
    model.train()
    bank.refresh()
    hidden = torch.empty(2, 5, 32, device="meta", requires_grad=True)
    layer = model.bert.encoder.layer[0]
    output = layer.output.dense(layer.intermediate.dense(layer.attention.output.dense(hidden)))
    output.sum().backward()
    assert hidden.grad is not None


def test_the_scores_find_the_units_that_the_target_was_computed_with():
    model = bert().train().requires_grad_(False)
    for layer in model.bert.encoder.layer:
        for linear in (layer.intermediate.dense, layer.output.dense):
            linear.weight.mul_(20.0)  # fresh FFNs hardly contribute
    _, bank = banked(
        model, attention_block=None, counts="scores", kept=64, width_multiple=1, freeze_at=1.0, learning_rate=1e-2
    )
    planted = torch.zeros(128)
    planted[torch.randperm(128, generator=torch.Generator().manual_seed(0))[:64]] = 1.0
    bank.prepare(80)
    optimizer = torch.optim.Adam([bank.importance_bias], lr=1e-2)
    for step in range(80):
        batch = text_inputs(seed=step, batch=16)
        with torch.no_grad():
            bank.probe = planted.clone()
            target = model.bert(**batch).last_hidden_state
        bank.probe = None
        bank.set_step(step)
        (model.bert(**batch).last_hidden_state - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (bank.final_mask() * planted).sum() >= 0.9 * 64


def test_the_log_names_densities_and_widths():
    _, bank = banked(attention_block=(8, 8))
    scattered(bank)
    bank.set_step(6)
    found = bank.quantities()
    sites = ["encoder.layer.0.intermediate", "encoder.layer.1.intermediate"]
    assert set(found) == {"density", "final_density", "penalty", *(f"ffn_width/{site}" for site in sites)}
    assert found["final_density"] == pytest.approx(0.5)
    assert found["final_density"] < found["density"] < 1.0
    assert all(found[f"ffn_width/{site}"] % 32 == 0 for site in sites)


class Movement(TrainerCallback):
    """The few calls that a callback needs."""

    def __init__(self, model, settings):
        self.model, self.settings = model, settings

    def on_init_end(self, args, state, control, **kwargs):
        loop = TrainingLoop(learning_rate=args.learning_rate)
        self.bank = MovementPruner.of(self.model, anatomy_of(self.model), self.settings, loop)

    def on_train_begin(self, args, state, control, **kwargs):
        self.bank.prepare(state.max_steps)
        self.bank.is_idle = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.bank.begin_step(self.model, state.global_step, TrainingLoop())

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.bank.add_penalty_grad()


def run(folder, settings, **arguments):
    model = bert()
    rows = text_inputs(batch=64)
    data = [{"input_ids": rows["input_ids"][i], "labels": i % 2} for i in range(64)]
    callback = Movement(model, settings)
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        logging_steps=4,
        save_steps=8,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    return Trainer(model=model, args=args, train_dataset=data, eval_dataset=data, callbacks=[callback]), callback


@pytest.mark.parametrize("recipe", [THRESHOLD | {"score_learning_rate": 0.5}, RECIPES["blocks and units"]])
def test_the_standard_trainer_trains_saves_resumes_and_cuts(tmp_path, recipe):
    settings = movement(**recipe)
    trainer, callback = run(tmp_path / "a", settings)
    trainer.train()
    whole = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    resumed, other = run(tmp_path / "a", settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.model.state_dict().items())
    assert int(other.bank.steps) == 16
    measured = trainer.evaluate()["eval_loss"]
    callback.bank.apply_(trainer.model)
    prune_model_(trainer.model, fold_dead_units_(trainer.model))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(measured, rel=1e-5)
    trainer.save_model(str(tmp_path / "cut"))
    again = type(trainer.model).from_pretrained(tmp_path / "cut")
    assert torch.equal(logits(again), logits(trainer.model.eval()))
