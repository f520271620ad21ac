"""A certificate travels with the weights that it was made for, and with no others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._beside_weights import file_beside, read_text, write_text
from hf_headprune._fingerprints import sha256_of
from hf_headprune._offloaded import Weights
from hf_headprune._strict_json import parse
from hf_headprune.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

logger = logging.getLogger(__name__)

CERTIFICATE_NAME = "headprune_certificate.json"


def attach_certificate_(model: nn.Module, text: str) -> None:
    """Lets a pruned model write a certificate beside its weights whenever it is saved, as long as they stay the same.

    Args:
        model: Pruned model, of a `Prunable*` class.
        text: Of the certificate.
    """
    holder: Any = model
    holder.headprune_certificate = text


def attach_saved_certificate_(model: nn.Module, source: Any, options: dict[str, Any]) -> None:
    """Attaches the certificate that lies beside loaded weights; weights are not read before the model is saved.

    Args:
        model: Loaded model.
        source: What it was loaded from: a folder, or a name on the Hub, from which the file is downloaded.
        options: Of `from_pretrained`: where in the source.
    """
    file = file_beside(CERTIFICATE_NAME, source, options, downloads=True)
    if file is not None:
        attach_certificate_(model, read_text(file).strip())


def write_certificate_(
    model: nn.Module, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None
) -> bool:
    """Writes the model's certificate if it is about these weights, and removes one about others that lies there.

    A certificate about earlier weights is dropped, so that this is said once.

    Args:
        model: Pruned model.
        folder: Where its weights are saved.
        state_dict: What is saved in place of the model's own weights.

    Returns:
        Whether a certificate was written.
    """
    holder: Any = model
    text, file = getattr(model, "headprune_certificate", None), Path(folder, CERTIFICATE_NAME)
    if text is None and not file.exists():
        return False
    weights = weights_sha256(Weights(model) if state_dict is None else state_dict)
    if text is not None and weights is not None and _certified_weights(text) == weights:
        write_text(file, text)
        return True
    if text is not None:
        holder.headprune_certificate = None
        logger.warning(
            "The weights are not those that were certified, so no certificate is written into %s. Call certify on the "
            "model as it is now.",
            folder,
        )
    if file.exists() and (weights is None or _certified_weights(read_text(file)) != weights):
        logger.warning("%s is about other weights than those which are saved there now; it is removed.", file)
        file.unlink()
    return False


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str | None:
    """Returns the sha256 of weights, or None where they are quantized, sharded or nowhere."""
    are_plain = all(type(tensor) is torch.Tensor and not tensor.is_meta for tensor in state.values())
    return sha256_of("", state) if are_plain else None


def _certified_weights(text: str) -> str | None:
    """Returns the sha256 of the weights that a certificate is about, or None where it is damaged."""
    try:
        return parse(text, "certificate")["pruned"]["weights"]
    except (CertificateError, KeyError, TypeError):
        return None
