"""Versions of installed packages, for tests of what an older one lacks."""

from __future__ import annotations

import transformers
from packaging.version import Version


def is_older_than(version: str) -> bool:
    """Tells whether the installed Transformers comes before a version; a release candidate counts as the release."""
    return Version(Version(transformers.__version__).base_version) < Version(version)
