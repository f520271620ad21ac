"""Mutated inputs over every format that is read: a result, or an error of our own, soon and in few words.

Run: python -m benchmarks.faults.mutations [--count 3000]
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.campaign import Case, main
from benchmarks.faults.runs import model, rows
from hf_headprune import Certificate, PruningPlan, certify, prune_model_, search_plan, verify_certificate
from hf_headprune.cli import main as headprune
from hf_headprune.errors import HeadPruneError
from hf_headprune.search.journal import Journal
from hf_headprune.search.settings import AStarSearch

LIMIT_SECONDS, LONGEST_MESSAGE = 5, 2000
EXPECTED = ("a result or a refusal in words", "an error of our own")
NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, -(10**30), 1.5, 1e308, float("nan"), float("-inf")),
    *("", "0", "x" * 5000, "\x00", "0-999999999", [], {}, [[[]]], {"a": 1}, ["1", 1], "é"),
)


class TooLongError(Exception):
    """A reader did not end in time."""


def cases(count: int, scratch: Path) -> Iterable[Case]:
    """Yields mutated inputs of each format in turn, drawn by their number."""
    readers = _readers(scratch)
    for number in range(count):
        name = [*readers][number % len(readers)]
        text, read = readers[name]
        yield f"{name} {number}", partial(_read, read, text, random.Random(number))


def _readers(scratch: Path) -> dict[str, tuple[str, Callable[[str], Any]]]:
    """Returns a valid text of each format, and what reads it."""
    whole = model().eval()
    plan = PruningPlan.of(whole).replace(kept_heads={"encoder.layer.0.attention": (0, 2)})
    small = prune_model_(copy.deepcopy(whole), plan)
    saved = scratch / "saved"
    small.save_pretrained(saved)
    certificate = certify(whole, small, rows(60, 2), max_drop=0.2)
    journal = scratch / "journal.jsonl"
    search_plan(
        whole, rows(60, 3), search=AStarSearch(max_drop=0.5, max_evaluations=5), journal=journal, progress=False
    )
    table = "text,label\n" + "".join(f"a word {number},{number % 2}\n" for number in range(30))
    return {
        "plan": (plan.to_json(), PruningPlan.from_json),
        "plan beside weights": (plan.to_json(), partial(_load, saved, "headprune_plan.json")),
        "config.json": ((saved / "config.json").read_text(), partial(_load, saved, "config.json")),
        "certificate": (certificate.to_json(), Certificate.from_json),
        "certificate, verified": (certificate.to_json(), lambda text: _verify(text, small)),
        "certificate, shown": (certificate.to_json(), partial(_show, scratch / "certificate.json")),
        "journal": (journal.read_text(), partial(_journal, scratch / "mutated.jsonl", _fingerprint(journal))),
        "examples": (table, partial(_prune, saved, scratch / "examples.csv")),
    }


def _load(saved: Path, name: str, text: str) -> Any:
    folder = saved.with_name("mutated")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    from hf_headprune import PrunableBertForSequenceClassification

    return type(PrunableBertForSequenceClassification.from_pretrained(folder)).__name__


def _verify(text: str, small: Any) -> Any:
    return verify_certificate(Certificate.from_json(text), small, rows(60, 2)).holds


def _show(file: Path, text: str) -> Any:
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    return headprune(["verify", str(file)])


def _journal(file: Path, fingerprint: str, text: str) -> Any:
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    return len(Journal(file, fingerprint))


def _fingerprint(journal: Path) -> str:
    return str(json.loads(journal.read_text().split("\n", 1)[0])["fingerprint"])


def _prune(saved: Path, file: Path, text: str) -> Any:
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    return headprune(["prune", str(saved), str(file.with_suffix("")), "--validation", str(file), "--train", str(file)])


def _read(read: Callable[[str], Any], text: str, draws: random.Random) -> dict[str, Any]:
    mutated, how = mutate(text, draws)
    said, started = io.StringIO(), time.process_time()
    before = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)  # of CPU time: the machine may be busy with others
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = read(mutated)
        words = "traceback" if "Traceback (most recent" in said.getvalue() else EXPECTED[0]
        detail = repr(found)[:60]
    except HeadPruneError as error:
        words = EXPECTED[1] if len(str(error)) <= LONGEST_MESSAGE else "too long a message"
        detail = type(error).__name__
    except TooLongError:
        words, detail = "a hang", ""
    except SystemExit as error:
        words, detail = EXPECTED[0], f"exit {error.code}"
    except Exception as error:  # noqa: BLE001 - it is counted
        ours = _raised_by_host(error)
        words, detail = f"an error of {ours}", f"{type(error).__name__}: {error}"[:160]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    found = {"outcome": words, "how": how}
    return (
        found if words in EXPECTED else found | {"detail": detail, "seconds": round(time.process_time() - started, 3)}
    )


def _raised_by_host(error: Exception) -> str:
    """Says whether an error that is none of ours comes from reading by Transformers itself, or from our code."""
    frame = error.__traceback__
    last = ""
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        last = path if "/hf_headprune/" in path or "/transformers/" in path else last
        frame = frame.tb_next
    return "the host" if "/transformers/" in last else "another kind"


def _too_long(*_: Any) -> None:
    raise TooLongError


def mutate(text: str, draws: random.Random) -> tuple[str, str]:
    """Returns a text with one change, of its characters or of the JSON in it, and how it was changed."""
    if draws.random() < 0.4:  # noqa: PLR2004 - the rest changes what JSON says
        return _characters(text, draws)
    try:
        content = json.loads(text)
    except ValueError:
        return _characters(text, draws)
    place = draws.choice([*_places(content)])
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    kind = draws.choice(("set", "set", "delete", "rename", "move"))
    value = draws.choice(NASTY)
    if kind == "set":
        parent[place[-1]] = value
    elif kind == "delete":
        del parent[place[-1]]
    elif kind == "rename" and isinstance(parent, dict):
        parent[str(draws.choice(("", "-1", "0x0", "9" * 5000, "²", "layer")))] = parent.pop(place[-1])
    else:
        parent[place[-1]] = [parent[place[-1]]] * 3
    return json.dumps(content), f"{kind} {'.'.join(map(str, place))[:60]} {str(value)[:20]!r}"


def _places(content: Any, before: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in [*inside][:12]:
        yield (*before, key)
        yield from _places(value, (*before, key))


def _characters(text: str, draws: random.Random) -> tuple[str, str]:
    place, kind = draws.randrange(len(text)), draws.choice(("cut", "flip", "deep", "digits", "insert", "line"))
    if kind == "cut":
        return text[:place], f"cut at {place}"
    if kind == "flip":
        return text[:place] + chr(ord(text[place]) ^ (1 << draws.randrange(7))) + text[place + 1 :], f"flip at {place}"
    if kind == "line":
        lines = text.split("\n")
        return "\n".join([*lines, draws.choice(lines)]), "a line twice"
    inserted = {"deep": "[" * 50_000, "digits": "9" * 6000, "insert": draws.choice('{}[],:"\x00\ufeff')}[kind]
    return text[:place] + inserted + text[place:], f"{kind} at {place}"


def shortened(content: dict[str, Any]) -> dict[str, Any]:
    """Returns how often each outcome came, by format, and each case with another outcome than those expected."""
    counts: dict[str, Counter[str]] = {}
    for name, result in content["cases"].items():
        counts.setdefault(name.rpartition(" ")[0], Counter())[result["outcome"]] += 1
    others = {name: result for name, result in content["cases"].items() if result["outcome"] not in EXPECTED}
    kept = {key: value for key, value in content.items() if key != "cases"}
    return kept | {"count": len(content["cases"]), "formats": counts, "failing": others}


if __name__ == "__main__":
    main("mutations", cases, count=3000, smoke=40, shorten=shortened)
