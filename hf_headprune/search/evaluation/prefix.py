"""Spares the lower layers of forward passes that somebody else makes, where an earlier plan has computed them.

Whatever function of the model a search measures, each forward pass inside it is known by its inputs, and what a layer
is given by those inputs and by the units kept below it. A plan that agrees with an earlier one in the lower layers
starts where the two part. The bits are those of a whole forward pass: where the model can't guarantee that, nothing is
spared.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.anatomy import base_model, named_arguments
from hf_headprune.search.evaluation.layers import LayerStack, digests_of
from hf_headprune.search.evaluation.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from hf_headprune.plan import PruningPlan

# They see single layers. (The cache is called "cache" from Transformers 5.24 on.)
NOT_SERVED = ("output_hidden_states", "output_attentions", "past_key_values", "cache", "use_cache")
Key = tuple[str, str]


class PrefixCache:
    """Hidden states of earlier measurements of a model whose weights stay as they are.

    Attributes:
        num_bytes: Held now.
        peak_bytes: Held at most so far.
        layers_spared: Layers of forward passes that did not have to be computed.
    """

    def __init__(self, model: nn.Module, limit_mib: float) -> None:
        """Starts empty.

        Args:
            model: Of a supported family.
            limit_mib: Bound on the memory; 0 keeps nothing.
        """
        self._base = base_model(model)
        self._signature = inspect.signature(self._base.forward)
        self._stack = LayerStack(self._base)
        self._limit = int(limit_mib * 2**20)
        self._held: OrderedDict[Key, tuple[int, torch.Tensor]] = OrderedDict()  # with the turn that used it last
        self._turn = 0
        self._digests: tuple[str, ...] = ()
        self._is_resumable: bool | None = None  # tried on the first inputs
        self._is_trying = False
        self._pass: ExitStack | None = None
        self.num_bytes = self.peak_bytes = self.layers_spared = 0

    @contextmanager
    def serving(self, plan: PruningPlan) -> Iterator[None]:
        """Serves the forward passes in a `with` block, in which the units that a plan removes are closed.

        Raises:
            InvalidPlanError: The plan does not fit the model.
        """
        self._stack.check_fits(plan)
        self._turn += 1
        self._digests = digests_of(self._stack.kept_per_layer(plan))
        handles = [
            self._base.register_forward_pre_hook(self._begin, with_kwargs=True),
            self._base.register_forward_hook(self._end, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._end()

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._is_trying or self._limit == 0 or module.training or torch.is_grad_enabled():
            return
        inputs = named_arguments(self._signature, args, kwargs)
        if any(inputs.get(name) for name in NOT_SERVED) or not self._can_resume(inputs):
            return
        batch = _digest_of(inputs)
        first, state = self._nearest(batch)
        self.layers_spared += first
        found: dict[int, torch.Tensor] = {}
        self._pass = ExitStack()
        self._pass.callback(self._keep, batch, found)
        self._pass.enter_context(self._stack.entered(first, state, found))

    def _end(self, *_: Any) -> None:
        if self._pass is not None and not self._is_trying:
            self._pass.close()
            self._pass = None

    def _can_resume(self, inputs: dict[str, Any]) -> bool:
        if self._is_resumable is None:
            self._is_trying = True
            try:
                self._is_resumable = Trials(self._stack).is_resumable(inputs)
            finally:
                self._is_trying = False
        return self._is_resumable

    def _nearest(self, batch: str) -> tuple[int, torch.Tensor | None]:
        """Returns the highest layer whose input is known, and that input."""
        for first in range(self._stack.depth - 1, 0, -1):
            key = batch, self._digests[first]
            if key in self._held:
                _, state = self._held[key]
                self._held[key] = self._turn, state
                self._held.move_to_end(key)
                return first, state
        return 0, None

    def _keep(self, batch: str, found: dict[int, torch.Tensor]) -> None:
        """Keeps the inputs of layers, at the cost of older ones, but never of those that this measurement used."""
        for reached, state in found.items():
            size = state.numel() * state.element_size()
            while self._held and self.num_bytes + size > self._limit:
                turn, oldest = next(iter(self._held.values()))
                if turn == self._turn:
                    return
                self._held.popitem(last=False)
                self.num_bytes -= oldest.numel() * oldest.element_size()
            key = batch, self._digests[reached]
            if key not in self._held and self.num_bytes + size <= self._limit:
                self._held[key] = self._turn, state
                self.num_bytes += size
                self.peak_bytes = max(self.peak_bytes, self.num_bytes)


def _digest_of(inputs: dict[str, Any]) -> str:
    """Returns what identifies the inputs of a forward pass and the precision in which it runs."""
    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        if isinstance(value, torch.Tensor):
            kind = value.device.type
            autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.device} {autocast}".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()
