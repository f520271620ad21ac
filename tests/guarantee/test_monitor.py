"""A monitor raises its alarm when answers change more often than when they were certified, and seldom else."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from hf_headprune.errors import CertificateError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.monitor import Alarms, Bets, Monitor, levels_of, upper_share
from tests.cli.test_certify import read
from tests.guarantee.test_format_2 import FILE
from tests.support.command_line import called, write


@pytest.fixture
def certificate():
    """One that saw 60 of 2,000 answers change."""
    old = Certificate.load(FILE)
    return dataclasses.replace(old, evidence=dataclasses.replace(old.evidence, examples=2000, changed=60))


def answers(changes):
    return [0] * len(changes), [int(change) for change in changes]


def test_an_alarm_is_raised_by_a_rise_and_by_nothing_else(certificate):
    generator = np.random.default_rng(0)
    monitor = Monitor(certificate)
    assert (monitor.rate, monitor.alpha) == (0.03, pytest.approx(0.05))
    assert "Covered so far. The models answer none of 0 live inputs" in monitor.to_text()
    assert not monitor.update(*answers(generator.random(3000) < 0.03))
    assert monitor.update(*answers(generator.random(3000) < 0.12))
    assert 3000 < monitor.alarm_at < 4500
    assert monitor.update(*answers(np.zeros(500)))  # it stays raised
    assert monitor.to_text().startswith("NOT COVERED. The models answer ")
    assert monitor.examples == 6500


def slow_wealth(rate, changes):
    wealth, left = 0.0, 1.0
    for block, start in enumerate(range(0, len(changes), 250)):
        weight = 1 / ((block + 1) * (block + 2))
        left -= weight
        for rise in (0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
            q = rate + (1 - rate) * rise
            factors = [q / rate if change else (1 - q) / (1 - rate) for change in changes[start:]]
            wealth += weight * np.prod(factors) / 6
    return wealth + left


def test_the_wealth_is_that_of_a_slow_sum_over_starts_and_bets():
    rates, changes = np.array([[0.04, 0.06], [0.0, 1.0]]), np.random.default_rng(1).random(600) < 0.1
    bets = Bets(rates)
    for change in changes:
        bets.place(np.array([change, False]))
    assert bets.wealth[0] == pytest.approx([slow_wealth(0.04, changes), slow_wealth(0.06, changes)])
    assert np.isfinite(bets.wealth).all()
    assert (bets.wealth[1] < 1).all()  # no answer changed


def test_levels_spend_alpha_between_them():
    for alpha in (0.01, 0.05, 0.4):
        levels = levels_of(alpha)
        spent = levels[-1] * (1 + ((levels[:-1] - levels[1:]) / levels[:-1]).sum())
        assert (levels[0], spent) == (1.0, pytest.approx(alpha, rel=1e-6))
        assert spent <= alpha


def test_an_alarm_needs_bets_against_every_rate_that_the_certificate_leaves_open():
    alarms, levels = Alarms([60], 2000, 0.05), levels_of(0.05)
    rates = np.array([upper_share(60, 2000, level) for level in levels[1:]])
    assert (np.diff(rates) > 0).all()
    bets, reached = Bets(rates[None]), np.zeros(len(rates), dtype=bool)
    for change in np.random.default_rng(4).random(1500) < 0.06:
        alarms.place(np.array([change]))
        bets.place(np.array([change]))
        reached |= bets.wealth[0] * levels[-1] >= levels[:-1]
        assert alarms.raised[0] == reached.all()
    assert alarms.raised[0]


def test_false_alarms_are_rare_in_many_streams():
    generator = np.random.default_rng(2)
    alarms = Alarms(generator.binomial(400, 0.04, 300).tolist(), 400, 0.3)
    for _ in range(1000):
        alarms.place(generator.random(300) < 0.04)
    assert 0 < alarms.raised.mean() <= 0.3


def test_what_can_not_be_watched_is_refused(certificate):
    for confidence in (0, 1, "high"):
        with pytest.raises(InvalidSettingError, match="confidence must be in"):
            Monitor(certificate, confidence)
    with pytest.raises(CertificateError, match="must say how many answers changed"):
        Monitor(Certificate.load(FILE))
    with pytest.raises(InvalidSettingError, match="received 1 and 2"):
        Monitor(certificate).update([1], [1, 2])
    with pytest.raises(InvalidSettingError, match="must be a Certificate"):
        Monitor("folder")
    monitor = Monitor(certificate)
    monitor.update([1], [1])
    for missing in (None, float("nan"), "", " ", 0.5, [], [None]):
        with pytest.raises(InvalidSettingError, match="for input 3"):
            monitor.update([1, missing], [1, 1])
    with pytest.raises(InvalidSettingError, match="numbers or names, received '1' and 1 for input 2"):
        monitor.update(["1"], [1])
    with pytest.raises(InvalidSettingError, match="a list or an array"):
        monitor.update({0: 1}, {0: 2})
    assert (monitor.examples, monitor.changed) == (1, 0)  # nothing of what was refused


def test_answers_may_be_arrays_of_classes_or_of_labels(certificate):
    for kind in (np.array, torch.tensor, list):
        monitor = Monitor(certificate)
        monitor.update(kind([0, 1]), kind([0.0, 1.0]))
        monitor.update(kind([[0, 1], [1, 0]]), kind([[0, 1], [1, 1]]))
        assert (monitor.examples, monitor.changed) == (4, 1)


def test_the_command_takes_an_answer_however_it_is_spelt(certificate, tmp_path, capsys):
    certificate.save(tmp_path)
    rows = [{"dense": before, "pruned": after} for before, after in (("0", "0.0"), ("neg", "NEG "), ("1", "2"))]
    said = called(capsys, "monitor", tmp_path, "--data", write(tmp_path / "live.csv", rows), "--json")
    assert json.loads(said.out)["changed"] == 1
    certificate.save(tmp_path / "exported" / "onnx")  # beside the file that it is about
    words = "--data", tmp_path / "live.csv", "--json"
    assert called(capsys, "monitor", tmp_path / "exported", *words).out == said.out


def test_the_command_reads_answers_and_its_exit_code_is_the_alarm(certificate, tmp_path, capsys):
    certificate.save(tmp_path)
    generator = np.random.default_rng(3)
    for share, code, words in ((0.03, 0, "Covered so far."), (0.3, 1, "NOT COVERED.")):
        rows = [{"dense": "a", "pruned": "b" if change else "a"} for change in generator.random(800) < share]
        said = called(capsys, "monitor", tmp_path, "--data", write(tmp_path / "live.csv", rows))
        assert (said.code, said.out.startswith(words)) == (code, True)
        said = called(capsys, "monitor", tmp_path, "--data", tmp_path / "live.csv", "--json")
        content = json.loads(said.out)
        assert (said.code, content["covered"], content["certified_rate"]) == (code, not code, 0.03)
        assert (content["alarm_at"] is None, 0 < content["changed"] < content["examples"] == 800) == (not code, True)
    assert len(read(tmp_path / "live.csv")) == 800
    other = write(tmp_path / "other.csv", [{"dense": "a"}])
    assert "the columns 'pruned' are missing" in called(capsys, "monitor", tmp_path, "--data", other).problem
