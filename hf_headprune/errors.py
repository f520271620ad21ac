"""Errors of the library: one base class, so that `except HeadPruneError` catches every deliberate refusal.

Each message says where, which rule, what was received and what to do. Whatever was received, a message stays short:
`shown` echoes a value, and the base class cuts what is too long all the same.
"""

import reprlib
from typing import Any

LONGEST_MESSAGE = 2000
LONGEST_VALUE = 200
_LONGEST_WHOLE_NUMBER = 200  # bits


class HeadPruneError(Exception):
    """Base class of every error that the library raises on purpose; a message has at most `LONGEST_MESSAGE` letters."""

    def __init__(self, *args: Any) -> None:
        """Cuts the middle out of a message that is too long."""
        super().__init__(*(_cut(arg, LONGEST_MESSAGE) if isinstance(arg, str) else arg for arg in args))


class _ShortRepr(reprlib.Repr):
    """Represents values without ever writing out a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write integers of thousands of digits."""
        return repr(x) if x.bit_length() <= _LONGEST_WHOLE_NUMBER else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}..."


def shown(value: Any) -> str:
    """Returns how a message echoes a value: like `repr`, with at most `LONGEST_VALUE` letters."""
    return _cut(_ShortRepr().repr(value), LONGEST_VALUE)


def in_one_line(error: BaseException) -> str:
    """Returns how a message echoes another error: its words without line ends, at most `LONGEST_VALUE` letters."""
    return " ".join(str(error).split())[:LONGEST_VALUE]


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    note = f" ... ({len(text):,} characters in all) ... "
    kept = longest - len(note)
    return text[: kept - kept // 4] + note + text[len(text) - kept // 4 :]


class InvalidPlanError(HeadPruneError, ValueError):
    """A pruning plan contradicts itself or the model that it is applied to."""


class InvalidConfigError(HeadPruneError, ValueError):
    """The configuration of a pruned checkpoint is malformed or does not match its weights."""


class InvalidSettingError(HeadPruneError, ValueError):
    """A setting is out of range, or settings contradict each other."""


class UnsupportedModelError(HeadPruneError, TypeError):
    """No declaration says where the heads and FFN units of this model are."""


class TrainingStateError(HeadPruneError, RuntimeError):
    """The Trainer is in a state in which pruning can't go on correctly."""


class ModelInUseError(HeadPruneError, RuntimeError):
    """A live model is being changed by something that will change it back, such as `masked` in another thread."""


class SearchStateError(HeadPruneError, RuntimeError):
    """The saved state of a search does not belong to this search, or is damaged."""


class CertificateError(HeadPruneError, ValueError):
    """A certificate or its ledger is malformed, or it was asked for on data that can't support it."""


class DataLeakError(HeadPruneError, ValueError):
    """Examples of splits that must be disjoint are the same."""


class MissingExtraError(HeadPruneError, ImportError):
    """A function needs a package that only an extra of this library installs."""


class UnsupportedVersionError(HeadPruneError, RuntimeError):
    """An installed library lacks something that is needed here and that nothing can stand for."""
