"""From scores to a verdict: which numbers of a claim and of the data each test gets."""

import dataclasses

import numpy as np
import pytest
from scipy.special import bdtr

from hf_headprune.errors import InvalidSettingError
from hf_headprune.guarantee import paired
from hf_headprune.guarantee.betting import betting_p_value, betting_upper_bound
from hf_headprune.guarantee.claim import Claim
from hf_headprune.guarantee.evidence import evidence_of, evidence_of_counts, p_value_of
from hf_headprune.guarantee.outcomes import Counts, PairedScores
from hf_headprune.guarantee.power import PowerAssumptions, examples_needed
from hf_headprune.guarantee.resampling import (
    bootstrap_p_value,
    bootstrap_upper_bound,
    one_answer_worse,
    resampled_drops,
)

SHARE = Claim("F1", "bounded", 0.05, 0.05, 0.0125)  # a later use of a split: it has a part of alpha only


def grouped_scores(*, drop, n=400, size=4, seed=0):
    """Scores of two models that move together within groups of examples."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(0.3, 0.7, n)
    pruned = dense - drop + np.repeat(rng.normal(0, 0.05, n // size), size)
    return PairedScores(dense, pruned.clip(0, 1), np.repeat(np.arange(n // size), size))


def table_scores(*, wrong=(0.1, 0.12), n=400, size=4, seed=0):
    """Rows of (gold, predicted) of two models, for a corpus metric."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, n)
    dense, pruned = (
        np.column_stack([gold, np.where(np.repeat(rng.random(n // size), size) < share, 1 - gold, gold)])
        for share in wrong
    )
    return PairedScores(dense, pruned, np.repeat(np.arange(n // size), size))


def agreement(rows):
    return float((rows[:, 0] == rows[:, 1]).mean())


@pytest.mark.parametrize("drop", [-0.1, 0.04, 0.5])
def test_bounded_scores_are_tested_group_by_group_with_the_part_of_alpha_that_the_claim_has(drop):
    scores = grouped_scores(drop=drop)
    differences, groups = scores.dense - scores.pruned, scores.groups
    evidence = evidence_of(scores, SHARE)
    assert evidence.p_value == betting_p_value(differences, SHARE.max_drop, groups) == p_value_of(scores, SHARE)
    assert evidence.upper_bound == betting_upper_bound(differences, SHARE.alpha_spent, groups)
    assert evidence.upper_bound > betting_upper_bound(differences, SHARE.alpha, groups)
    assert evidence.upper_bound != betting_upper_bound(differences, SHARE.alpha_spent)
    assert evidence.verdict == {-0.1: "PASS", 0.04: "INCONCLUSIVE", 0.5: "FAIL"}[drop]


def test_a_fail_needs_groups_that_speak_for_it_too():
    scores = grouped_scores(drop=0.15, n=120, size=20, seed=1)
    differences = scores.dense - scores.pruned
    assert betting_p_value(-differences, -SHARE.max_drop) <= SHARE.alpha_spent
    assert betting_p_value(-differences, -SHARE.max_drop, scores.groups) > SHARE.alpha_spent
    assert evidence_of(scores, SHARE).verdict == "INCONCLUSIVE"
    assert evidence_of(dataclasses.replace(scores, groups=None), SHARE).verdict == "FAIL"


def test_a_gain_or_a_small_drop_is_no_fail():
    for drop in (-0.04, 0.02):  # of the reverse claim "the drop is at most max_drop" nothing is excluded
        noisy = grouped_scores(drop=drop, n=40, size=1)
        assert evidence_of(noisy, dataclasses.replace(SHARE, max_drop=0.05, alpha_spent=1e-9)).verdict == "INCONCLUSIVE"
    assert evidence_of_counts(Counts(1000, 30, 5, 800), Claim("accuracy", "binary", 0.05, 0.05, 0.05)).verdict == "PASS"
    counts = Counts(1000, 30, 5, 800)  # a drop of 2.5 %, surely above zero, perhaps below 3 %
    assert evidence_of_counts(counts, Claim("accuracy", "binary", 0.03, 0.05, 0.05)).verdict == "INCONCLUSIVE"
    assert evidence_of_counts(counts, Claim("accuracy", "binary", 0.01, 0.05, 0.05)).verdict == "FAIL"


def test_a_bootstrap_draws_groups_by_the_seed_of_the_claim():
    scores = table_scores()
    claim = Claim("agreement", "corpus", 0.1, 0.05, 0.0125, seed=7)
    evidence = evidence_of(scores, claim, agreement)
    rows = one_answer_worse(scores.dense, scores.pruned, agreement)
    drops = resampled_drops(scores.dense, rows, agreement, seed=7, groups=scores.groups)
    assert evidence.p_value == bootstrap_p_value(drops, 0.1) == p_value_of(scores, claim, agreement)
    assert evidence.upper_bound == bootstrap_upper_bound(drops, 0.0125)
    assert evidence.upper_bound > bootstrap_upper_bound(drops, 0.05)
    for other in (
        resampled_drops(scores.dense, rows, agreement, seed=7),
        resampled_drops(scores.dense, rows, agreement, seed=0, groups=scores.groups),
    ):
        assert bootstrap_p_value(other, 0.1) != evidence.p_value


def test_a_bootstrap_fails_what_dropped_by_more_than_the_claim_and_not_what_dropped_by_less():
    claim = Claim("agreement", "corpus", 0.1, 0.05, 0.05)
    assert evidence_of(table_scores(wrong=(0.05, 0.5)), claim, agreement).verdict == "FAIL"
    assert evidence_of(table_scores(wrong=(0.05, 0.17), seed=3), claim, agreement).verdict == "INCONCLUSIVE"


def test_draws_that_drop_by_just_as_much_as_the_claim_are_counted_against_it():
    assert bootstrap_p_value(np.array([0.0, 0.0, 0.1]), 0.1) == 2 / 4
    assert bootstrap_p_value(np.array([0.0, 0.0, 0.09]), 0.1) == 1 / 4


@pytest.mark.slow
def test_every_number_of_a_binary_claim_is_at_the_level_that_it_has():
    claim = Claim("accuracy", "binary", 0.02, 0.05, 0.0125)
    evidence = evidence_of_counts(Counts(1821, 34, 42, 1500), claim)
    assert evidence.verdict == "PASS"
    assert evidence.upper_bound == paired.upper_bound(34, 42, 1821, 0.0125) > paired.upper_bound(34, 42, 1821, 0.05)
    assert evidence.regressions_to_spare == paired.regressions_to_spare(34, 42, 1821, 0.02, 0.0125)
    assert evidence.regressions_to_spare < paired.regressions_to_spare(34, 42, 1821, 0.02, 0.05)
    unsure = evidence_of_counts(Counts(400, 8, 8, 300), claim)
    assert unsure.examples_needed == examples_needed(0.02, PowerAssumptions(16 / 400, 0.0, alpha=0.0125))
    assert unsure.examples_needed > examples_needed(0.02, PowerAssumptions(16 / 400, 0.0))


def test_the_level_of_a_claim_is_what_it_may_spend_and_for_exact_tests_a_bit_less():
    assert Claim("F1", "bounded", 0.01, 0.05, 0.02).threshold == 0.02
    assert Claim("accuracy", "binary", 0.01, 0.05, 0.02).threshold == paired.level_of(0.02) < 0.02


def test_the_metric_of_each_model_must_be_a_share():
    rows = table_scores(wrong=(0.1, 0.3))
    claim = Claim("agreement", "corpus", 0.1, 0.05, 0.05)
    for outlier in (rows.dense, rows.pruned):
        with pytest.raises(InvalidSettingError, match=r"agreement must be in \[-1, 1\]"):
            evidence_of(rows, claim, lambda table, outlier=outlier: 87.5 if table is outlier else agreement(table))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_drop", "0.01"),
        ("max_drop", True),
        ("alpha", float("nan")),
        ("alpha_spent", 0.05 + 1e-12),
        ("alpha_spent", None),
        ("use", 1.5),
        ("seed", -1),
        ("num_candidates", 2),
        ("metric", ""),
        ("metric", "x" * 201),
        ("scored", None),
        ("kind", np.zeros(3)),
    ],
)
def test_a_claim_of_other_numbers_is_refused(name, value):
    claim = {"metric": "accuracy", "kind": "binary", "max_drop": 0.01, "alpha": 0.05, "alpha_spent": 0.05}
    rule = "alpha_spent" if name == "num_candidates" else name  # half of alpha each, of which all is spent
    with pytest.raises(InvalidSettingError, match=f"certify: {rule} must be"):
        Claim(**{**claim, name: value})


def test_the_numbers_of_a_claim_are_plain():
    claim = Claim("accuracy", "binary", np.float32(0.25), np.float64(0.05), np.float64(0.05), np.int64(1), np.int32(3))
    assert [type(value) for value in dataclasses.astuple(claim)[2:8]] == [float, float, float, int, int, int]
    assert claim == Claim("accuracy", "binary", 0.25, 0.05, 0.05, 1, 3)


def with_changes(*, worse, better=0, n=400, wrong=40):
    """Rows of two models of which the second gets so many answers wrong, and so many right, that the first does not."""
    gold = np.arange(n) % 2
    dense = np.column_stack([gold, np.where(np.arange(n) < wrong, 1 - gold, gold)])
    pruned = dense.copy()
    pruned[:better, 1] = gold[:better]
    pruned[n - worse :, 1] = 1 - gold[n - worse :]
    return PairedScores(dense, pruned)


def test_few_changed_answers_are_no_reason_against_a_plan_and_pass_no_sooner_than_by_the_exact_bound():
    claim = Claim("agreement", "corpus", 0.01, 0.25, 0.25)
    by_changes = [evidence_of(with_changes(worse=worse), claim, agreement) for worse in (0, 1, 3, 9, 10)]
    exact = [bdtr(worse, 400, 0.01) for worse in (0, 1, 3, 9)]
    assert all(found.p_value > bound - 0.01 for found, bound in zip(by_changes, exact, strict=False))  # 2,000 draws
    assert [found.verdict for found in by_changes[:4]] == ["PASS", "PASS", "INCONCLUSIVE", "INCONCLUSIVE"]
    assert by_changes[0].pruned_metric == by_changes[0].dense_metric  # what is said is what was measured
    assert by_changes[0].upper_bound > 0
    mixed = evidence_of(with_changes(worse=3, better=4), claim, agreement)  # a share of what changed would not pass
    assert (mixed.verdict, mixed.regressions + mixed.improvements) == ("PASS", 7)
    hopeless = dataclasses.replace(claim, max_drop=0.002, alpha_spent=0.4, alpha=0.4)
    found = evidence_of(with_changes(worse=9), hopeless, agreement)
    assert found.verdict == "INCONCLUSIVE"  # a FAIL needs more of them


def test_one_answer_worse_is_the_change_that_costs_most_and_needs_labels_and_answers():
    dense, pruned = with_changes(worse=1).dense, with_changes(worse=1).pruned

    def recall_of_1(rows):
        return float((rows[rows[:, 0] == 1, 1] == 1).mean())

    changed = one_answer_worse(dense, pruned, recall_of_1)
    (place,) = np.flatnonzero((changed != pruned).any(axis=1))
    assert pruned[place].tolist() == [1, 1]
    assert changed[place].tolist() == [1, 0]
    assert one_answer_worse(dense, pruned, lambda rows: 0.5) is None
    assert one_answer_worse(np.hstack([dense, dense]), np.hstack([pruned, pruned]), agreement) is None
    numbers = dense + np.linspace(0, 0.4, 400)[:, None]  # of a regression: no two are equal
    assert one_answer_worse(numbers, numbers, agreement) is None
    claim = Claim("agreement", "corpus", 0.01, 0.25, 0.25)
    assert evidence_of(PairedScores(numbers, numbers), claim, agreement).p_value == 1
