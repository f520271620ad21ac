import numpy as np
import pytest
import torch

from hf_headprune.learn.movement.masks import (
    ScoreTensor,
    at_least,
    in_multiples,
    penalty,
    penalty_grad,
    penalty_weights,
    threshold_mask,
    top_k_over_model,
    top_k_per_tensor,
)


def tensor(shape, *, cost=1.0, multiple=1, kind="attention"):
    return ScoreTensor(name="w", paths=("w",), kind=kind, shape=shape, cost=cost, multiple=multiple)


def random_scores(size, seed=0, *, ties=False):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return scores.round() if ties else scores


def chunks_of(scores, layout):
    """(mean score, cost, positions) of every chunk, in order."""
    start = 0
    for part in layout:
        ranked = list(range(start, start + part.numel))
        if part.multiple > 1:
            ranked.sort(key=lambda i: -scores[i].item())
        for j in range(0, part.numel, part.multiple):
            chunk = ranked[j : j + part.multiple]
            yield scores[chunk].mean().item(), part.cost * part.multiple, chunk
        start += part.numel


def slow_top_k(scores, budget, layout):
    """One chunk after the other, in plain Python: until one does not fit, then each price until one does not fit."""
    waiting = sorted(chunks_of(scores, layout), key=lambda chunk: -chunk[0])
    mask, prices = torch.zeros(len(scores)), sorted({chunk[1] for chunk in waiting}, reverse=True)
    for allowed_prices in (prices, *[[price] for price in prices]):
        for chunk in [chunk for chunk in waiting if chunk[1] in allowed_prices]:
            if chunk[1] > budget + 1e-6:
                break
            budget -= chunk[1]
            mask[chunk[2]] = 1.0
            waiting.remove(chunk)
    return mask


LAYOUTS = {
    "blocks": (tensor((3, 4)), tensor((2, 5))),
    "blocks of two costs": (tensor((3, 4), cost=2.0), tensor((2, 5), cost=3.0)),
    "units": (tensor((16,), multiple=4), tensor((8,), multiple=4)),
    "both": (tensor((4, 4), cost=5.0), tensor((16,), cost=3.0, multiple=4), tensor((8,), cost=3.0, multiple=4)),
    "single units": (tensor((16,)), tensor((6,), cost=2.5)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.33, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_choice_over_the_model_equals_that_of_a_loop(name, fraction, ties):
    layout = LAYOUTS[name]
    scores = random_scores(sum(part.numel for part in layout), ties=ties)
    total = sum(part.cost * part.numel for part in layout)
    mask = top_k_over_model(scores, fraction * total, layout)
    assert torch.equal(mask, slow_top_k(scores, fraction * total, layout))
    parts = list(zip(layout, mask.split([part.numel for part in layout]), strict=True))
    assert all(int(kept.sum()) % part.multiple == 0 for part, kept in parts)
    spent = sum(part.cost * kept.sum().item() for part, kept in parts)
    cheapest = min(part.cost * part.multiple for part in layout)
    assert fraction * total - cheapest < spent <= fraction * total + 1e-6


def test_equal_scores_keep_the_earlier():
    layout = (tensor((2, 2)), tensor((8,), multiple=2))
    assert torch.equal(top_k_over_model(torch.zeros(12), 6.0, layout), torch.tensor([1.0] * 6 + [0.0] * 6))


def test_the_budget_buys_the_largest_sum_of_scores_when_all_chunks_cost_the_same():
    layout = (tensor((6,), multiple=2), tensor((6,), multiple=2))
    for seed in range(20):
        scores = random_scores(12, seed)
        best = max(
            sum(
                np.sort(part)[::-1][: 2 * n].sum()
                for part, n in zip(scores.view(2, 6).numpy(), (i, 3 - i), strict=True)
            )
            for i in range(4)
        )
        assert (top_k_over_model(scores, 6.0, layout) * scores).sum().item() == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.29, 0.5, 1.0])
def test_the_choice_per_matrix_keeps_the_same_fraction_of_each(fraction):
    layout = (tensor((10, 10)), tensor((32,), multiple=8))
    scores = random_scores(132)
    blocks, units = top_k_per_tensor(scores, fraction, layout).split([100, 32])
    assert int(blocks.sum()) == round(100 * fraction)
    assert int(units.sum()) == 8 * round(4 * fraction + 1e-9)
    assert fraction in (0.0, 1.0) or scores[:100][blocks == 1].min() > scores[:100][blocks == 0].max()


@pytest.mark.parametrize("sigmoid", [True, False])
def test_a_threshold_keeps_what_is_above_it(sigmoid):
    scores = torch.tensor([-3.0, -2.19, -2.2, 0.0, 0.1, 4.0])
    level = 0.1 if sigmoid else 0.05
    kept = [0.0, 1, 0, 1, 1, 1] if sigmoid else [0.0, 0, 0, 0, 1, 1]
    assert torch.equal(threshold_mask(scores, level, [tensor((2, 3))], sigmoid=sigmoid), torch.tensor(kept))
    level = 0.5 if sigmoid else 0.0  # exactly that of a score of 0
    kept = torch.tensor([0.0, 0, 0, 0, 1, 1])
    assert torch.equal(threshold_mask(scores, level, [tensor((2, 3))], sigmoid=sigmoid), kept)


def test_a_threshold_leaves_a_least_number_and_whole_multiples():
    layout = [tensor((2, 4)), tensor((8,), multiple=4)]
    scores = torch.cat([torch.arange(8.0) - 20, torch.tensor([5.0, -1, -2, -3, -4, 6, 7, -5])])
    mask = threshold_mask(scores, 0.5, layout, sigmoid=False, min_kept=0.25)
    assert torch.equal(mask[:8], torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1]))  # int(0.25 * 8) + 1 stay
    assert torch.equal(mask[8:], torch.tensor([1.0, 1, 0, 0, 0, 1, 1, 0]))  # the best closed unit makes four


@pytest.mark.parametrize("open_units", range(9))
def test_multiples_are_reached_by_opening_the_best_closed_units(open_units):
    scores = random_scores(8)
    mask = torch.zeros(8)
    mask[torch.randperm(8, generator=torch.Generator().manual_seed(1))[:open_units]] = 1.0
    rounded = in_multiples(mask, scores, 4)
    assert int(rounded.sum()) == -(-open_units // 4) * 4
    assert (rounded >= mask).all()
    opened, closed = scores[(rounded > mask)], scores[rounded == 0]
    assert len(opened) == 0 or len(closed) == 0 or opened.min() > closed.max()


def test_at_least_asks_for_nothing_at_zero_and_leaves_masks_that_keep_enough():
    scores = random_scores(10)
    assert not at_least(torch.zeros(10), scores, 0.0).any()
    enough = torch.tensor([0.0] * 5 + [1.0] * 5)
    assert torch.equal(at_least(enough, scores, 0.3), enough)


def test_the_penalty_is_a_mean_of_means_and_its_gradient_is_analytic():
    layout = [
        tensor((2, 3)),
        tensor((4, 1)),
        tensor((8,), kind="ffn"),
        tensor((2, 2), kind="decoder_attention"),
    ]
    scores = random_scores(22).requires_grad_(True)
    kept = torch.sigmoid(scores)
    expected = (0.7 * (kept[:6].mean() + kept[6:10].mean()) / 2 + 1.3 * kept[10:18].mean() + 0.7 * kept[18:].mean()) / 3
    weights = penalty_weights(layout, {"attention": 0.7, "ffn": 1.3})
    torch.testing.assert_close(penalty(scores, weights), expected)
    expected.backward()
    torch.testing.assert_close(penalty_grad(scores.detach(), weights), scores.grad)
