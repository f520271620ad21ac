"""Reports for build servers: what passed, what failed and why, in JUnit XML and in Markdown."""

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from hf_headprune.cli.gate import Case, cases_of_certificate, junit_xml, markdown
from hf_headprune.guarantee.certificate import Certificate
from tests.guarantee.test_format_2 import FILE
from tests.support.command_line import called


@pytest.fixture
def certificate():
    return Certificate.load(FILE)


def test_each_promise_is_a_test_and_only_a_pass_passes(certificate):
    failed = dataclasses.replace(certificate.evidence, verdict="INCONCLUSIVE", upper_bound=1.0)
    for each, outcome in ((certificate, "passed"), (dataclasses.replace(certificate, evidence=failed), "failed")):
        (case,) = cases_of_certificate(each)
        assert (case.name, case.outcome) == ("accuracy drops by less than 45 percentage points", outcome)
        assert each.verdict in case.numbers


def test_the_xml_counts_and_holds_the_reasons():
    cases = [
        Case("a <b>", "passed"),
        Case("c", "failed", "why \x00 & where", "FAIL"),
        Case("d", "skipped", "not given"),
    ]
    root = Xml.fromstring(junit_xml("of x", cases))
    assert root.attrib == {"tests": "3", "failures": "1", "skipped": "1"}
    assert [test.get("name") for test in root.iter("testcase")] == ["a <b>", "c", "d"]
    assert root.find(".//failure").text == "why ? & where"
    assert root.find(".//skipped").get("message") == "not given"
    assert "| a <b> |" in markdown("of x", cases)
    assert "a \\| b" in markdown("of x", [Case("a | b", "passed")])


def test_verify_writes_both_and_adds_to_a_summary(certificate, tmp_path, monkeypatch, capsys):
    certificate.save(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    for _ in range(2):
        said = called(capsys, "verify", tmp_path / "headprune_certificate.json", "--junit", tmp_path / "report.xml")
        assert said.code == 0, said.err
    assert (tmp_path / "summary.md").read_text().count("### Verification of headprune_certificate.json") == 2
    root = Xml.parse(tmp_path / "report.xml").getroot()
    assert root.get("failures") == "0"
    assert int(root.get("tests")) > 3
    forged = dataclasses.replace(certificate, evidence=dataclasses.replace(certificate.evidence, regressions=3))
    forged.save(tmp_path)
    said = called(capsys, "verify", tmp_path / "headprune_certificate.json", "--junit", tmp_path / "report.xml")
    assert said.code == 1
    assert int(Xml.parse(tmp_path / "report.xml").getroot().get("failures")) > 0


def test_the_example_workflow_calls_commands_that_there_are(capsys):
    lines = (Path(__file__).parents[2] / "examples" / "certify.yml").read_text(encoding="utf-8").splitlines()
    commands = [line.split("headprune ")[1].split() for line in lines if "run: headprune" in line]
    assert [words[0] for words in commands] == ["certify", "verify"]
    for words in commands:
        help_text = called(capsys, words[0], "--help").out
        assert all(word in help_text for word in words if word.startswith("--"))
