"""Fixed-sequence testing and the ledger."""

import json
import math

import numpy as np
import pytest

from hf_headprune.errors import CertificateError, InvalidSettingError
from hf_headprune.guarantee.sequence import AlphaLedger, alpha_of_use, evenly_spaced, last_certified


@pytest.mark.parametrize(
    ("p_values", "last"),
    [
        ([], None),
        ([0.2, 0.01], None),
        ([0.01], 0),
        ([0.01, 0.05, 0.04], 2),
        ([0.01, 0.051, 0.001, 0.001], 0),
        ([0.01, math.nan, 0.01], 0),
    ],
)
def test_the_last_success_before_the_first_failure_is_certified(p_values, last):
    assert last_certified(p_values, 0.05) == last


def test_no_p_value_after_the_first_failure_is_asked_for():
    asked = []

    def values():
        for p in (0.01, 0.3, 0.01):
            asked.append(p)
            yield p

    assert last_certified(values(), 0.05) == 0
    assert asked == [0.01, 0.3]


def test_wrong_certificates_stay_below_the_level_while_the_deepest_success_does_not():
    generator = np.random.default_rng(0)
    p_values = generator.uniform(size=(4000, 8))  # eight true hypotheses, none of which may be rejected
    sequence = np.mean([last_certified(row, 0.05) is not None for row in p_values])
    deepest = np.mean((p_values <= 0.05).any(axis=1))
    assert sequence <= 0.06
    assert deepest > 0.25


@pytest.mark.parametrize(
    ("candidates", "count", "taken"),
    [("abcdefghij", 5, "bdfhj"), ("abcdefg", 3, "bdg"), ("abc", 5, "abc"), ("abc", 1, "c"), ("", 2, "")],
)
def test_candidates_are_evenly_spaced_and_end_with_the_last(candidates, count, taken):
    assert "".join(evenly_spaced(candidates, count)) == taken


def test_at_least_one_candidate_is_taken():
    with pytest.raises(InvalidSettingError, match="at least 1, received 0"):
        evenly_spaced("abc", 0)


def test_the_shares_of_all_uses_sum_to_alpha():
    shares = [alpha_of_use(0.05, use) for use in range(1, 20_000)]
    assert sum(shares) == pytest.approx(0.05, rel=1e-4)
    assert sum(shares) < 0.05
    with pytest.raises(InvalidSettingError, match="counts from 1, received 0"):
        alpha_of_use(0.05, 0)


def test_the_ledger_counts_the_uses_of_each_split_and_outlives_the_process(tmp_path):
    path = tmp_path / "deep" / "ledger.jsonl"
    first = AlphaLedger(path).spend("a" * 64, 0.05, "first model")
    second = AlphaLedger(path).spend("a" * 64, 0.05, "second model")
    other = AlphaLedger(path).spend("b" * 64, 0.1)
    assert [first.use, second.use, other.use] == [1, 2, 1]
    assert second.spent == pytest.approx(first.spent / 4)
    assert AlphaLedger(path).uses("a" * 64) == (first, second)


def test_two_ledgers_of_one_file_give_no_use_twice(tmp_path):
    first, second = AlphaLedger(str(tmp_path / "ledger.jsonl")), AlphaLedger(tmp_path / "ledger.jsonl")
    assert [ledger.spend("a" * 64, 0.05).use for ledger in (first, second, first)] == [1, 2, 3]
    lines = first.path.read_text().splitlines()
    first.path.write_text("\n".join([*lines, lines[-1], ""]))
    with pytest.raises(CertificateError, match=r"line 4: it must be use 4 of its split, received use 3"):
        AlphaLedger(first.path)


def test_a_last_line_whose_end_an_editor_took_is_kept(tmp_path):
    ledger = AlphaLedger(tmp_path / "ledger.jsonl")
    first = ledger.spend("a" * 64, 0.05)
    ledger.path.write_bytes(ledger.path.read_bytes().rstrip(b"\n"))
    second = ledger.spend("a" * 64, 0.05)
    assert AlphaLedger(ledger.path).uses("a" * 64) == (first, second)


def test_uses_of_one_split_share_one_alpha(tmp_path):
    ledger = AlphaLedger(tmp_path / "ledger.jsonl")
    ledger.spend("a" * 64, 0.05)
    with pytest.raises(CertificateError, match=r"share one alpha.*received 0\.1"):
        ledger.spend("a" * 64, 0.1)


@pytest.mark.parametrize("change", [{"spent": 0.05}, {"use": "1"}, {"format": "other/1"}, {"unknown": 1}, None])
def test_a_damaged_ledger_is_refused(tmp_path, change):
    path = tmp_path / "ledger.jsonl"
    AlphaLedger(path).spend("a" * 64, 0.05)
    assert len(AlphaLedger(path).uses("a" * 64)) == 1
    line = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps({**line, **change}))
    with pytest.raises(CertificateError, match="line 1: no line of an alpha ledger"):
        AlphaLedger(path)


def test_two_processes_that_spend_at_once_do_not_both_get_the_same_use(tmp_path, monkeypatch):
    mine, other = (AlphaLedger(tmp_path / "ledger.jsonl") for _ in range(2))
    read = mine._read
    once = iter([lambda: other.spend("a" * 64, 0.05)])

    def read_before_the_other_writes():
        found = read()
        next(once, lambda: None)()
        return found

    monkeypatch.setattr(mine, "_read", read_before_the_other_writes)
    with pytest.raises(CertificateError, match="must be use 2 of its split, received use 1"):
        mine.spend("a" * 64, 0.05)
