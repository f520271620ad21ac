import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_headprune.learn.gates.estimators import (
    GATES,
    dsp_gates,
    gumbel_noise,
    hard_concrete_gates,
    hard_concrete_penalty_grad,
    logistic_noise,
    sigmoid_gates,
    ste_gates,
)
from hf_headprune.learn.top_k import top_k_mask

NUM_HEADS = 12


def _scores(seed: int, size: int = NUM_HEADS) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _noise(seed: int, size: int = NUM_HEADS) -> torch.Tensor:
    return gumbel_noise(size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("estimator", ["sigmoid", "dsp", "ste"])
@pytest.mark.parametrize("temperature", [1000.0, 3.0, 0.1, 0.05])
@pytest.mark.parametrize("kept", range(NUM_HEADS + 1))
def test_gates_sum_to_the_budget_for_every_k(estimator, temperature, kept):
    gates = GATES[estimator](_scores(0), _noise(1), kept=kept, temperature=temperature)
    assert gates.shape == (NUM_HEADS,)
    assert float(gates.sum()) == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("kept", [1, 5, 11])
def test_sigmoid_gates_stay_between_zero_and_one_where_the_papers_may_not(kept):
    gates = sigmoid_gates(_scores(2) * 10, _noise(3), kept=kept, temperature=0.3)
    assert float(gates.min()) >= 0.0
    assert float(gates.max()) <= 1.0


@pytest.mark.parametrize("kept", [1, 5, 11])
@pytest.mark.parametrize("temperature", [3.0, 0.3])
def test_the_implicit_gradient_of_the_sigmoid_gates_is_the_numerical_one(kept, temperature):
    def gates(scores: torch.Tensor) -> torch.Tensor:
        return sigmoid_gates(scores, _noise(5), kept=kept, temperature=temperature)

    assert torch.autograd.gradcheck(gates, _scores(4).requires_grad_(True), atol=1e-5)


@pytest.mark.parametrize("kept", [0, NUM_HEADS])
def test_sigmoid_gates_have_no_gradient_where_nothing_is_to_choose(kept):
    scores = _scores(6).requires_grad_(True)
    sigmoid_gates(scores, _noise(6), kept=kept, temperature=1.0).sum().backward()
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_the_papers_gates_are_its_successive_softmaxes():
    scores, noise, temperature = _scores(7, 4), _noise(8, 4), 0.7
    logits = [float(value) for value in scores + noise]
    expected = [0.0] * 4
    for _ in range(2):
        weights = [math.exp(value / temperature) for value in logits]
        shares = [weight / sum(weights) for weight in weights]
        expected = [total + share for total, share in zip(expected, shares, strict=True)]
        logits = [value + math.log(1 - share) for value, share in zip(logits, shares, strict=True)]
    gates = dsp_gates(scores, noise, kept=2, temperature=temperature)
    assert gates.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("estimator", ["sigmoid", "dsp"])
def test_cold_gates_are_the_hard_top_k_of_the_noisy_scores(estimator):
    scores, noise = _scores(9), _noise(10)
    gates = GATES[estimator](scores, noise, kept=4, temperature=1e-4)
    assert torch.allclose(gates, top_k_mask(scores + noise, 4), atol=1e-6)


def test_straight_through_gates_are_hard_and_pass_the_gradient_unchanged():
    scores = _scores(11).requires_grad_(True)
    gates = ste_gates(scores, _noise(11), kept=3, temperature=1.0)
    weights = torch.arange(NUM_HEADS, dtype=torch.float64)
    (gates * weights).sum().backward()
    assert torch.equal(gates.detach(), top_k_mask(scores, 3))
    assert torch.equal(scores.grad, weights)


def test_hard_concrete_gates_are_clamped_and_close_and_open_exactly():
    noise = logistic_noise(2000, torch.Generator().manual_seed(0))
    gates = hard_concrete_gates(torch.zeros(2000), noise, kept=5, temperature=1.0)
    assert float(gates.min()) == 0.0
    assert float(gates.max()) == 1.0
    assert 0.3 < float(gates.mean()) < 0.7


@pytest.mark.parametrize(("kept", "pushes"), [(3, True), (NUM_HEADS, False)])
def test_the_hard_concrete_penalty_is_the_numerical_gradient_and_stops_at_the_budget(kept, pushes):
    scores, step = _scores(12), 1e-6

    def penalty(values: torch.Tensor) -> float:
        open_probability = torch.sigmoid(values - 2 / 3 * math.log(0.1 / 1.1))
        return float(0.5 * 2.0 / NUM_HEADS * max(0.0, float(open_probability.sum()) - kept) ** 2)

    grad = hard_concrete_penalty_grad(scores, kept=kept, strength=2.0)
    numerical = [
        (penalty(scores + step * unit) - penalty(scores - step * unit)) / (2 * step) for unit in torch.eye(NUM_HEADS)
    ]
    assert grad.tolist() == pytest.approx(numerical, abs=1e-6)
    assert bool((grad > 0).all()) is pushes


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
@settings(deadline=None, max_examples=50)
def test_the_top_k_mask_keeps_exactly_k_and_prefers_lower_indices_on_ties(values, data):
    kept = data.draw(st.integers(0, len(values)))
    mask = top_k_mask(torch.tensor(values, dtype=torch.float32), kept)
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:kept]
    assert mask.nonzero().flatten().tolist() == sorted(best)


def test_the_mean_sigmoid_gradient_points_where_the_exact_gradient_points():
    size, kept = 6, 2
    values = torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scores = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    subsets = [list(subset) for subset in itertools.combinations(range(size), kept)]
    log_weights = torch.stack([scores[subset].sum() for subset in subsets])
    losses = torch.tensor([float(values[subset].sum()) for subset in subsets], dtype=torch.float64)
    (exact,) = torch.autograd.grad((torch.softmax(log_weights, 0) * losses).sum(), scores)
    total = torch.zeros(size, dtype=torch.float64)
    for seed in range(300):
        gates = sigmoid_gates(scores, _noise(seed, size), kept=kept, temperature=1.0)
        total += torch.autograd.grad((gates * values).sum(), scores)[0]
    assert float(torch.cosine_similarity(total, exact, dim=0)) > 0.95
