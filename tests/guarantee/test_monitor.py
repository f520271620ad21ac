"""A monitor raises its alarm when answers change more often than when they were certified, and seldom else."""

import dataclasses

import numpy as np
import pytest

from hf_headprune.errors import CertificateError, InvalidSettingError
from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.guarantee.monitor import Bets, Monitor, upper_share
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
    assert (monitor.rate, monitor.bound) == (0.03, pytest.approx(upper_share(60, 2000, 0.025)))
    assert "Covered so far. The models answer none of 0 live inputs" in monitor.to_text()
    assert not monitor.update(*answers(generator.random(3000) < 0.03))
    assert monitor.update(*answers(generator.random(3000) < 0.12))
    assert 3000 < monitor.alarm_at < 4500
    assert monitor.update(*answers(np.zeros(500)))  # it stays raised
    assert monitor.to_text().startswith("NOT COVERED. The models answer ")
    assert monitor.examples == 6500


def test_the_wealth_is_that_of_a_slow_sum_over_starts_and_bets():
    rate, changes = 0.04, np.random.default_rng(1).random(600) < 0.1
    bets = Bets(rate)
    for change in changes:
        bets.place(np.array([change]))
    wealth, left = 0.0, 1.0
    for block, start in enumerate(range(0, 600, 250)):
        weight = 1 / ((block + 1) * (block + 2))
        left -= weight
        for rise in (0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
            q = rate + (1 - rate) * rise
            factors = [q / rate if change else (1 - q) / (1 - rate) for change in changes[start:]]
            wealth += weight * np.prod(factors) / 6
    assert bets.wealth[0] == pytest.approx(wealth + left)


def test_false_alarms_are_rare_in_many_streams():
    generator = np.random.default_rng(2)
    bets, raised = Bets(0.04, 2000), np.zeros(2000, dtype=bool)
    for _ in range(1500):
        bets.place(generator.random(2000) < 0.04)
        raised |= bets.wealth >= 20
    assert 0 < raised.mean() <= 0.05


def test_what_can_not_be_watched_is_refused(certificate):
    for confidence in (0, 1, "high"):
        with pytest.raises(InvalidSettingError, match="confidence must be in"):
            Monitor(certificate, confidence)
    with pytest.raises(CertificateError, match="must say how many answers changed"):
        Monitor(Certificate.load(FILE))
    with pytest.raises(InvalidSettingError, match="received 1 and 2"):
        Monitor(certificate).update([1], [1, 2])


def test_the_command_reads_answers_and_its_exit_code_is_the_alarm(certificate, tmp_path, capsys):
    certificate.save(tmp_path)
    generator = np.random.default_rng(3)
    for share, code, words in ((0.03, 0, "Covered so far."), (0.3, 1, "NOT COVERED.")):
        rows = [{"dense": "a", "pruned": "b" if change else "a"} for change in generator.random(800) < share]
        said = called(capsys, "monitor", tmp_path, "--data", write(tmp_path / "live.csv", rows))
        assert (said.code, said.out.startswith(words)) == (code, True)
    assert len(read(tmp_path / "live.csv")) == 800
    other = write(tmp_path / "other.csv", [{"dense": "a"}])
    assert "the columns 'pruned' are missing" in called(capsys, "monitor", tmp_path, "--data", other).problem
