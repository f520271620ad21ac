"""Reads JSON strictly: bounded in size, depth and digits, no name twice; into dataclasses, every field of its type."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from hf_headprune.errors import CertificateError, HeadPruneError, shown

T = TypeVar("T")
LARGEST = 2**53  # up to it, whole numbers are the same to every reader of JSON
LONGEST_TEXT = 2**28  # characters: the outcomes of ten million examples
DEEPEST = 32
MOST_DIGITS = 20


def parse(text: str, where: str, *, error: type[HeadPruneError] = CertificateError) -> Any:
    """Reads JSON text into dicts, lists, texts and finite numbers.

    Args:
        text: From outside.
        where: Name of the place, for the message.
        error: What is raised.

    Raises:
        HeadPruneError: As `error`: the text is too long or no JSON, nests deeper than `DEEPEST`, names an entry twice,
            or holds a number that is not finite or has more than `MOST_DIGITS` digits.
    """
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        received = f"{len(text):,} characters" if isinstance(text, str) else type(text).__name__
        raise error(f"{where}: the text must have at most {LONGEST_TEXT:,} characters, received {received}.")
    try:
        content = json.loads(
            text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not JSON ({problem}). Pass the text as it was written.") from problem
    if _depth(content) > DEEPEST:
        raise error(
            f"{where}: not JSON of this library, which nests at most {DEEPEST} deep. Pass it as it was written."
        )
    return content


def path_of(path: Any, where: str) -> Path:
    """Returns a path that names a place in the file system, whether something is there or not.

    Raises:
        CertificateError: It is no path, or can't be one.
    """
    try:
        found = Path(path)
        found.exists()
    except (OSError, TypeError, ValueError) as problem:
        raise CertificateError(
            f"{where}: a path must be a text or a Path, received {shown(path)}: {problem}"
        ) from problem
    return found


def read_text(path: Path, *, error: type[HeadPruneError] = CertificateError) -> str:
    """Returns the text of a file.

    Raises:
        HeadPruneError: As `error`: it can't be read, is no text, or is too large.
    """
    try:
        size = path.stat().st_size
        if size > LONGEST_TEXT:
            raise error(f"{path}: the file must have at most {LONGEST_TEXT:,} bytes, received {size:,}.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: the file can't be read as text: {problem}") from problem


def read(kind: type[T], content: Any, where: str) -> T:
    """Makes a dataclass of JSON content.

    Args:
        kind: Dataclass whose fields are numbers, texts, booleans, literals, None, tuples and dataclasses of these.
        content: As `parse` returned it.
        where: Name of the place, for the message.

    Raises:
        CertificateError: A field is missing, unknown, or of another type, or a number is too large or invalid.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if not isinstance(content, dict) or set(content) != set(names):
        given = set(content) if isinstance(content, dict) else set()
        raise CertificateError(
            f"{where}: the fields must be exactly {names}, missing {sorted(set(names) - given)}, unknown "
            f"{shown(sorted(given - set(names)))}. Pass a certificate as it was saved."
        )
    hints = _hints_of(kind)  # type: ignore[arg-type] # a class can be hashed
    return kind(**{name: _value(hints[name], content[name], f"{where}.{name}") for name in names})


@cache
def _hints_of(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(hint: Any, content: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        (plain,) = (option for option in options if option is not type(None))
        return None if content is None else _value(plain, content, where)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast("type[Any]", hint), content, where)
    if origin is tuple and isinstance(content, list):
        return tuple(_value(options[0], item, f"{where}[{index}]") for index, item in enumerate(content))
    is_whole_float = hint is float and type(content) is int
    if not (content in options if origin is Literal else type(content) is hint or is_whole_float):
        raise CertificateError(
            f"{where} must be of type {hint}, received {shown(content)}. Pass a certificate as it was saved."
        )
    if type(content) in (int, float) and not abs(content) <= LARGEST:  # nor is NaN
        raise CertificateError(
            f"{where} must be a finite number of at most 2^53, received {shown(content)}. Pass a certificate as it was "
            "saved."
        )
    return float(content) if is_whole_float else content


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits, at most {MOST_DIGITS} are allowed")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        _refuse(shown(digits))
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {shown(max(names, key=names.count))} occurs twice")
    return found


def _depth(content: Any) -> int:
    depth, level = 0, [content]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)]
    return depth
