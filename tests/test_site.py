"""The documentation site, without building it: its settings name every page, and `make docs` builds it."""

from __future__ import annotations

import inspect
import re
import runpy

import pytest

import hf_headprune
from tests.support.documentation import PAGES, ROOT, name_of


@pytest.fixture(scope="module")
def settings():
    """The names that `docs/conf.py` defines; it needs no Sphinx."""
    return runpy.run_path(str(ROOT / "docs" / "conf.py"))


def test_the_navigation_and_llms_txt_name_every_page(settings):
    pages = {name_of(page).removesuffix(".md") for page in PAGES}
    listed = re.findall(r"<(.+)>$", settings["toctree"](), re.MULTILINE)
    assert {f"/{page}" for page in pages - {"docs/index"}} == set(listed)
    assert len(listed) == len(set(listed))
    assert all(f"(_sources/{page}.md.txt)" in settings["llms_txt"]() for page in pages - {"docs/index", "CHANGELOG"})
    patterns = settings["include_patterns"]
    assert all(any(page.match(pattern) for pattern in patterns) for page in PAGES)


def test_the_reference_has_an_entry_for_every_public_name(settings):
    text = settings["reference"]()
    public = [name for name in hf_headprune.__all__ if not name.startswith("Prunable")]
    named = re.findall(r"^\.\. auto(\w+):: hf_headprune\.(\w+)$", text, re.MULTILINE)
    assert [name for _, name in named] == [*sorted(public), "compat"]
    kinds = {"class": inspect.isclass, "module": inspect.ismodule, "function": inspect.isfunction}
    assert [name for kind, name in named[:-1] if not kinds[kind](getattr(hf_headprune, name))] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("`prune_model_(model)` and `(layers, heads)`", "``prune_model_(model)`` and ``(layers, heads)``"),
        ("prune_model_ cuts n * d entries", r"prune_model\_ cuts n \* d entries"),
        ("*args: As in Transformers, max_drop", "*args: As in Transformers, max_drop"),
        ("**kwargs: `x` | y", r"**kwargs: ``x`` \| y"),
    ],
)
def test_docstrings_become_markup_without_losing_a_letter(settings, line, expected):
    lines = [line]
    settings["literal"](None, "function", "f", None, None, lines)
    assert lines == [expected]


def test_formulas_between_dollars_are_read_as_formulas(settings):
    pages = {name_of(page) for page in PAGES if re.search(r"^\$\$.+\$\$$", page.read_text(encoding="utf-8"), re.M)}
    assert {"docs/methods/second_order.md", "docs/methods/certificate.md"} <= pages
    assert "dollarmath" in settings["myst_enable_extensions"]
