"""Text from outside that is nested too deep, endless or damaged: an error of our own, in few words."""

from __future__ import annotations

import pytest

from hf_headprune import Certificate, PruningPlan, search_plan
from hf_headprune.cli import main as headprune
from hf_headprune.errors import LONGEST_MESSAGE, HeadPruneError
from hf_headprune.publish.report import PruningReport
from hf_headprune.search.journal import Journal
from hf_headprune.search.settings import AStarSearch
from tests.support.models import tiny_bert
from tests.support.trainers import labelled_rows

TEXTS = {
    "deep": "[" * 200_000,
    "deep inside": '{"format": ' + '{"a": ' * 50_000,
    "digits": '{"format": ' + "9" * 6000 + "}",
    "infinite": '{"format": 1e999}',
    "twice": '{"format": 1, "format": 2}',
    "half": '{"format": "hf_headprune',
    "none": "",
    "no object": '"text"',
    "long": '{"format": "' + "x" * 100_000 + '"}',
    "nul": '{"format": "\x00"}',
}


def read_journal(text, folder):
    (folder / "journal.jsonl").write_text(text + "\n", encoding="utf-8")
    Journal(folder / "journal.jsonl", "a fingerprint")


READERS = {
    "plan": lambda text, folder: PruningPlan.from_json(text),
    "certificate": lambda text, folder: Certificate.from_json(text),
    "report": lambda text, folder: PruningReport.from_json(text),
    "journal": read_journal,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reader", READERS)
def test_damaged_text_is_refused_by_every_reader(tmp_path, reader, text):
    with pytest.raises(HeadPruneError) as error:
        READERS[reader](TEXTS[text], tmp_path)
    assert 0 < len(str(error.value)) <= LONGEST_MESSAGE


def test_a_line_of_a_journal_that_is_nested_too_deep_is_damage(tmp_path):
    journal = tmp_path / "journal.jsonl"
    search = AStarSearch(max_drop=0.5, max_evaluations=4)
    search_plan(tiny_bert(), labelled_rows(40, 1), search=search, journal=journal, progress=False)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:2], "[" * 200_000, *lines[2:]]) + "\n")
    with pytest.raises(HeadPruneError, match="line 3: the journal is damaged"):
        search_plan(tiny_bert(), labelled_rows(40, 1), search=search, journal=journal, progress=False)


@pytest.mark.parametrize("text", ["deep", "digits", "half"])
def test_the_command_line_says_so_without_a_traceback(tmp_path, text, capsys):
    file = tmp_path / "certificate.json"
    file.write_text(TEXTS[text], encoding="utf-8")
    with pytest.raises(SystemExit):
        headprune(["verify", str(file)])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert len(said.out + said.err) < LONGEST_MESSAGE + 500
