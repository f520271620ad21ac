"""What a build server reads of a certificate: JUnit XML of single tests, and a summary in Markdown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from xml.etree import ElementTree as Xml

import typer

from hf_headprune.cli.output import writable
from hf_headprune.guarantee.wording import percent, points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_headprune.guarantee.certificate import Certificate
    from hf_headprune.guarantee.verification import Verification

Junit = Annotated[
    Path | None, typer.Option(metavar="FILE", callback=writable, help="Write JUnit XML there, for a build server")
]
Summary = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", envvar="GITHUB_STEP_SUMMARY", callback=writable, help="Append a summary in Markdown there"
    ),
]
_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")


@dataclass(frozen=True)
class Case:
    """One test of a report.

    Attributes:
        name: What was tested.
        outcome: "passed", "failed" or "skipped".
        text: In words, where it did not pass.
        numbers: In short, for the summary.
    """

    name: str
    outcome: str
    text: str = ""
    numbers: str = ""


def cases_of_certificate(certificate: Certificate) -> list[Case]:
    """Returns a test for each promise; only PASS passes."""
    cases = []
    for part in certificate.parts():
        claim, evidence = part.claim, part.evidence
        scope = f" on examples {claim.scope}" if claim.scope else ""
        name = f"{claim.metric}{scope} drops by less than {points(claim.max_drop)}"
        bound = points(evidence.upper_bound) if evidence.upper_bound < 1 else "no drop"
        numbers = f"{evidence.verdict}, n = {evidence.examples:,}, drops above {bound} excluded at "
        numbers += percent(1 - claim.alpha)
        outcome = "passed" if evidence.verdict == "PASS" else "failed"
        cases.append(Case(name, outcome, part.statement, numbers))
    return cases


def cases_of_verification(found: Verification) -> list[Case]:
    """Returns a test for each check: what differs fails, what could not be checked is skipped."""
    failed = [Case(f"{it.level}: {it.name}", "failed", it.text, it.text) for it in found.findings]
    passed = [Case(entry, "passed") for entry in found.checked]
    return [*failed, *passed, *(Case(entry.partition(":")[0], "skipped", entry, entry) for entry in found.skipped)]


def report(title: str, cases: Sequence[Case], junit: Path | None, summary: Path | None) -> None:
    """Writes the files that were asked for.

    Args:
        title: Of the report.
        cases: Tests, in their order.
        junit: File to write JUnit XML to, or None.
        summary: File to append Markdown to, or None.

    Raises:
        OSError: A file can't be written.
    """
    if junit is not None:
        junit.write_text(junit_xml(title, cases), encoding="utf-8")
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(markdown(title, cases))


def junit_xml(title: str, cases: Sequence[Case]) -> str:
    """Returns JUnit XML text."""
    counts = {name: str(sum(case.outcome == name for case in cases)) for name in ("failed", "skipped")}
    totals = {"tests": str(len(cases)), "failures": counts["failed"], "skipped": counts["skipped"]}
    root = Xml.Element("testsuites", totals)
    suite = Xml.SubElement(root, "testsuite", {"name": _clean(title), **totals})
    for case in cases:
        element = Xml.SubElement(suite, "testcase", {"classname": "headprune", "name": _clean(case.name)})
        if case.outcome == "failed":
            failure = Xml.SubElement(element, "failure", {"message": _clean(case.numbers or case.name)})
            failure.text = _clean(case.text)
        elif case.outcome == "skipped":
            Xml.SubElement(element, "skipped", {"message": _clean(case.text)})
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(title: str, cases: Sequence[Case]) -> str:
    """Returns a heading and a table."""
    marks = {"passed": "✅", "failed": "❌", "skipped": "(skipped)"}
    lines = [f"### {title}", "", "| | test | |", "|---|---|---|"]
    lines += [f"| {marks[case.outcome]} | {_cell(case.name)} | {_cell(case.numbers)} |" for case in cases]
    return "\n".join([*lines, "", ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("?", text)
