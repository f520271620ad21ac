"""A certificate travels with the weights that it was made for, and with no others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_headprune.fingerprints import sha256_of

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def certify_weights_(model: nn.Module, text: str, *, file_name: str) -> None:
    """Lets a pruned model write a certificate beside its weights whenever it is saved, as long as they stay the same.

    Args:
        model: Pruned model, of a `Prunable*` class.
        text: Of the certificate.
        file_name: Of the certificate, beside the weights.
    """
    holder: Any = model
    holder.headprune_certificate = (sha256_of("", model.state_dict()), text, file_name)


def write_certificate(model: nn.Module, folder: str | Path) -> None:
    """Writes the model's certificate where its weights still deserve it; where they don't, an older one goes."""
    certified = getattr(model, "headprune_certificate", None)
    if certified is None:
        return
    weights, text, file_name = certified
    file = Path(folder, file_name)
    if sha256_of("", model.state_dict()) == weights:
        file.write_text(text + "\n", encoding="utf-8")
        return
    logger.warning(
        "The weights have changed since they were certified, so no certificate is written into %s%s. Call certify on "
        "the model as it is now.",
        folder,
        ", and that of the weights which lay there is removed" if file.exists() else "",
    )
    file.unlink(missing_ok=True)
