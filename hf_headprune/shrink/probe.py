"""A small random batch of what a model takes: tokens, images, spectrograms or sound."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune._offloaded import device_of
from hf_headprune.anatomy import anatomy_of, base_model, family_of

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE_BATCH = 2
PROBE_LENGTH = 8
PROBE_SAMPLES = 2000  # of sound


def probe_inputs(model: Any) -> dict[str, torch.Tensor]:
    """Returns a random batch, the last sequence of tokens padded, and all that a decoder needs besides.

    Args:
        model: Of a declared family, with weights.
    """
    maker, kind = _Maker(model), family_of(model).probe
    is_text = getattr(model, "main_input_name", None) == "input_ids"  # such as the decoder of Whisper alone
    inputs = MAKERS["tokens" if is_text and kind == "spectrogram" else kind](maker)
    if "decoder_input_ids" in maker.accepted:
        inputs["decoder_input_ids"] = maker.tokens(maker.length)
    elif maker.reads_source:
        inputs["encoder_hidden_states"] = maker.normal(maker.length, maker.hidden_size)
    return inputs


class _Maker:
    """Draws tensors on the device of a model, in its precision."""

    def __init__(self, model: Any) -> None:
        self._configs = [model.config, *(getattr(model.config, tower) for tower in family_of(model).towers)]
        first = next(model.parameters())
        self._device, self._dtype = device_of(model), first.dtype
        self._generator = torch.Generator().manual_seed(0)
        anatomy = anatomy_of(model)
        self.reads_source = any(site.kind == "cross" for site in anatomy.sites)
        self.hidden_size = anatomy.sites[0].hidden_size
        self.accepted = inspect.signature(base_model(model).forward).parameters
        longest = self._said("max_position_embeddings") or 2 * PROBE_LENGTH
        length = max(1, min(PROBE_LENGTH, longest - 2))  # RoBERTa keeps two positions for padding
        chunk = self._said("chunk_size_feed_forward") or 1  # a length must be a multiple of it
        self.length = -(-length // chunk) * chunk
        embeddings = model.get_input_embeddings() if family_of(model).probe == "tokens" else None
        self._vocabulary: int = getattr(embeddings, "num_embeddings", 0) or self._said("vocab_size") or 1

    def _said(self, field: str) -> Any:
        """Returns a field of the configuration, or of that of a tower; None where none has it."""
        return next((getattr(config, field) for config in self._configs if hasattr(config, field)), None)

    def tokens(self, length: int) -> torch.Tensor:
        ids = torch.randint(0, self._vocabulary, (PROBE_BATCH, length), generator=self._generator)
        return ids.to(self._device)

    def normal(self, *shape: int) -> torch.Tensor:
        drawn = torch.randn(PROBE_BATCH, *shape, generator=self._generator)
        return drawn.to(device=self._device, dtype=self._dtype)

    def text(self) -> dict[str, torch.Tensor]:
        mask = torch.ones(PROBE_BATCH, self.length, dtype=torch.long, device=self._device)
        mask[-1, (self.length + 1) // 2 :] = 0
        return {"input_ids": self.tokens(self.length), "attention_mask": mask}

    def pixels(self) -> dict[str, torch.Tensor]:
        size = self._said("image_size")
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": self.normal(self._said("num_channels"), height, width)}

    def text_and_pixels(self) -> dict[str, torch.Tensor]:
        """Returns what the towers take that the model has."""
        inputs = self.text() | self.pixels()
        return {name: tensor for name, tensor in inputs.items() if name in self.accepted}

    def spectrogram(self) -> dict[str, torch.Tensor]:
        return {"input_features": self.normal(self._said("num_mel_bins"), 2 * self._said("max_source_positions"))}

    def waveform(self) -> dict[str, torch.Tensor]:
        return {"input_values": self.normal(PROBE_SAMPLES)}


MAKERS: dict[str, Callable[[_Maker], dict[str, torch.Tensor]]] = {
    "tokens": _Maker.text,
    "pixels": _Maker.pixels,
    "tokens and pixels": _Maker.text_and_pixels,
    "spectrogram": _Maker.spectrogram,
    "waveform": _Maker.waveform,
}
