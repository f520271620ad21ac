"""Close units in a live model, reversibly: same shapes, the closed units contribute exactly zero.

A unit is closed at the input of its site's output projection, where its contribution is still separate from that
of the other units. Closing it there equals cutting it out (see `hf_headprune.shrink.surgery`).
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from hf_headprune._compat import drop_hooks_, hooks_before_forward, traced_anew, unwrap_forward_
from hf_headprune._offloaded import device_of, shared_by_copies
from hf_headprune._ownership import owned
from hf_headprune.anatomy import anatomy_of, base_model, family_of
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.plan import check_plan, refitted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle

    from hf_headprune.anatomy import Site
    from hf_headprune.plan import PlanOrResult


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """Lets a hook keep what it makes, also while whoever runs the model is inside of `torch.inference_mode()`.

    What is made there could never take part in training, nor be changed in place outside.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


class UnitScale:
    """Forward pre-hook of an output projection: multiplies the slice of each unit by a factor.

    Attributes:
        scale: Factors of shape `(units,)`, or None to leave the input alone. Whoever attached the hook may change it
            at any time; gradients reach it when it requires them.
        unit_width: Columns per unit.
    """

    def __init__(self, unit_width: int, scale: torch.Tensor | None = None) -> None:
        """Stores the width of a unit and its first factors."""
        self.unit_width = unit_width
        self.scale = scale

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the factors without their graph, which torch refuses to copy."""
        return {"unit_width": self.unit_width, "scale": None if self.scale is None else self.scale.detach()}

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Scales the first argument, of shape `(..., units * unit_width)`."""
        if self.scale is None:
            return None
        hidden = args[0]
        scale = self.scale.to(dtype=hidden.dtype, device=hidden.device)
        if self.unit_width > 1:
            scale = scale.repeat_interleave(self.unit_width)  # (units * unit_width,)
        return (hidden * scale, *args[1:])


class BeforeEveryPass:
    """Calls a function once before each pass through the layers of a model, whoever starts it.

    Generation runs the encoder and the decoder by themselves, and a decoder alone has no base model that runs.
    """

    def __init__(self, refresh: Callable[[], None]) -> None:
        """Stores the function."""
        self._refresh = refresh
        self._is_inside = False

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Hooks the base model and every module that runs a stack of layers; returns what removes the hooks."""
        base = base_model(model)
        handles = [
            base.register_forward_pre_hook(self._enter),
            base.register_forward_hook(self._leave, always_call=True),
        ]
        modules = dict(base.named_modules())
        runners = {stack.runner for stack in family_of(model).stacks} - {""}
        return handles + [
            modules[name].register_forward_pre_hook(self._enter_alone) for name in sorted(runners & modules.keys())
        ]

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._refresh_now()
        self._is_inside = True

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._is_inside = False

    def _enter_alone(self, module: nn.Module, args: Any) -> None:
        if not self._is_inside:
            self._refresh_now()

    def _refresh_now(self) -> None:
        with lasting_tensors():
            self._refresh()


class TemporaryPart(nn.Module):
    """A module that joins a base model for the length of a training, to score and mask its units.

    A model is cut without it: `hf_headprune.shrink` refuses one that carries any.

    Attributes:
        part: What the argument of `HeadPruneCallback` is called that asks for it.
    """

    part: ClassVar[str]

    @classmethod
    def module_name(cls) -> str:
        """Returns its name below the base model, and so in checkpoints."""
        return f"headprune_{cls.part}"

    def join(self, model: nn.Module) -> None:
        """Becomes a submodule of the base model, in its mode and on its device."""
        base_model(model).add_module(self.module_name(), self)
        self.train(model.training).to(next(model.parameters()).device)

    def leave(self, model: nn.Module) -> None:
        """Stops being a submodule."""
        delattr(base_model(model), self.module_name())


def temporary_parts(model: nn.Module) -> list[TemporaryPart]:
    """Returns the modules that joined a model for a training and have not left it."""
    return [module for module in base_model(model).children() if isinstance(module, TemporaryPart)]


def attach(model: nn.Module, site: Site, hook: UnitScale) -> RemovableHandle:
    """Attaches a scale to the output projection of one site and returns the handle that removes it."""
    return base_model(model).get_submodule(site.output).register_forward_pre_hook(hook)


def is_scaled(module: nn.Module) -> bool:
    """Tells whether something closes or scales units at the input of a module."""
    return any(isinstance(hook, UnitScale) and hook.scale is not None for hook in hooks_before_forward(module))


def check_whole(model: nn.Module, where: str) -> None:
    """Refuses a model whose units something closes or scales: what it answers is not what its weights will answer.

    Raises:
        UnsupportedModelError: It is inside of `masked`, was copied there, or carries gates of a training.
    """
    if any(map(is_scaled, model.modules())):
        raise UnsupportedModelError(
            f"{where}: the {type(model).__name__} carries gates or a mask, so it answers otherwise than its weights "
            "will once they are saved. Pass it outside of masked(...), no copy that was made inside; or prune it: "
            "prune_model_(model, plan)."
        )


@contextmanager
def masked(model: nn.Module, plan: PlanOrResult) -> Iterator[nn.Module]:
    """Closes the units that a plan removes, for the length of a `with` block.

    The model keeps its shapes and its training mode; leaving the block restores it, after an error too. Closed units
    take no part in the output and receive no gradient from it. Blocks may be nested, and then close what either does.
    Every thread that runs the model meanwhile sees it closed; to have it whole there, mask a copy. A copy that is made
    inside of the block stays closed for good.

    Args:
        model: Live model of the anatomy that the plan was made for.
        plan: What is open; with a result, its refitted weights stand in for the length of the block.

    Yields:
        The model itself.

    Raises:
        InvalidPlanError: The plan does not fit the model.
        ModelInUseError: Another thread masks, searches, prunes or trains this very model.
    """
    anatomy = anatomy_of(model)
    plan, refit = (found := refitted(plan)).plan, found.refit
    check_plan(plan, anatomy)
    device = device_of(model)
    with ExitStack() as stack:
        stack.enter_context(owned(model, "masked"))
        stack.enter_context(traced_anew())
        if refit is not None:
            stack.enter_context(refit.restoring(model))
            refit.apply_(model, plan)
        for site in anatomy.sites:
            kept = plan.kept(site.name)
            if len(kept) < site.units:
                scale = torch.zeros(site.units, device=device)
                scale[list(kept)] = 1.0
                stack.callback(attach(model, site, UnitScale(site.unit_width, scale)).remove)
        yield model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switches a model to evaluation without gradients, and each of its modules back afterwards.

    Raises:
        ModelInUseError: It is to be switched while another thread changes it.
    """
    modes = [(module, module.training) for module in model.modules()]
    changes = any(mode for _, mode in modes)  # else several threads may run it together
    with owned(model, "an evaluation") if changes else nullcontext(), torch.no_grad():
        try:
            yield model.eval() if changes else model
        finally:
            for module, mode in modes if changes else ():
                module.training = mode


def plain_copy(model: Any) -> Any:
    """Copies a model, in evaluation mode, as it would be read again.

    Without the wrapper that mixed precision put around its forward method, and without hooks of the user's, which no
    saved model has. What can't be copied, such as a lock or a generator that a module holds, both share; activations
    that a module holds are copied without their graph. Of a model that is spread over devices both share the weights.
    """
    try:
        twin = copy.deepcopy(model, shared_by_copies(model))
    except Exception:  # noqa: BLE001 - whatever an attribute of the user's raises, its weights can be copied
        twin = copy.deepcopy(model, shared_by_copies(model) | _taken_as_it_is(model))
    unwrap_forward_(twin)
    drop_hooks_(twin)
    return twin.eval()


def _taken_as_it_is(model: nn.Module) -> dict[int, Any]:
    """Returns, by identity as `deepcopy` takes it, what stands for the attributes of modules that can't be copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in list(vars(module).values()):
            for part in _parts_of(value):
                if isinstance(part, torch.Tensor) and not part.is_leaf:
                    memo[id(part)] = part.detach()
            if any(isinstance(part, nn.Module | nn.Parameter) for part in _parts_of(value)):
                continue
            for part in (*_parts_of(value), value):  # what is inside first, so that a list of locks is still copied
                try:
                    copy.deepcopy(part, dict(memo))
                except Exception:  # noqa: BLE001 - as above
                    memo[id(part)] = part
    return memo


def _parts_of(value: Any, depth: int = 0) -> list[Any]:
    """Returns what is in nested lists, tuples and dicts; anything else is its only part."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else None
    if inside is None or depth > _DEEPEST:
        return [value]
    return [part for item in list(inside) for part in _parts_of(item, depth + 1)]


_DEEPEST = 4
