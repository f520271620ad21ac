"""Says which thread changes a live model, so that no other one does so at the same time."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hf_headprune.anatomy import base_model
from hf_headprune.errors import InvalidSettingError, ModelInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator

TRAINING = "Trainer.train"


@dataclass(eq=False)
class _Token:
    """One reason why a thread owns a model."""

    purpose: str
    thread: int = field(default_factory=threading.get_ident)


# By the base model, so that a model and its body are one. A token stays until its block ends, in whatever thread.
_TOKENS: WeakKeyDictionary[nn.Module, list[_Token]] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextmanager
def owned(model: nn.Module, purpose: str, *, alone: bool = False) -> Iterator[None]:
    """Keeps other threads from changing a model for the length of a `with` block.

    Args:
        model: Live model.
        purpose: What is done to it, for the errors of others; the public name of who does it.
        alone: Whether this thread, too, may be at nothing else that changes the model, but training.

    Raises:
        InvalidSettingError: Nothing else may change the model, and under `torch.inference_mode()` it could not be
            trained afterwards.
        ModelInUseError: Another thread changes it, or this one does.
    """
    if alone and torch.is_inference_mode_enabled():
        raise InvalidSettingError(
            f"{purpose}: weights that are made inside of torch.inference_mode() can never be trained. Call it outside."
        )
    base, token = base_model(model), _Token(purpose)
    with _LOCK:
        tokens = _TOKENS.setdefault(base, [])
        for other in tokens:
            is_elsewhere = other.thread != token.thread
            if is_elsewhere or (alone and other.purpose != TRAINING):
                where = "another thread" if is_elsewhere else "this thread"
                raise ModelInUseError(
                    f"{purpose}: the {type(model).__name__} is in use by {other.purpose} in {where}, which has changed "
                    "it and will change it back. Wait until that has ended, or work on a copy that was made before."
                )
        tokens.append(token)
    try:
        yield
    finally:
        with _LOCK:
            tokens.remove(token)
