"""What is left of a block that has lost all its units: modules without query, key, value or FFN parameters.

The bias of the output projection is all that such a block still contributes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers import EncoderDecoderCache

from hf_headprune._compat import part_of_cache, returns_attentions
from hf_headprune.anatomy import KEPT_HEADS
from hf_headprune.shrink.shared_bias import OwnHeadsOfBias, signature_of


class BiasOnly(nn.Module):
    """Stands for an output projection without columns: `(..., 0)` → `(..., out_features)`, the bias everywhere.

    The bias keeps its name in the state dict.

    Attributes:
        in_features: Zero, where a linear module states its columns.
        out_features: Width of the residual stream.
        bias: Parameter of shape `(out_features,)`, or None.
    """

    in_features = 0
    weight = None  # T5 looks at it
    bias: nn.Parameter | None

    def __init__(self, out_features: int, bias: nn.Parameter | None) -> None:
        """Takes over the bias itself, not a copy."""
        super().__init__()
        self.out_features = out_features
        self.register_parameter("bias", bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the bias at every position of `hidden`, whose last dimension is empty."""
        shape = (*hidden.shape[:-1], self.out_features)
        if self.bias is None:
            return hidden.new_zeros(shape)
        return self.bias.expand(shape)

    def extra_repr(self) -> str:
        """Shows the shape as linear modules do."""
        return f"in_features=0, out_features={self.out_features}, bias={self.bias is not None}"


class NoUnits(nn.Module):
    """Stands for the first FFN matrix without rows: `(..., in_features)` → `(..., 0)`."""

    out_features = 0

    def __init__(self, in_features: int) -> None:
        """Keeps the width of the input for its representation only."""
        super().__init__()
        self.in_features = in_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns an empty tensor that carries the shape, dtype and device of `hidden`."""
        return hidden[..., :0]

    def extra_repr(self) -> str:
        """Shows the shape as linear modules do."""
        return f"in_features={self.in_features}, out_features=0"


class HeadlessAttention:
    """Forward of an attention core without heads; mixed into the class of the core that it stands for.

    It stays a subclass of that class because Transformers finds the modules whose attentions it records by class:
    a block without heads then reports attentions of shape `(batch, 0, queries, keys)` instead of vanishing from the
    tuple. It still fills the key-value cache, with one placeholder number per token: the cache of the first layer is
    where the model reads how many tokens it has already seen.
    """

    dense_class: Any
    layer_idx: Any
    _output_name: str | None
    _shared_bias: str | None

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        key_value_states: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        layer_past: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """Returns what zero heads contribute, and a bias that the dense class hands on.

        Args:
            hidden_states: Queries, `(batch, queries, hidden_size)`.
            *args: Such as a mask; only a bias among them is read.
            key_value_states: Source of keys of cross-attention, `(batch, keys, hidden_size)`, in BART-like families.
            encoder_hidden_states: The same in BERT-like families.
            cache: Cache to keep in step.
            past_key_values: The same, as Transformers called it before 5.24.
            layer_past: The same, in GPT-NeoX.
            **kwargs: As `args`.
        """
        memory = encoder_hidden_states if key_value_states is None else key_value_states
        num_keys = hidden_states.shape[1] if memory is None else memory.shape[1]
        cache = next((found for found in (cache, past_key_values, layer_past) if found is not None), None)
        num_seen = 0 if cache is None else cache.get_seq_length(self.layer_idx)
        if cache is not None:
            num_keys = self._keep_cache_in_step(cache, hidden_states, num_keys, is_cross=memory is not None)
        context = hidden_states[..., :0]  # (batch, queries, 0)
        output = context if self._output_name is None else getattr(self, self._output_name)(context)
        config = getattr(self, "config", None)  # a core without one is told to return its probabilities
        shape = hidden_states.shape[0], 0, hidden_states.shape[1], num_keys
        weights = hidden_states.new_zeros(shape) if config is None or returns_attentions(config) else None
        if self._shared_bias is None or not hasattr(self.dense_class, "compute_bias"):
            return output, weights
        bias = signature_of(self.dense_class).bind_partial(self, hidden_states, *args, **kwargs).arguments
        return output, self._handed_on(bias.get(self._shared_bias), hidden_states, num_keys, num_seen), weights

    def _handed_on(self, bias: torch.Tensor | None, hidden: torch.Tensor, num_keys: int, num_seen: Any) -> torch.Tensor:
        """Returns the bias of all heads for the layers that follow, `(1, heads, queries, keys)`."""
        if bias is not None:
            return bias
        core: Any = self
        if not core.has_relative_attention_bias:
            return hidden.new_zeros(1, 1, hidden.shape[1], num_keys)
        return core.compute_bias(hidden.shape[1], num_keys, device=hidden.device, past_seen_tokens=num_seen)

    def _keep_cache_in_step(self, cache: Any, hidden_states: torch.Tensor, num_keys: int, *, is_cross: bool) -> int:
        placeholder = hidden_states.new_zeros(hidden_states.shape[0], 1, num_keys, 1)
        is_pair = isinstance(cache, EncoderDecoderCache)
        if not is_cross:
            own = part_of_cache(cache, "self_attention_cache") if is_pair else cache
            return own.update(placeholder, placeholder, self.layer_idx)[0].shape[2]
        if is_pair and not (is_updated := part_of_cache(cache, "is_updated")).get(self.layer_idx):
            part_of_cache(cache, "cross_attention_cache").update(placeholder, placeholder, self.layer_idx)
            is_updated[self.layer_idx] = True
        return num_keys

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles name the class by what it is made from, since it has no module of its own."""
        return _blank_headless, (self.dense_class,), self.__dict__.copy()


@functools.cache
def headless_class(dense_class: Any) -> Any:
    """Returns the headless subclass of an attention core's class, always the same one."""
    return type(f"Headless{dense_class.__name__}", (HeadlessAttention, dense_class), {"dense_class": dense_class})


def hollow_attention_(
    core: nn.Module, *, parts: tuple[str, ...], output_name: str | None, shared_bias: str | None = None
) -> None:
    """Turns an attention core, in place, into one without heads.

    Args:
        core: Module that computes the heads.
        parts: Names of its query, key and value modules, and of those with a table for its heads, which go.
        output_name: Name of the output projection where it is a part of the core.
        shared_bias: Argument of the forward pass with a bias of all heads of all layers.
    """
    dense_class: Any = core.dense_class if isinstance(core, OwnHeadsOfBias) else type(core)
    for name in (*parts, *({KEPT_HEADS} & dict(core.named_buffers()).keys())):
        delattr(core, name)
    settings: dict[str, Any] = {"_output_name": output_name, "_shared_bias": shared_bias}
    vars(core).update(settings)
    core.__class__ = headless_class(dense_class)


def _blank_headless(dense_class: Any) -> Any:
    cls = headless_class(dense_class)
    return cls.__new__(cls)
