"""Betting on bounded scores, the bootstrap of corpus metrics, and the power."""

import numpy as np
import pytest

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee import power
from hf_headprune.guarantee.betting import betting_p_value, betting_upper_bound, cluster_sums
from hf_headprune.guarantee.power import PowerAssumptions
from hf_headprune.guarantee.resampling import bootstrap_p_value, bootstrap_upper_bound, resampled_drops


def slow_wealth(differences, epsilon, bets):
    """Largest mean wealth over time, bet by bet, example by example."""
    wealth, best = [1.0] * len(bets), 0.0
    for d in differences:
        wealth = [w * (1 + bet * (epsilon - d)) for w, bet in zip(wealth, bets, strict=True)]
        best = max(best, sum(wealth) / len(wealth))
    return best


def test_the_p_value_is_one_over_the_largest_wealth():
    differences = np.random.default_rng(0).choice([-0.5, 0, 0.25, 1], p=[0.1, 0.75, 0.1, 0.05], size=150)
    expected = 1 / slow_wealth(differences, 0.1, np.geomspace(0.01, 0.95, 24))
    assert expected < 0.9
    assert betting_p_value(differences, 0.1) == pytest.approx(expected)


def test_no_bet_on_a_negative_drop_can_ruin_the_gambler():
    differences = np.array([1.0] * 3 + [-1.0] * 60)
    expected = 1 / slow_wealth(differences, -0.5, np.geomspace(0.01, 0.95, 24) / 1.5)
    assert betting_p_value(differences, -0.5) == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["rare", "often", "uniform"])
def test_at_most_alpha_of_bets_win_at_the_boundary(shape):
    generator = np.random.default_rng(1)
    draws = {
        "rare": lambda: generator.choice([1.0, -1.0, 0.0], p=[0.03, 0.01, 0.96], size=400),
        "often": lambda: generator.choice([0.5, -0.5, 0.0], p=[0.22, 0.18, 0.6], size=400),
        "uniform": lambda: generator.uniform(-0.48, 0.52, size=400),
    }[shape]
    assert np.mean([betting_p_value(draws(), 0.02) <= 0.1 for _ in range(600)]) <= 0.12


def test_bets_win_where_nothing_drops():
    generator = np.random.default_rng(2)
    wins = [
        betting_p_value(generator.choice([1.0, -1, 0], p=[0.01, 0.01, 0.98], size=3600), 0.01) <= 0.05
        for _ in range(60)
    ]
    assert np.mean(wins) > 0.75


def test_the_bound_is_where_the_p_value_crosses_alpha():
    differences = np.random.default_rng(3).normal(0.01, 0.1, size=800).clip(-1, 1)
    bound = betting_upper_bound(differences, 0.05)
    assert differences.mean() < bound < 0.05
    assert betting_p_value(differences, bound) <= 0.05 < betting_p_value(differences, bound - 1e-4)
    assert betting_upper_bound(np.ones(5), 0.05) == 1.0


def test_a_group_counts_as_one_example_of_its_mean_size():
    differences, groups = np.array([1.0, 0, -1, 0.5, 0.5]), np.array(["p", "q", "p", "r", "q"])
    sums, sizes = cluster_sums(differences, groups)
    assert sums.tolist() == [0.0, 0.25, 0.25]
    assert sizes.tolist() == [1.0, 1.0, 0.5]


def test_copies_of_examples_win_nothing_when_they_are_grouped():
    differences = np.random.default_rng(4).choice([1.0, -1, 0], p=[0.02, 0.02, 0.96], size=500)
    copies, groups = np.repeat(differences, 8), np.repeat(np.arange(500), 8)
    assert betting_p_value(copies, 0.03, groups) == pytest.approx(betting_p_value(differences, 0.03, np.arange(500)))
    assert betting_p_value(copies, 0.03) < betting_p_value(differences, 0.03) / 10


def test_groups_whose_size_goes_with_the_drop_keep_the_error_rate():
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        sizes = np.where(rng.random(400) < 0.5, 10, 1)  # no drop in the large ones: 5 % in all, exactly epsilon
        drops = [np.zeros(10) if size == 10 else np.array([float(rng.random() < 0.55)]) for size in sizes]
        order = rng.permutation(sizes.sum())
        differences, groups = np.concatenate(drops)[order], np.repeat(np.arange(400), sizes)[order]
        wrong += betting_p_value(differences, 0.05, groups) <= 0.05
    assert wrong <= 8


def test_the_examples_needed_are_found_up_to_the_limit():
    expected = PowerAssumptions()
    needed = power.examples_needed(0.0016, expected)
    assert 65_536 < needed < 131_072
    assert power.power_of(needed, 0.0016, expected) >= expected.power


@pytest.mark.parametrize(
    ("differences", "epsilon", "message"),
    [([], 0.1, "non-empty"), ([1.2], 0.1, r"in \[-1, 1\]"), ([np.nan], 0.1, r"in \[-1, 1\]"), ([0.0], 1.0, "epsilon")],
)
def test_scores_out_of_range_are_refused(differences, epsilon, message):
    with pytest.raises(InvalidSettingError, match=message):
        betting_p_value(np.array(differences), epsilon)
    assert betting_p_value(np.zeros(1), 0.1) < 1


def corpus_f1(rows):
    """Binary F1 of rows (gold, predicted)."""
    both = np.logical_and(rows[:, 0], rows[:, 1]).sum()
    return 2 * both / max(1, rows.sum())


def rows(n=400, wrong=0.1, seed=0):
    generator = np.random.default_rng(seed)
    gold = generator.integers(0, 2, n)
    return np.column_stack([gold, np.where(generator.uniform(size=n) < wrong, 1 - gold, gold)])


def test_the_bootstrap_draws_the_same_examples_for_both_models():
    dense, pruned = rows(), rows()
    pruned[:12, 1] = 1 - pruned[:12, 1]
    drops = resampled_drops(dense, pruned, corpus_f1, seed=1)
    unpaired = np.std([corpus_f1(dense[np.random.default_rng(i).integers(0, 400, 400)]) for i in range(300)])
    assert np.std(drops) < 0.8 * unpaired
    assert np.median(drops) == pytest.approx(corpus_f1(dense) - corpus_f1(pruned), abs=0.005)
    assert (resampled_drops(dense, pruned, corpus_f1, seed=1) == drops).all()
    assert (resampled_drops(dense, pruned, corpus_f1, seed=2) != drops).any()


def test_the_bootstrap_p_value_and_bound_agree():
    drops = np.sort(np.random.default_rng(0).normal(0.01, 0.01, 2000))
    bound = bootstrap_upper_bound(drops, 0.05)
    assert bound == pytest.approx(0.01 + 1.645 * 0.01, abs=0.002)
    assert bootstrap_p_value(drops, bound + 1e-8) <= 0.05 < bootstrap_p_value(drops, bound - 1e-8)


def test_whole_groups_are_drawn():
    dense, groups = rows(200), np.repeat(np.arange(20), 10)
    pruned = dense.copy()
    pruned[:40, 1] = 1 - pruned[:40, 1]  # four groups break whole
    alone = resampled_drops(dense, pruned, corpus_f1)
    assert np.std(resampled_drops(dense, pruned, corpus_f1, groups=groups)) > 1.5 * np.std(alone)


def test_a_metric_that_is_no_number_in_some_draw_is_refused():
    dense = rows(40)
    pruned = dense.copy()
    pruned[:20, 1] = 1 - pruned[:20, 1]
    with pytest.raises(InvalidSettingError, match=r"must be a number whatever examples are drawn, received nan"):
        resampled_drops(dense, pruned, lambda drawn: np.nan if drawn[:, 0].sum() < 18 else corpus_f1(drawn))


@pytest.mark.parametrize(
    ("disagreement", "true_drop", "needed"),
    [(0.02, 0.0, 1370), (0.02, 0.003, 2910), (0.05, 0.0, 3200), (0.05, 0.003, 6480)],
)
def test_the_examples_needed_are_the_published_ones(disagreement, true_drop, needed):
    expected = PowerAssumptions(disagreement=disagreement, true_drop=true_drop)
    assert power.examples_needed(0.01, expected) == pytest.approx(needed, rel=0.07)  # their grid of n is that coarse


@pytest.mark.parametrize(
    ("epsilon", "disagreement", "published"), [(0.02, 0.02, 0.98), (0.02, 0.05, 0.82), (0.01, 0.02, 0.62)]
)
def test_the_power_of_872_examples_is_the_published_one(epsilon, disagreement, published):
    assert power.power_of(872, epsilon, PowerAssumptions(disagreement=disagreement)) == pytest.approx(
        published, abs=0.006
    )


def test_a_split_that_chooses_among_models_has_less_power():
    assumptions = PowerAssumptions(disagreement=0.05)
    chance = power.power_of(872, 0.02, assumptions)
    for num_candidates in (2, 19):
        shared = power.power_of(872, 0.02, PowerAssumptions(disagreement=0.05, alpha=0.05 / num_candidates))
        assert shared < chance - 0.05
        words = power.describe_power(872, 0.02, assumptions, num_candidates=num_candidates)
        assert words.startswith("872 examples, 95 % confidence.")
        assert f"with a chance of {100 * shared:.0f} %" in words


def test_the_planner_speaks_before_the_search():
    words = power.describe_power(872, 0.01)
    assert words == (
        "872 examples, 95 % confidence. If 3 % of the answers turn right or wrong and the true drop is zero, a "
        "drop below 1 percentage point will be certified with a chance of 49 %. It takes about 1,976 examples "
        "to certify it with a chance of 80 %; these certify a drop below 1.6 percentage points with a chance of 80 %."
    )
    assert power.describe_power(872, 0.02).endswith("certified with a chance of 94 %.")


def test_the_detectable_drop_is_certified_and_a_smaller_one_is_not():
    smallest = power.detectable_drop(500)
    assert power.power_of(500, smallest) >= 0.8 > power.power_of(500, smallest - 0.001)
    assert power.detectable_drop(1, PowerAssumptions(disagreement=0.5)) is None


def test_no_number_of_examples_certifies_what_is_not_true(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(power, "power_of", lambda *_: pytest.fail("no power has to be computed for that"))
        assert power.examples_needed(0.01, PowerAssumptions(true_drop=0.01)) is None
    assert "No number of examples is enough" in power.describe_power(300, 0.01, PowerAssumptions(true_drop=0.012))


@pytest.mark.parametrize("n", [20_001, 40_000])
@pytest.mark.parametrize(("epsilon", "rates"), [(0.003, (0.01, 0.0)), (0.003, (0.01, 0.001)), (0.002, (0.03, 0.0))])
def test_the_approximate_power_of_many_examples_is_nearly_the_exact_one(monkeypatch, n, epsilon, rates):
    assumptions = PowerAssumptions(*rates)
    approximate = power.power_of(n, epsilon, assumptions)
    monkeypatch.setattr(power, "EXACT_UP_TO", n)
    assert power.power_of(n, epsilon, assumptions) == pytest.approx(approximate, abs=0.006)


@pytest.mark.parametrize("n", [10**9, 10**400])
def test_the_power_of_any_number_of_examples_is_known_without_a_table_of_them(monkeypatch, n):
    monkeypatch.setattr(power, "rejection_limits", lambda *_: pytest.fail("a table has an entry for each example"))
    words = power.describe_power(n, 0.001)
    assert words.startswith("Over 10,000,000 examples, 95 % confidence.")
    assert words.endswith("will be certified with a chance of 100 %.")


@pytest.mark.parametrize("wrong", [{"disagreement": 0.0}, {"true_drop": 0.04}, {"power": 1.0}, {"alpha": 0.5}])
def test_impossible_expectations_are_refused(wrong):
    with pytest.raises(InvalidSettingError, match=f"PowerAssumptions: {next(iter(wrong))} must be"):
        PowerAssumptions(**wrong)


def test_a_gambler_who_was_rich_on_the_way_gets_the_drop_seen_as_bound():
    differences = np.random.default_rng(186).permutation([-1.0] * 50 + [1.0] * 50)
    assert betting_p_value(differences, 0.0) <= 0.05
    assert betting_upper_bound(differences, 0.05) == pytest.approx(0.0, abs=2e-6)


def test_a_bootstrap_excludes_nothing_at_a_level_that_its_draws_cannot_reach():
    drops = np.linspace(-0.1, 0.1, 2000)
    assert bootstrap_upper_bound(drops, 1 / 2002) == 1.0
    assert bootstrap_upper_bound(drops, 1 / 2001) == 0.1
