"""A task out of text that every installation already has: does this sentence describe this Python function?

Names and descriptions are read from the functions of Python's own library and of installed packages: nothing is
downloaded, nothing is redistributed. The same versions give the same pairs in the same order.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy")
LABELS = ("another function", "this function")
MIN_LETTERS = 3  # of a name
MIN_WORDS, MAX_WORDS = 5, 30  # of a sentence
MAX_FUNCTIONS_PER_FILE = 20

_NOT_READ = re.compile(r"(^|/)(_?tests?|testing|idlelib|lib2to3|site-packages|dist-packages)/|(^|/)(test_|conftest)")
_MARKUP = re.compile(r":\w+(?::\w+)?:`~?|``|`|\*\*?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class Function:
    """A function's name in words, the sentence that describes it, and the file that holds both."""

    name: str
    sentence: str
    file: str


@dataclass(frozen=True)
class Pair:
    """One example: a function's name in words, a sentence, the index of its label in `LABELS`, and the name's file."""

    name: str
    sentence: str
    label: int
    file: str


def docstring_pairs(sizes: Mapping[str, int]) -> dict[str, list[Pair]]:
    """Collects pairs for each split: half of them right, half with the sentence of another function of the split.

    All functions of a file are in one split. A name is used once, and so is a sentence; sentences with the same words
    of four letters and more count as the same.

    Args:
        sizes: Pairs of each split.

    Returns:
        For each split its pairs in a fixed, mixed order.

    Raises:
        ValueError: The installed packages describe too few functions.
    """
    files = sorted(_files(), key=lambda it: _digest(it[0]))
    unused = _used_once(functions_of(path.read_text("utf-8", errors="replace"), name) for name, path in files)
    splits: dict[str, list[Function]] = {}
    for split, size in sizes.items():
        splits[split] = found = []
        while len(found) < size and (functions := next(unused, None)) is not None:
            found += functions
        if len(found) < size:
            total = sum(map(len, splits.values()))
            raise ValueError(
                f"docstring_pairs: {sum(sizes.values()):,} described functions are needed, and the {len(files):,} "
                f"source files of Python and of {', '.join(PACKAGES)} have only {total:,}. Install the packages that "
                "are missing (pip install 'hf-headprune[demo]'), or ask for fewer."
            )
    return {split: paired(functions[: sizes[split]]) for split, functions in splits.items()}


def functions_of(source: str, file: str) -> list[Function]:
    """Returns the functions of a module whose docstring begins with a sentence in plain prose, at most 20."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates, and files for other versions of Python
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            name = " ".join(node.name.replace("_", " ").split())
            sentence = first_sentence(ast.get_docstring(node) or "")
            if len(name) >= MIN_LETTERS and is_prose(sentence):
                found.append(Function(name, sentence, file))
    return found[:MAX_FUNCTIONS_PER_FILE]


def first_sentence(docstring: str) -> str:
    """Returns the first sentence of a docstring, without markup and line breaks."""
    paragraph = re.split(r"\n\s*\n", docstring.strip())[0]
    return _SENTENCE_END.split(_MARKUP.sub("", " ".join(paragraph.split())))[0]


def is_prose(sentence: str) -> bool:
    """Tells a sentence in words from code, tables and formulas."""
    letters = sum(character.isalpha() or character.isspace() for character in sentence)
    is_wordy = MIN_WORDS <= len(sentence.split()) <= MAX_WORDS and letters >= 0.85 * len(sentence)
    return sentence[:1].isupper() and sentence.endswith(".") and is_wordy


def paired(functions: list[Function]) -> list[Pair]:
    """Gives each function of one half its own sentence, and each of the other half that of the next one."""
    mixed = sorted(functions, key=lambda it: _digest(it.name + it.sentence))
    right, wrong = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
    pairs = [Pair(it.name, it.sentence, 1, it.file) for it in right]
    pairs += [Pair(it.name, other.sentence, 0, it.file) for it, other in zip(wrong, wrong[1:] + wrong[:1], strict=True)]
    return sorted(pairs, key=lambda it: _digest(it.sentence + it.name))


def _used_once(modules: Iterator[list[Function]]) -> Iterator[list[Function]]:
    """Leaves out functions whose name or sentence came before."""
    seen: set[object] = set()
    for functions in modules:
        fresh = []
        for function in functions:
            keys = {function.name, _words(function.sentence)}
            if not keys & seen:
                fresh.append(function)
                seen |= keys
        yield fresh


def _files() -> Iterator[tuple[str, Path]]:
    """Yields names and paths of the source files of Python's own library and of the packages; tests left out."""
    roots = {"python": Path(sysconfig.get_paths()["stdlib"])}
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots[package] = Path(next(iter(spec.submodule_search_locations)))
    for package, root in roots.items():
        for folder, inner, files in os.walk(root):
            inside = Path(folder).relative_to(root)
            inner[:] = [name for name in inner if not _NOT_READ.search(f"{(inside / name).as_posix()}/")]
            for name in [(inside / file).as_posix() for file in files if file.endswith(".py")]:
                if not _NOT_READ.search(name):
                    yield f"{package}/{name}", root / name


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]{4,}", text.lower()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
