"""What a model allows of the shortcuts through its layers: tried on real inputs, not declared."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from hf_headprune.anatomy import base_model
from hf_headprune.plan import PruningPlan
from hf_headprune.search.evaluation.layers import logits_in

if TYPE_CHECKING:
    from torch import nn

    from hf_headprune.search.evaluation.layers import Inputs, LayerStack

ROUNDINGS = 1000  # of the largest logit: in fp32 far more than two orders of a sum differ by, and far less than a head


class ModelCapabilities:
    """What the layers of a model allow, each tried on real inputs; the model is left as it was by each trial."""

    def __init__(self, stack: LayerStack) -> None:
        """Keeps the stack."""
        self._stack = stack

    def is_resumable(self, inputs: Inputs) -> bool:
        """Tells whether entering at any layer gives the very bits of a whole forward pass."""
        if not self._stack.has_one_list or not self._hands_states_on(inputs):
            return False
        expected = self._stack.outputs(inputs)
        states = self._stack.states(inputs, 0, self._stack.depth - 1)
        twice = [*states.items()] * 2  # the second time shows whether a state was changed in place
        same = all(_are_equal(self._stack.outputs(inputs, first, state), expected) for first, state in twice)
        partial = self._stack.states(inputs, 1, self._stack.depth - 1, states.get(1)) if self._stack.depth > 1 else {}
        return same and all(torch.equal(state, states[place]) for place, state in partial.items())

    def reads_first_token(self, inputs: Inputs) -> bool:
        """Tells whether the logits depend on the last layer's output through its first token alone."""
        outputs: list[torch.Tensor] = []

        def leaf(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
            outputs.append(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        with ExitStack() as stack, torch.enable_grad():
            stack.callback(self._stack.layers[-1].register_forward_hook(leaf).remove)
            logits = logits_in(self._stack.outputs(inputs))
            weights = torch.arange(1.0, logits.numel() + 1, device=logits.device).reshape(logits.shape)
            (gradient,) = torch.autograd.grad((logits * weights.to(logits.dtype)).sum(), outputs)
        if gradient.dim() != 3 or not gradient[:, 0].any() or gradient[:, 1:].any():  # noqa: PLR2004
            return False
        with self._stack.first_token_only():
            return torch.allclose(logits_in(self._stack.outputs(inputs)), logits.detach(), rtol=1e-4, atol=1e-5)

    def can_take_out(self, inputs: Inputs) -> bool:
        """Tells whether taking units out of the products gives what closing them gives, up to round-off.

        In bf16 round-off hides all but shapes that don't fit.
        """
        plan = self._trial_plan()
        with self._stack.attached():
            self._stack.close(plan)
            closed = logits_in(self._stack.outputs(inputs))
            try:
                self._stack.take_out(plan)
                taken = logits_in(self._stack.outputs(inputs))
            except RuntimeError:  # shapes that do not follow from the projections
                return False
        return self._are_equal_up_to_rounding(taken, closed)

    def computes_in_full_precision(self, inputs: Inputs) -> bool:
        """Tells whether products are computed in fp32 or fp64; autocast may come from a wrapped forward."""
        kinds: list[torch.dtype] = []
        output = next(site.output for site in self._stack.anatomy.sites if site.units)
        module = base_model(self._stack.model).get_submodule(output)
        with ExitStack() as stack:
            stack.callback(module.register_forward_hook(lambda *given: kinds.append(given[-1].dtype)).remove)
            self._stack.model(**inputs)
        return all(kind in (torch.float32, torch.float64) for kind in kinds)

    def _trial_plan(self) -> PruningPlan:
        """Returns a plan that removes a unit of every site."""
        full = PruningPlan.full(self._stack.anatomy)
        return full.replace(
            kept_heads={site: sum(full.groups(site)[:-1], ()) for site in full.num_heads},
            kept_ffn={site: range(1, count) for site, count in full.num_ffn.items()},
        )

    def _are_equal_up_to_rounding(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        scale = float(expected.abs().amax()) * torch.finfo(next(self._stack.model.parameters()).dtype).eps
        return bool((found.float() - expected.float()).abs().amax() <= ROUNDINGS * scale)

    def _hands_states_on(self, inputs: Inputs) -> bool:
        """Tells whether each layer is called once, with the output of the layer before as its first argument."""
        seen: list[tuple[Any, Any]] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            seen.append((args[0] if args else None, output))

        with ExitStack() as stack:
            for layer in self._stack.layers:
                stack.callback(layer.register_forward_hook(look).remove)
            self._stack.model(**inputs)
        outputs = [output[0] if isinstance(output, tuple) else output for _, output in seen]
        handed = all(given is before for (given, _), before in zip(seen[1:], outputs, strict=False))
        return len(seen) == self._stack.depth and handed and all(isinstance(given, torch.Tensor) for given, _ in seen)


def _are_equal(output: Any, other: Any) -> bool:
    """Tells whether two outputs of a model hold the same bits, tensor by tensor."""
    if isinstance(output, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(output, other)
    if isinstance(output, dict):
        return output.keys() == other.keys() and all(_are_equal(output[name], other[name]) for name in output)
    if isinstance(output, tuple):
        return len(output) == len(other) and all(map(_are_equal, output, other))
    return output is None and other is None
