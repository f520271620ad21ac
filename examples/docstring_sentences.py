"""A classification task out of text that every installation already has: which library does this sentence document?

The sentences come from docstrings of installed packages: nothing is downloaded, nothing is redistributed. The same
versions of the packages give the same sentences in the same order.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Split = Literal["train", "search", "test"]

# Package -> words that give it away: its names and the aliases that it is imported under.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "matplotlib": ("matplotlib", "mpl", "pyplot", "plt"),
    "networkx": ("networkx", "nx"),
    "numpy": ("numpy", "np"),
    "pandas": ("pandas", "pd"),
    "scipy": ("scipy", "sp"),
    "sklearn": ("sklearn", "scikit", "learn"),
    "sympy": ("sympy",),
    "torch": ("torch", "pytorch", "aten"),
}
MIN_WORDS, MAX_WORDS = 6, 40
MAX_SENTENCES_PER_FILE = 10
_SHARES: dict[Split, int] = {"train": 60, "search": 20, "test": 20}  # of the files, percent

_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.|\.\. |:\w+|[-=~*#]{3,}|\* |- |\d+\. |\|)|\s:\s|::$|^\s*\w+\s*=")
_MARKUP = re.compile(r":\w+(?::\w+)?:`|``|`|\*\*?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_GIVE_AWAY = re.compile(
    r"(?<![A-Za-z])(?:" + "|".join(sorted({w for words in LIBRARIES.values() for w in words})) + r")(?![A-Za-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sentence:
    """One example: a sentence, the index of its library in `LIBRARIES`, and the file it was found in."""

    text: str
    label: int
    source: str


def docstring_sentences(sizes: Mapping[Split, int]) -> dict[Split, list[Sentence]]:
    """Collects equally many sentences of every library for each split.

    A file belongs to one split, so the splits share no text; a sentence that occurs twice anywhere is used once, and
    not at all where two libraries share it. Names of the libraries are taken out.

    Args:
        sizes: Sentences per library for each split.

    Returns:
        For each split its sentences in a fixed, mixed order.

    Raises:
        ValueError: A library is not installed or has too few sentences.
    """
    by_library = {library: _sentences_of(label, library, sizes) for label, library in enumerate(LIBRARIES)}
    owners = Counter(
        key for found in by_library.values() for key in {_key(s.text) for splits in found.values() for s in splits}
    )
    chosen: dict[Split, list[Sentence]] = {split: [] for split in sizes}
    for library, found in by_library.items():
        for split, size in sizes.items():
            own = [sentence for sentence in found[split] if owners[_key(sentence.text)] == 1][:size]
            if len(own) < size:
                raise ValueError(
                    f"docstring_sentences: {library} has only {len(own)} sentences for {split!r}, asked for {size}. "
                    "Ask for fewer."
                )
            chosen[split] += own
    return {split: sorted(sentences, key=lambda s: _digest(s.text)) for split, sentences in chosen.items()}


def prose_sentences(docstring: str) -> Iterator[str]:
    """Yields the sentences of a docstring's running text, without code, tables, lists, markup and library names."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        lines = paragraph.splitlines()
        if any(_NOT_PROSE.search(line) for line in lines):
            continue
        text = " ".join(_MARKUP.sub("", paragraph).split())
        for sentence in _SENTENCE_END.split(text):
            cleaned = " ".join(_GIVE_AWAY.sub("library", sentence).split())
            letters = sum(character.isalpha() or character.isspace() for character in cleaned)
            is_prose = sentence[:1].isupper() and cleaned.endswith((".", "!", "?")) and letters >= 0.85 * len(cleaned)
            if is_prose and MIN_WORDS <= len(cleaned.split()) <= MAX_WORDS:
                yield cleaned


def split_of(file: str) -> Split:
    """Returns the split that a file belongs to; the same for ever."""
    place = int(_digest(file), 16) % 100
    for split, share in _SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares add up to 100")


def _sentences_of(label: int, library: str, sizes: Mapping[Split, int]) -> dict[Split, list[Sentence]]:
    found: dict[Split, list[Sentence]] = {split: [] for split in sizes}
    seen: set[str] = set()
    enough = {split: 1.15 * size + 20 for split, size in sizes.items()}  # some are shared between libraries
    for file, path in _files(library):
        split = split_of(file)
        if split not in sizes or len(found[split]) >= enough[split]:
            continue
        for text in _texts(path):
            if _key(text) not in seen:
                seen.add(_key(text))
                found[split].append(Sentence(text, label, file))
        if all(len(found[split]) >= enough[split] for split in sizes):
            break
    return found


def _files(library: str) -> list[tuple[str, Path]]:
    """Names and paths of a package's files in a fixed, mixed order; its tests left out."""
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"docstring_sentences: {library} is not installed. Run pip install 'hf-headprune[demo]'.")
    root = Path(next(iter(spec.submodule_search_locations)))
    paths = {f"{library}/{path.relative_to(root).as_posix()}": path for path in root.rglob("*.py")}
    return sorted(
        ((file, path) for file, path in paths.items() if "test" not in file), key=lambda item: _digest(item[0])
    )


def _texts(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # some packages ship templates that are no valid Python
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    texts = [text for docstring in docstrings if docstring for text in prose_sentences(docstring)]
    return sorted(dict.fromkeys(texts), key=_digest)[:MAX_SENTENCES_PER_FILE]


def _key(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
