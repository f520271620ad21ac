import copy

import numpy as np
import pytest
import torch
from torch import nn

from hf_headprune.anatomy import anatomy_of
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.learn.gates.importance import gradient_importance, standardised
from hf_headprune.learn.gates.pruner import GatePruner
from hf_headprune.learn.gates.settings import SubsetGates
from hf_headprune.masking import masked
from hf_headprune.plan import PruningPlan
from tests.support.models import text_inputs, tiny_bert, tiny_marian
from tests.support.settings import gates

FIRST, SECOND = "encoder.layer.0.attention", "encoder.layer.1.attention"


def _gated(model=None, **settings):
    model = tiny_bert() if model is None else model
    bank = GatePruner(
        anatomy_of(model), gates(**({"kept_heads": 3, "warmup_ratio": 0.0} | settings)), multiplier=2000.0
    )
    bank.attach(model)
    bank.prepare(100)
    return model, bank


def _loss(model, inputs):
    return model(**inputs, labels=torch.zeros(len(inputs["input_ids"]), dtype=torch.long)).loss


@pytest.mark.parametrize("kept", range(9))
def test_evaluation_uses_exactly_the_top_k_heads_without_noise(kept):
    model, bank = _gated(kept_heads=kept)
    bank.set_scores(torch.randn(8, generator=torch.Generator().manual_seed(kept)))
    bank.set_step(10)
    closed = bank.hard_mask()
    assert int(closed.sum()) == kept
    heads = {site.name: part for site, part in zip(anatomy_of(model).attention_sites, closed.split(4), strict=True)}
    plan = PruningPlan.of(model).replace(kept_heads={k: v.nonzero().flatten().tolist() for k, v in heads.items()})
    with torch.no_grad():
        gated = model(**text_inputs()).logits
        assert torch.equal(gated, model(**text_inputs()).logits)
        bank.detach(model)
        with masked(model, plan):
            assert torch.equal(gated, model(**text_inputs()).logits)


@pytest.mark.parametrize("estimator", ["sigmoid", "dsp", "hard_concrete"])
def test_noise_is_drawn_once_per_step_for_all_its_micro_batches_and_anew_for_the_next(estimator):
    model, bank = _gated(estimator=estimator, ramp_steps=0)
    bank.set_scores(torch.linspace(-1, 1, 8))
    model.train()
    drawn = []
    for step in (40, 40, 41):
        bank.set_step(step)
        for _ in range(2):
            _loss(model, text_inputs()).backward()
            drawn.append(torch.cat([scale.scale for scale in bank.units.scales]).detach())
    assert all(torch.equal(gates, drawn[0]) for gates in drawn[:4])
    assert torch.equal(drawn[4], drawn[5])
    assert not torch.equal(drawn[4], drawn[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_are_computed_in_full_precision_under_autocast(dtype):
    _, bank = _gated(estimator="sigmoid", ramp_steps=0)
    bank.set_scores(torch.linspace(-1, 1, 8))
    bank.train().set_step(40)
    plain = bank.gates()
    with torch.autocast("cpu", dtype=dtype):
        found = bank.gates()
    assert (found.dtype, bank.scores.dtype) == (torch.float32, torch.float32)
    assert torch.equal(found, plain)
    assert float(found.detach().sum()) == pytest.approx(3.0, abs=1e-6)


def test_detaching_leaves_the_model_as_it_was():
    model = tiny_bert()
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        before = model(**text_inputs()).logits
    _, bank = _gated(model)
    bank.detach(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert GatePruner.module_name() not in dict(model.base_model.named_children())
    with torch.no_grad():
        assert torch.equal(before, model(**text_inputs()).logits)


@pytest.mark.parametrize("estimator", ["sigmoid", "dsp", "ste", "hard_concrete"])
def test_one_training_step_gives_every_estimator_a_finite_gradient(estimator):
    model, bank = _gated(estimator=estimator)
    bank.set_scores(torch.linspace(-1, 1, 8))
    model.train()
    bank.set_step(30)
    _loss(model, text_inputs()).backward()
    grad = bank.importance_bias.grad
    assert bool(torch.isfinite(grad).all())
    assert float(grad.abs().max()) > 0
    assert float(grad.norm()) <= 1.0 + 1e-6


def test_the_clip_of_the_scores_gradient_does_not_feel_the_loss_scale_of_fp16():
    grads = []
    for scale in (1.0, 65536.0):
        model, bank = _gated(max_score_grad_norm=1e-6)
        bank.set_scores(torch.linspace(-1, 1, 8))
        model.train()
        bank.set_step(30, loss_scale=scale)
        torch.manual_seed(0)
        (_loss(model, text_inputs()) * scale).backward()
        grads.append(bank.importance_bias.grad / scale)
    assert float(grads[0].norm()) == pytest.approx(1e-6, rel=1e-4)
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_clip_is_that_of_the_whole_step_however_many_micro_batches_it_has(micro_batches):
    model, bank = _gated()
    bank.set_scores(torch.linspace(-1, 1, 8))
    model.train()
    grads = {}
    for limit in (1e-6, 1e6):
        bank.settings = gates(kept_heads=3, warmup_ratio=0.0, max_score_grad_norm=limit)
        for step in (30, 30):  # the second step owes nothing to the first
            bank.importance_bias.grad = None
            bank.set_step(step)
            for number in range(micro_batches):
                torch.manual_seed(0)
                _loss(model, text_inputs(seed=number)).backward()
        grads[limit] = bank.importance_bias.grad
    assert float(grads[1e-6].norm()) == pytest.approx(1e-6, rel=1e-3)
    assert torch.allclose(grads[1e-6] / grads[1e-6].norm(), grads[1e6] / grads[1e6].norm(), atol=1e-3)


def test_a_run_that_goes_on_longer_than_planned_keeps_the_choice_that_was_decided():
    model, bank = _gated()
    bank.set_scores(torch.linspace(-1, 1, 8))
    bank.set_step(99)
    decided = model.state_dict()
    model, bank = _gated()
    model.load_state_dict(decided)
    bank.prepare(1000)
    assert bank.schedule.phase(100) == "learn"
    bank.set_step(100)
    assert bank.phase == "decided"
    assert bank.train().gates().tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_the_penalty_of_hard_concrete_gates_pushes_towards_the_budget():
    _, bank = _gated(estimator="hard_concrete", kept_heads=1, penalty=5.0)
    bank.set_step(30)
    bank.importance_bias.grad = torch.zeros(8)
    bank.add_penalty_grad()
    once = bank.importance_bias.grad.clone()
    assert bool((once > 0).all())
    bank.add_penalty_grad(loss_scale=8.0)
    torch.testing.assert_close(bank.importance_bias.grad, 9.0 * once)


def test_a_learning_rate_multiplier_is_the_same_as_a_larger_learning_rate():
    _, bank = _gated()
    direct = nn.Parameter(torch.zeros(8))
    optimizers = [torch.optim.AdamW([bank.importance_bias], lr=1e-4), torch.optim.AdamW([direct], lr=1e-4 * 2000.0)]
    for parameter_group in optimizers[0].param_groups + optimizers[1].param_groups:
        parameter_group["weight_decay"] = 0.0
        parameter_group["eps"] = 0.0
    target = torch.linspace(-1, 1, 8)
    for _ in range(5):
        for optimizer, values in zip(optimizers, (bank.scores, direct), strict=True):
            optimizer.zero_grad()
            ((values - target) ** 3).sum().backward()
            optimizer.step()
    assert torch.allclose(bank.scores, direct, atol=1e-5)


@pytest.mark.parametrize(("ramp_steps", "open_heads"), [(0, 3.0), (120, 8.0)])
def test_gradual_gates_start_open_and_both_kinds_end_at_the_budget(ramp_steps, open_heads):
    _, bank = _gated(ramp_steps=ramp_steps)
    bank.set_step(0)
    assert float(bank.soft_gates().detach().sum()) == pytest.approx(open_heads, abs=1e-5)
    bank.set_step(bank.schedule.cooled_step - 1)
    assert float(bank.soft_gates().detach().sum()) == pytest.approx(3.0, abs=1e-3)


def test_noise_is_the_same_for_a_step_whatever_came_before():
    _, first = _gated(estimator="sigmoid")
    _, second = _gated(estimator="sigmoid")
    for step in range(5):
        first.set_step(step)
    second.set_step(4)
    assert torch.equal(first.noise, second.noise)
    first.set_step(5)
    assert not torch.equal(first.noise, second.noise)


def test_the_decided_choice_stays_when_the_scores_move_on():
    _, bank = _gated()
    bank.set_scores(torch.linspace(-1, 1, 8))
    bank.set_step(65)
    bank.set_scores(torch.linspace(1, -1, 8))
    assert bank.hard_mask().tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_checkpoint_from_before_the_decision_brings_its_own_choice_back():
    model, bank = _gated()
    bank.set_scores(torch.linspace(-1, 1, 8))
    bank.set_step(20)
    early = copy.deepcopy(model.state_dict())
    bank.set_scores(torch.linspace(1, -1, 8))
    bank.set_step(65)
    model.load_state_dict(early)
    assert bank.hard_mask().tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert int(bank.hard_mask().sum()) == 3


def test_a_copied_model_has_gates_of_its_own():
    model, bank = _gated()
    model.train()
    bank.set_step(30)
    model(**text_inputs())
    twin = copy.deepcopy(model)
    getattr(twin.base_model, GatePruner.module_name()).set_scores(torch.linspace(1, -1, 8))
    bank.set_scores(torch.linspace(-1, 1, 8))
    with torch.no_grad():
        assert not torch.equal(model.eval()(**text_inputs()).logits, twin.eval()(**text_inputs()).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_stay_in_fp32_when_the_model_is_cast(dtype):
    model, bank = _gated()
    bank.set_scores(torch.linspace(-1, 1, 8))
    model.to(dtype)
    assert bank.importance_bias.dtype == torch.float32
    assert torch.allclose(bank.scores, torch.linspace(-1, 1, 8))


def test_each_kind_of_attention_can_have_its_own_budget():
    model, bank = _gated(tiny_marian(), kept_heads={"encoder": 2, "cross": 0.25})
    bank.set_scores(torch.randn(24, generator=torch.Generator().manual_seed(0)))
    kinds = [site.kind for site in anatomy_of(model).attention_sites for _ in range(4)]
    kept = {
        kind: sum(k for k, each in zip(bank.hard_mask().tolist(), kinds, strict=True) if each == kind) for kind in kinds
    }
    assert kept == {"encoder": 2, "decoder": 8, "cross": 2}


def test_the_logged_quantities_describe_the_gates():
    _, bank = _gated(estimator="sigmoid")
    bank.set_scores(torch.tensor([8.0, 1.0, 1.0, 1.0, 1.0, 1.0, 7.0, 6.0]))
    bank.set_step(64)
    quantities = bank.quantities()
    assert (quantities[f"hard_heads/{FIRST}"], quantities[f"hard_heads/{SECOND}"]) == (1.0, 2.0)
    assert quantities[f"expected_heads/{FIRST}"] + quantities[f"expected_heads/{SECOND}"] == pytest.approx(
        3.0, abs=1e-3
    )
    assert quantities["kth_gap"] == pytest.approx(5.0)
    bank.noise.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))  # the second head in place of the last
    assert bank.quantities()["sample_overlap"] == pytest.approx(2 / 3)
    assert quantities["temperature"] == bank.temperature


def test_gradient_importance_is_the_slope_of_the_loss_in_each_gate():
    model, bank = _gated()
    model.double()
    inputs, step = text_inputs(), 1e-3

    def loss_at(position: int, shift: float) -> float:
        bank.probe = torch.full((8,), 0.5, dtype=torch.float64)
        bank.probe[position] += shift
        with torch.no_grad():
            return float(_loss(model, inputs))

    slopes = [(loss_at(i, step) - loss_at(i, -step)) / (2 * step) for i in range(8)]
    importance = gradient_importance(model, bank, [inputs, inputs], lambda batch: _loss(model, batch))
    assert min(slopes) < 0 < max(slopes)
    assert importance.tolist() == pytest.approx([2 * abs(slope) for slope in slopes], rel=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scoring_refuses_a_loss_that_does_not_depend_on_the_heads():
    model, bank = _gated()
    constant = nn.Parameter(torch.ones(()))
    with pytest.raises(TrainingStateError, match=r"gives no gradient for the gates.*initial_scores"):
        gradient_importance(model, bank, [0], lambda _: constant * 2)


def test_standardised_importance_keeps_the_order_whatever_its_scale():
    scores = standardised(torch.tensor([1e-8, 1e-3, 5.0, 0.0]))
    assert scores.argsort().tolist() == [3, 0, 1, 2]
    assert float(scores[:3].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores[:3].std(correction=0)) == pytest.approx(1.0)
    assert float(scores[3]) == pytest.approx(float(scores[0]) - 1.0)
    assert standardised(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"kept_heads": -1}, "kept_heads must be"),
        ({"kept_heads": 1.5}, "kept_heads must be"),
        ({"kept_heads": True}, "kept_heads must be"),
        ({"kept_heads": {"middle": 3}}, "kinds of attention"),
        ({"estimator": "topk"}, "estimator must be one of"),
        ({"mode": "both"}, "mode must be one of"),
        ({"score_learning_rate": 0.0}, "score_learning_rate"),
        ({"temperature": (0.05, 3.0)}, "first >= last > 0"),
        ({"temperature": 3.0}, "a tuple of two numbers"),
        ({"estimator": "ste", "temperature": (3.0, 0.05)}, "have a tuning.temperature"),
        (
            {"warmup_ratio": 0.7},
            r"warmup_ratio <= tuning.anneal_end.*Received warmup_ratio=0\.7, freeze_at=0\.65, tuning.anneal_end=None",
        ),
        ({"freeze_at": 1.1}, "freeze_at <= 1"),
        ({"scoring_examples": 0}, "scoring_examples"),
        ({"max_score_grad_norm": 0.0}, "max_score_grad_norm"),
        ({"penalty": -1.0}, "penalty"),
    ],
)
def test_wrong_settings_are_refused_at_construction(wrong, rule):
    SubsetGates(kept_heads=3)
    with pytest.raises(InvalidSettingError, match=rule):
        gates(**wrong)


@pytest.mark.parametrize(
    ("budget", "rule"),
    [(9, "9 heads are to be kept, but the model has 8"), ({"cross": 1}, r"no \['cross'\] attention")],
)
def test_a_budget_that_the_model_cannot_meet_is_refused(budget, rule):
    anatomy = anatomy_of(tiny_bert())
    assert SubsetGates(kept_heads=8).budget_groups(anatomy)[0].kept == 8
    with pytest.raises(InvalidSettingError, match=rule):
        SubsetGates(kept_heads=budget).budget_groups(anatomy)


def test_a_budget_may_be_a_whole_number_of_numpy():
    assert SubsetGates(np.int64(3)).budget_groups(anatomy_of(tiny_bert()))[0].kept == 3


def test_half_of_the_heads_stay_where_nothing_is_said():
    assert SubsetGates().budget_groups(anatomy_of(tiny_bert()))[0].kept == 4


def test_each_estimator_has_a_learning_rate_and_a_temperature_of_its_own_that_the_user_can_overrule():
    assert (SubsetGates().chosen_estimator, SubsetGates(mode="pipelined").chosen_estimator) == ("ste", "sigmoid")
    assert SubsetGates().peak_score_learning_rate == SubsetGates(estimator="dsp").peak_score_learning_rate == 0.5
    assert SubsetGates(estimator="sigmoid").peak_score_learning_rate == 0.1
    assert SubsetGates(estimator="sigmoid").temperature_range == (3.0, 0.05)
    pipelined = SubsetGates(mode="pipelined")
    assert pipelined.chosen_estimator == "sigmoid"
    assert (pipelined.peak_score_learning_rate, pipelined.temperature_range) == (0.5, (10.0, 0.1))
    overruled = gates(estimator="dsp", score_learning_rate=0.2, temperature=(1.0, 0.5))
    assert (overruled.peak_score_learning_rate, overruled.temperature_range) == (0.2, (1.0, 0.5))
