"""Settings of the documentation site, which `make docs` builds from the Markdown pages that are read on GitHub, too.

The source folder is the checkout, so that links between the pages, README and CONTRIBUTING hold in both places. The
table of `docs/index.md` is the one list of pages: the navigation and `llms.txt` are made from it.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import hf_headprune  # noqa: E402 - from this checkout

project = "hf_headprune"
copyright = "the authors of hf_headprune, Apache-2.0"  # noqa: A001 - the name that Sphinx reads
release = version = hf_headprune.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/methods/*.md"]
html_theme = "furo"
html_title = f"hf_headprune {release}"
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]  # as GitHub reads formulas
suppress_warnings = ["myst.xref_missing"]  # a link to a folder of the checkout; the tests check every link
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True  # attributes of a class are listed once

INDEX, API = ROOT / "docs" / "index.md", "docs/api"
SUMMARY = (
    "Prunes attention heads and FFN units of Hugging Face Transformers, and tests on unseen examples what is lost."
)
_ROW = re.compile(r"^\| \[(?P<title>[^]]+)\]\((?P<page>[^)#]+)\.md\) \| (?P<about>.+) \|$", re.MULTILINE)


def pages() -> list[tuple[str, str, str]]:
    """Returns the title, the name in the site, and the question of each page that the index lists, README first."""
    rows = [(row["title"], row["page"], row["about"]) for row in _ROW.finditer(INDEX.read_text(encoding="utf-8"))]
    named = [(title, f"docs/{page}".replace("docs/../", ""), about) for title, page, about in rows]
    return [("hf_headprune", "README", "What it is, and three ways to call it"), *named]


def toctree() -> str:
    """Returns the navigation, which GitHub would show as a block of code and therefore is no part of the index."""
    entries = [f"{title} </{page}>" for title, page, _ in pages()]
    return "\n".join(["", "```{toctree}", ":hidden:", "", *entries, "Changes </CHANGELOG>", "```", ""])


def llms_txt() -> str:
    """Returns `llms.txt`, the list of the pages as Markdown, for language models."""
    lines = [f"- [{title}](_sources/{page}.md.txt): {about}" for title, page, about in pages()]
    return "\n".join(["# hf_headprune", "", f"> {SUMMARY}", "", "## Pages", "", *lines, ""])


def reference() -> str:
    """Returns directives that document each public name from its docstring; classes of pruned models are alike."""
    lines = []
    for name in sorted(name for name in hf_headprune.__all__ if not name.startswith("Prunable")):
        found = getattr(hf_headprune, name)
        kind = "class" if inspect.isclass(found) else "module" if inspect.ismodule(found) else "function"
        members = [] if kind == "function" else ["   :members:"]
        lines += [f".. auto{kind}:: hf_headprune.{name}", *members, ""]
    lines += [".. automodule:: hf_headprune.compat", "   :members:", ""]
    return "\n".join(["", "```{eval-rst}", *lines, "```", ""])


def literal(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Turns docstrings, which have Markdown's backticks, into reStructuredText, in place."""
    for place, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        lines[place] = "".join(f"`{part}`" if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    """Keeps names that end with an underscore, and stars, from being markup."""
    return re.sub(r"(?<=\w)_(?!\w)|\*(?!\*?\w+:)|\|", lambda found: f"\\{found.group()}", text)


def _extended(_app: Any, page: str, content: list[str]) -> None:
    content[0] += {root_doc: toctree, API: reference}.get(page, str)()


def _finished(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        Path(app.outdir, "llms.txt").write_text(llms_txt(), encoding="utf-8")
        forward = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(forward, encoding="utf-8")


def setup(app: Any) -> None:
    """Connects the above."""
    app.connect("source-read", _extended)
    app.connect("autodoc-process-docstring", literal, priority=100)  # before the sections are read
    app.connect("build-finished", _finished)
