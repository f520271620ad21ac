"""Errors of the library: one base class, so that `except HeadPruneError` catches every deliberate refusal.

Each message says where, which rule, what was received and what to do.
"""


class HeadPruneError(Exception):
    """Base class of every error that the library raises on purpose."""


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


class SearchStateError(HeadPruneError, RuntimeError):
    """The saved state of a search does not belong to this search, or is damaged."""


class CertificateError(HeadPruneError, ValueError):
    """A certificate or its ledger is malformed, or it was asked for on data that can't support it."""


class DataLeakError(HeadPruneError, ValueError):
    """Examples of splits that must be disjoint are the same."""


class MissingExtraError(HeadPruneError, ImportError):
    """A function needs a package that only an extra of this library installs."""
