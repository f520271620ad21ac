"""The paired test against full enumeration, published values, wider bounds and simulated data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, multinomial

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee import paired

REFERENCE = [  # epsilon = 1 %
    (5, 3, 872, 0.0296),
    (10, 6, 1821, 0.00255),
    (25, 22, 1821, 0.0175),
    (26, 23, 1821, 0.0194),
    (34, 42, 1821, 0.0018),
    (46, 43, 1821, 0.0564),
]


def outcomes(n):
    """Every (b, c) with b + c <= n."""
    return np.array([(b, c) for b in range(n + 1) for c in range(n + 1 - b)])


def slow_tail(b, c, n, epsilon, disagreement):
    """Sum of the trinomial over every outcome that is at least as good for the pruned model."""
    every = outcomes(n)
    z = paired.score_statistic(every[:, 0], every[:, 1], n, epsilon)
    observed = paired.score_statistic(np.array(b), np.array(c), n, epsilon)
    chances = [(disagreement + epsilon) / 2, (disagreement - epsilon) / 2, 1 - disagreement]
    counts = np.column_stack([every, n - every.sum(axis=1)])
    return multinomial.pmf(counts, n, chances)[z <= observed + 1e-9].sum()


def likelihood(fixed_rate, b, c, n, epsilon):
    rates = fixed_rate + epsilon, fixed_rate, 1 - 2 * fixed_rate - epsilon
    terms = zip((b, c, n - b - c), rates, strict=True)
    return sum(k * math.log(rate) if rate > 0 else (0 if k == 0 else -math.inf) for k, rate in terms)


@pytest.mark.parametrize(("b", "c", "n", "expected"), REFERENCE)
def test_p_values_are_the_published_ones(b, c, n, expected):
    # Those were computed on a coarser grid, whose supremum is up to .0004 smaller.
    assert -5e-5 <= paired.p_value(b, c, n, 0.01) - expected <= 5e-4


@pytest.mark.parametrize("epsilon", [0.03, 0.2, -0.05])
@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 12), (3, 1, 25), (1, 6, 25), (12, 0, 12), (9, 9, 30)])
def test_tails_are_sums_over_all_outcomes(b, c, n, epsilon):
    disagreements = np.array([abs(epsilon) + 1e-9, 0.25, 0.5, 0.9, 1 - 1e-9])
    critical = float(paired.score_statistic(np.array(b), np.array(c), n, epsilon))
    limits = paired.rejection_limits(critical, n, epsilon)
    fast = paired.tail_probabilities(limits, n, disagreements, epsilon)
    assert fast == pytest.approx([slow_tail(b, c, n, epsilon, q) for q in disagreements], abs=1e-9)
    assert paired.p_value(b, c, n, epsilon) >= fast.max() - 1e-9


@pytest.mark.parametrize(("b", "c", "n", "epsilon"), [(3, 2, 60, 0.05), (0, 0, 40, 0.1), (4, 9, 80, -0.02)])
def test_no_disagreement_has_a_larger_tail_than_the_p_value(b, c, n, epsilon):
    dense_grid = np.linspace(abs(epsilon) + 1e-9, 1 - 1e-9, 4000)
    limits = paired.rejection_limits(float(paired.score_statistic(np.array(b), np.array(c), n, epsilon)), n, epsilon)
    assert paired.tail_probabilities(limits, n, dense_grid, epsilon).max() <= paired.p_value(b, c, n, epsilon) + 1e-5


@pytest.mark.parametrize(
    ("b", "c", "n", "epsilon"), [(3, 1, 40, 0.05), (0, 2, 30, 0.1), (7, 7, 50, -0.03), (0, 0, 9, 0.2)]
)
def test_z_uses_the_restricted_maximum_likelihood(b, c, n, epsilon):
    rates = np.linspace(max(0, -epsilon), (1 - epsilon) / 2, 200_001)
    best = max(rates, key=lambda rate: likelihood(rate, b, c, n, epsilon))
    expected = (b - c - n * epsilon) / math.sqrt(n * (2 * best + epsilon * (1 - epsilon)))
    assert float(paired.score_statistic(np.array(b), np.array(c), n, epsilon)) == pytest.approx(expected, abs=2e-3)


@given(n=st.integers(2, 60), epsilon=st.sampled_from([-0.4, -0.01, 0.0, 0.01, 0.3]))
@settings(max_examples=25, deadline=None)
def test_z_rises_with_broken_and_falls_with_fixed_examples(n, epsilon):
    b, c = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    inside = b + c < n
    z = paired.score_statistic(b, c, n, epsilon)
    assert (paired.score_statistic(b + 1, c, n, epsilon) >= z - 1e-9)[inside].all()
    assert (paired.score_statistic(b, c + 1, n, epsilon) <= z + 1e-9)[inside].all()


@pytest.mark.parametrize(("n", "disagreement"), [(300, 0.012), (872, 0.02), (872, 0.1), (1821, 0.05)])
def test_at_most_alpha_of_certificates_are_wrong_at_the_boundary(n, disagreement):
    limits = paired.rejection_limits(paired.critical_value(n, 0.01, paired.level_of(0.05)), n, 0.01)
    wrong = paired.tail_probabilities(limits, n, np.array([disagreement]), 0.01)[0]
    assert 0.01 < wrong <= 0.05


def test_the_critical_value_rejects_exactly_where_the_p_value_is_small():
    n, level = 200, paired.level_of(0.05)
    critical = paired.critical_value(n, 0.03, level)
    decisions = [
        (
            float(paired.score_statistic(np.array(b), np.array(c), n, 0.03)) <= critical,
            paired.p_value(b, c, n, 0.03) <= level,
        )
        for b in range(6)
        for c in range(6)
    ]
    assert all(fast == slow for fast, slow in decisions)
    assert {True, False} == {slow for _, slow in decisions}


@pytest.mark.parametrize(("b", "c", "n"), [(34, 42, 1821), (5, 3, 872), (0, 0, 100), (2, 40, 150), (30, 1, 60)])
def test_the_upper_bound_is_where_the_p_value_crosses_the_level(b, c, n):
    bound, level = paired.upper_bound(b, c, n, 0.05), paired.level_of(0.05)
    assert bound > (b - c) / n
    assert paired.p_value(b, c, n, bound) <= level < paired.p_value(b, c, n, bound - 5e-5)


def test_the_upper_bound_of_the_recorded_certificate_is_found_again():
    assert paired.upper_bound(34, 42, 1821, 0.05) == pytest.approx(0.00363, abs=1e-5)


def test_many_fixed_examples_give_a_bound_below_zero_and_all_broken_one_gives_one():
    assert paired.upper_bound(2, 60, 200, 0.05) < 0
    assert paired.upper_bound(10, 0, 10, 0.05) == 1.0


@pytest.mark.parametrize(("b", "c", "n", "_"), REFERENCE)
def test_bounds_that_are_known_to_be_wide_are_wider(b, c, n, _):
    assert q_theta_bound(b, c, n, 0.05) > paired.upper_bound(b, c, n, 0.05)
    assert berger_boos(b, c, n, 0.01) > paired.p_value(b, c, n, 0.01) - 1e-4


def test_the_largest_tail_is_looked_for_between_the_points_of_a_coarse_grid():
    critical = float(paired.score_statistic(np.array(0), np.array(2), 872, 0.01))
    limits, exact = paired.rejection_limits(critical, 872, 0.01), paired.size_of(critical, 872, 0.01)
    points = np.sin(np.linspace(np.arcsin(np.sqrt(0.01)), np.pi / 2, 200)) ** 2
    assert paired.tail_probabilities(limits, 872, points, 0.01).max() < exact * (1 - 5e-4)
    assert paired.size_of(critical, 872, 0.01, points=200) == pytest.approx(exact, rel=5e-6)


def q_theta_bound(b, c, n, alpha):
    """A wider bound, from two Clopper-Pearson intervals at half of alpha each: the drop is q (2 theta - 1)."""
    disagreement = beta.ppf(1 - alpha / 2, b + c + 1, n - b - c)
    theta = beta.ppf(1 - alpha / 2, b + 1, c) if c else 1.0
    return disagreement * max(0.0, 2 * theta - 1)


def berger_boos(b, c, n, epsilon, gamma=0.005):
    """P-value of Berger and Boos (1994), ordered by b - c: the disagreement runs over its confidence interval only."""
    largest = beta.ppf(1 - gamma, b + c + 1, n - b - c)
    totals = np.arange(min(n, int(3 * n * largest) + 40))
    limits = (totals + b - c) // 2
    tails = [
        (binom.pmf(totals, n, q) * binom.cdf(limits, totals, (q + epsilon) / (2 * q))).sum()
        for q in np.linspace(epsilon, largest, 60)
    ]
    return gamma + max(tails)


def test_a_certificate_survives_as_many_further_regressions_as_it_says():
    survived = paired.regressions_to_spare(34, 42, 1821, 0.01, 0.05)
    assert survived == 10
    level = paired.level_of(0.05)
    assert paired.p_value(34 + 10, 42, 1821, 0.01) <= level < paired.p_value(34 + 11, 42, 1821, 0.01)
    assert paired.regressions_to_spare(46, 43, 1821, 0.01, 0.05) == -1


@pytest.mark.parametrize(
    ("b", "c", "n", "epsilon"),
    [(-1, 0, 10, 0.1), (6, 5, 10, 0.1), (0, 0, 0, 0.1), (0, 0, 10, 1.0), (0, 0, 10, math.nan)],
)
def test_impossible_counts_are_refused(b, c, n, epsilon):
    with pytest.raises(InvalidSettingError, match="<= n"):
        paired.p_value(b, c, n, epsilon)
    assert paired.p_value(0, 0, 10, 0.1) <= 1
