"""The documentation holds: its code runs, its links lead somewhere, what it quotes exists, its numbers are measured."""

import re
import shlex
import statistics
from inspect import signature

import pytest

from benchmarks import readme_chart, readme_numbers
from benchmarks.arena import chart as arena_chart
from benchmarks.results_file import RESULTS, read_json
from hf_headprune.families import FAMILIES
from hf_headprune.guarantee.claim import Metric
from hf_headprune.guarantee.scored import CertificationData, least_needed
from hf_headprune.pipeline.cost_path import CALIBRATION, DENSITIES
from hf_headprune.pipeline.holdout import DECIDING, DEFAULT_DROP, REPORTING
from hf_headprune.plan import PruningPlan
from tests.host.expected import reason_for
from tests.support.command_line import called
from tests.support.documentation import (
    PAGES,
    ROOT,
    VARIES,
    anchors,
    blocks,
    calls,
    links,
    messages,
    name_of,
    prose,
    run_page,
)
from tools import families_page, family_tests, host_suite

DOCS = ROOT / "docs"
PLAIN = [
    page for page in PAGES if page.name not in ("CHANGELOG.md", "results.md")
]  # those name what was before, and rivals
# Former names, and turns of phrase that need a second reading; each with what to say.
BANNED = {
    r"\breconstruct": "refit",
    r"\b(density_of|kept_of)\b": "counts, ranking",
    r"\b(open_until|cooled_by|closing_steps|reached_by|decided_by|first_at)\b": "warmup_ratio, ramp_steps, ...",
    r"\b(children_per_step|random_children|cache_mib)\b": "a constant",
    r"\b(OneShot|Expectation|smallest_drop|promise_in_words)\b": "PruningResult, PowerAssumptions, detectable_drop",
    r"\b(fixed|broken) answers?\b": "improvement, regression",
    r"\bwhat (stays|leaves|goes)\b": "what is kept, what is removed",
    r"\bWhat stays\b": "what is kept",
    r"\bare to stay\b": "are kept",
    r"(?<!looked )\bat once\b": "in one step, together, early",
    r"\bshall\b": "is to, must",
    r"\bis told\b": "knows, is given",
    r"\bby itself\b": "alone, separately, on its own",
    r"\b(up to|least|most|for|with|seen) so (many|much)\b": "name the number",
    r"\bnobody\b": "no one; better: say who does what",
    r"\b(left|stays|leaves the \w+|kept) as it is\b": "unchanged",
    r"\bgoes along\b": "is passed, is kept with",
    r"\bis let go\b": "is removed",
    r"\bdeserves?\b": "is about, fits",
    r"\bflatters?\b": "is optimistic",
    r"\bminds\b": "is sensitive to",
    r"\b(text|label|number|heads|model|values) (is|are) none\b": "invalid, missing",
    r"\bor none\.": "invalid, missing",
    r"drops? by (less than|at most|about)? ?[\d.]+ ?%": "percentage points",
    r"(less than|at most) [\d.]+ ?% (of|in) accuracy": "percentage points",
}
LONGEST_SENTENCE = 32  # words of README
USUAL_SENTENCE = 12
WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of sentence-transformers and PEFT
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(list(run_page(page, tmp_path))) == len(blocks(page, "python"))


def test_pages_that_name_checkpoints_with_pruned_heads_name_the_command_that_reads_them():
    pages = [page for page in PAGES if "pruned_heads" in page.read_text(encoding="utf-8")]
    assert {"migrate.md", "use_it_with.md"} <= {page.name for page in pages}
    assert [page.name for page in pages if "headprune migrate" not in page.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_the_first_block_of_readme_leaves_a_pruned_model_and_what_is_said_to_be_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = next(run_page(ROOT / "README.md", tmp_path))
    model, saved = names["trainer"].model, tmp_path / "bert-pruned"
    files = {"model.safetensors", "config.json", "headprune_plan.json", "headprune_certificate.json"}
    assert files <= {file.name for file in saved.iterdir()}
    assert PruningPlan.from_json((saved / "headprune_plan.json").read_text()).num_removed_heads > 0
    assert model.config.model_type == "prunable_bert"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_console_blocks_of_a_page_name_commands_that_exist(page, capsys):
    targets = set(re.findall(r"^([a-z][a-z-]*)(?=[ a-z-]*:)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in "".join(blocks(page, "console")).replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert words[0] in targets | {"test-oldest", "test-newest"}, line
        if program == "headprune":
            known = set(re.findall(r"--[a-z0-9-]+", called(capsys, words[0], "--help").out))
            assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_to_a_file_and_to_a_heading(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page_of_the_documentation():
    named = {link.partition("#")[0] for link in links(DOCS / "index.md")}
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"} <= named


def test_the_page_of_families_is_what_the_declarations_give():
    assert families_page.PAGE.read_text(encoding="utf-8") == families_page.page(), "run python -m tools.families_page"


def test_every_family_has_results_of_the_tests_that_the_page_of_families_counts():
    ours, hosts = (read_json(file.RESULTS)["families"] for file in (family_tests, host_suite))
    assert set(ours) == set(hosts) == set(FAMILIES)
    assert {name: found["unexpected"] for name, found in hosts.items() if found["unexpected"]} == {}
    named = {test for tests in families_page.TESTED.values() for test in tests}
    assert named <= {test for found in ours.values() for test in found}
    tested = families_page.page().partition("## What is tested")[2].partition("## Not supported")[0].splitlines()
    assert [row.split("|")[1].strip(" `") for row in tested if row.startswith("| `")] == list(FAMILIES)
    assert all(reason_for(name, test) == reason for name in hosts for test, reason in hosts[name]["expected"].items())


def test_a_case_of_a_test_is_counted_for_its_family():
    outcomes = {"test_a[xlm-roberta-eager]": "passed", "test_a[xlm-roberta-sdpa]": "Error", "test_a[bert]": "skipped"}
    found = family_tests.counts({**outcomes, "test_a[other]": "passed", "test_b": "passed"})
    assert {name: tests for name, tests in found.items() if tests} == {
        "xlm-roberta": {"test_a": {"passed": 1, "failed": 1}},
        "bert": {"test_a": {"skipped": 1}},
    }


def test_what_troubleshooting_quotes_are_messages_of_the_package():
    foreign = {"does not recognize this architecture"}  # Transformers says so
    quoted = re.findall(r'\*\*"([^"]+)"\*\*', prose(DOCS / "troubleshooting.md"))
    known = "\n".join(messages())
    missing = [text for text in quoted if text not in foreign and not _occurs(text, known)]
    assert len(quoted) > 30
    assert missing == []


@pytest.mark.parametrize("banned", BANNED)
def test_pages_and_messages_say_it_in_the_words_of_the_field(banned):
    texts = [(name_of(page), page.read_text(encoding="utf-8")) for page in PLAIN]
    texts += [("a text of the package", text) for text in messages()]
    found = [
        f"{where}: ...{text[max(0, hit.start() - 40) : hit.end() + 40]!r}"
        for where, text in texts
        for hit in re.finditer(banned, text)
    ]
    assert not found, f"in place of {banned!r} write: {BANNED[banned]}\n" + "\n".join(found)


@pytest.mark.parametrize("page", PLAIN, ids=name_of)
def test_calls_in_the_running_text_name_arguments_that_exist(page):
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for call, names in calls(code):
            known = signature(call).parameters
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in known.values()):
                assert names <= known.keys(), code


def test_the_pages_state_the_numbers_of_the_code():
    said = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/choose.md")}
    said |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/guarantee.md", "docs/command_line.md")}
    points = f"{100 * DECIDING:g} % confidence"
    assert all(points in said[name] for name in ("README.md", "docs/choose.md", "docs/command_line.md"))
    assert f'`confidence="auto"` is {DECIDING:g} if' in said["docs/guarantee.md"]
    assert f"and {REPORTING:g} if it only reports" in said["docs/guarantee.md"]
    largest, smallest = (f"{100 * share:g} %" for share in (max(DENSITIES), min(DENSITIES)))
    words = ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"]
    plans = f"{words[len(DENSITIES) - 11]} plans are made, from {largest} of the weights down to {smallest}"
    assert plans in said["docs/choose.md"]
    assert f"{CALIBRATION:,}\ntraining examples" in said["docs/choose.md"]
    right = Metric("accuracy", "binary", lambda model, rows: rows)
    _, few = least_needed(right, CertificationData([{"text": "one"}]), DEFAULT_DROP, DECIDING)
    words = f"With fewer than about {round(few, -1)}, even a pruned model that answers alike is not certified"
    assert words in said["README.md"].replace("\n  ", " ")


def _occurs(text, known):
    return re.search(".*".join(re.escape(part.strip(" .")) for part in text.split(VARIES)), known) is not None


def test_the_sentences_of_readme_are_short():
    text = re.sub(r"<!--.*?-->|^#.*$|^!.*$|^\|.*$", "", prose(ROOT / "README.md"), flags=re.M)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    sentences = [part for part in re.split(r"(?<=[.!?:;])\s+|\n\n|\n- ", text) if part.strip()]
    lengths = sorted(len(sentence.split()) for sentence in sentences)
    assert statistics.median(lengths) <= USUAL_SENTENCE
    assert lengths[-1] <= LONGEST_SENTENCE


def test_the_numbers_of_readme_are_those_of_the_result_files(tmp_path):
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    readme_numbers.write(page)
    assert page.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_chart_of_readme_shows_the_means_of_the_result_file(tmp_path):
    rows = read_json(RESULTS / "density_accuracy.json")["summary"]
    points = readme_chart.series(rows, "sst2", "magnitude")
    assert [kept for kept, _, _ in points] == [100, 50, 25]
    assert points[0][1] == pytest.approx(88.19, abs=0.01)
    readme_chart.draw(rows, tmp_path / "chart.svg")
    assert all(way.label in set(_comments(tmp_path / "chart.svg")) for way in readme_chart.WAYS)
    assert all(way.label in _comments(readme_chart.IMAGE) for way in readme_chart.WAYS)


def test_the_chart_of_the_arena_shows_the_means_of_its_file(tmp_path):
    rows = read_json(RESULTS / "arena.json")["summary"]
    of_ours = dict(arena_chart.series(rows, "sst2", "ours"))
    assert of_ours[25] == next(
        row["drop"]["mean"]
        for row in rows
        if (row["task"], row["training"], row["way"], row["density"]) == ("sst2", "none", "ours", 0.25)
    )
    arena_chart.draw(rows, tmp_path / "chart.svg")
    assert _comments(tmp_path / "chart.svg") == _comments(arena_chart.IMAGE)


def _comments(file):
    return set(re.findall(r"<!-- (.+?) -->", file.read_text(encoding="utf-8")))
