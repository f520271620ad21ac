"""Reads JSON into dataclasses: every field, no other, each of its type."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, Union

from hf_headprune.errors import CertificateError

T = TypeVar("T")
LARGEST = 2**53  # up to it, whole numbers are the same to every reader of JSON


def read(kind: type[T], content: Any, where: str) -> T:
    """Makes a dataclass of JSON content.

    Args:
        kind: Dataclass whose fields are numbers, texts, booleans, literals, None, tuples and dataclasses of these.
        content: As `json.loads` returned it.
        where: Name of the place, for the message.

    Raises:
        CertificateError: A field is missing, unknown, or of another type, or a number is too large or none.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if not isinstance(content, dict) or set(content) != set(names):
        given = set(content) if isinstance(content, dict) else set()
        raise CertificateError(
            f"{where}: the fields must be exactly {names}, missing {sorted(set(names) - given)}, unknown "
            f"{sorted(given - set(names))}. Pass a certificate as it was saved."
        )
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], content[name], f"{where}.{name}") for name in names})


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
            f"{where} must be of type {hint}, received {content!r}. Pass a certificate as it was saved."
        )
    if type(content) in (int, float) and not abs(content) <= LARGEST:  # nor is NaN
        raise CertificateError(
            f"{where} must be a finite number of at most 2^53, received {content!r:.30}. Pass a certificate as it was "
            "saved."
        )
    return float(content) if is_whole_float else content
