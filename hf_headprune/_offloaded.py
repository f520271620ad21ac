"""Weights that accelerate keeps in memory or on disk and loads while a module runs (`device_map`, offloading).

Between uses they are on the meta device. Here they are read, replaced and copied one at a time, so that no more of a
model is in memory than one of its modules. What takes the place of a weight on disk is on disk, too: a mapped file,
whose pages the operating system drops when memory is short. What FSDP2 has split over processes is read and replaced
here, too.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune._compat import accelerate_hooks
from hf_headprune._distributed import is_part, part_like, whole

if TYPE_CHECKING:
    from collections.abc import Callable


def device_of(model: nn.Module) -> torch.device:
    """Returns the device on which a model takes its inputs; "meta" where it has no weights anywhere."""
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
    keepers = (keeper_of(module) for module in model.modules())
    found = next((keeper.execution_device for keeper in keepers if keeper is not None), None)
    return next(model.parameters()).device if found is None else torch.device(found)


def is_offloaded(model: nn.Module) -> bool:
    """Tells whether some weights of a model are loaded only while they are used."""
    return any(keeper_of(module) is not None for module in model.modules())


def keeper_of(module: nn.Module) -> Any:
    """Returns the hook that loads the weights of a module and frees them; None where they are always there."""
    return next((hook for hook in accelerate_hooks(module) if getattr(hook, "offload", False)), None)


def tensor_of(module: nn.Module, name: str) -> torch.Tensor:
    """Returns a weight of a module, to be read only, from where it is kept; of what is split, in every process."""
    here, keeper = getattr(module, name), keeper_of(module)
    return whole(here).detach() if keeper is None or not here.is_meta else keeper.weights_map[name].to(here.dtype)


def put_(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Gives a weight of a module another value, in place, where it is kept; also one of another shape."""
    here, keeper = getattr(module, name), keeper_of(module)
    if is_part(here):
        here.data.copy_(part_like(tensor, here))
        return
    if keeper is not None:
        keeper.weights_map = _Replaced(keeper.weights_map, {name: as_kept(module, tensor)})
        tensor = torch.empty_like(tensor, device="meta")
    if tensor.shape == here.shape:
        here.data = tensor
    else:
        setattr(module, name, nn.Parameter(tensor, requires_grad=here.requires_grad))


def as_kept(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Moves a tensor to where the weights of a module are kept: a device, the memory, or a file that is mapped."""
    is_here = keeper_of(module) is None
    return tensor.to(next(module.parameters()).device) if is_here else off_device(module, tensor)


def off_device(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Moves a tensor into memory, or into a file where the weights of a module are on disk."""
    keeper = keeper_of(module)
    folder = None if keeper is None else _folder_of(keeper.weights_map)
    return tensor.cpu() if folder is None else mapped(tensor, folder)


def contents_of(module: nn.Module) -> dict[str, Any]:
    """Returns the weights of a module as `put_contents_` takes them back; nothing is copied."""
    keeper = keeper_of(module)
    if keeper is not None:
        return {"": keeper.weights_map}
    return {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}


def put_contents_(module: nn.Module, contents: Mapping[str, Any]) -> None:
    """Gives a module back, in place, what `contents_of` has returned."""
    keeper = keeper_of(module)
    if keeper is not None:
        keeper.weights_map = contents[""]
        return
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = contents[name]


def folder_of(model: nn.Module) -> Path | None:
    """Returns the folder in which weights of a model are kept; None where all are in memory."""
    keepers = (keeper_of(module) for module in model.modules())
    found = (_folder_of(keeper.weights_map) for keeper in keepers if keeper is not None)
    return next((folder for folder in found if folder is not None), None)


def mapped(tensor: torch.Tensor, folder: Path) -> torch.Tensor:
    """Returns a tensor as it is in a file without a name, which goes when the tensor does.

    Raises:
        OSError: The file can't be written.
    """
    if not tensor.numel():
        return tensor.cpu()
    plain = tensor.detach().cpu().contiguous()
    with tempfile.NamedTemporaryFile(dir=folder, prefix="headprune-", suffix=".dat", delete=False) as file:
        plain.view(-1).view(torch.uint8).numpy().tofile(file)
        name = file.name
    try:
        return torch.from_file(name, shared=True, size=plain.numel(), dtype=plain.dtype).view(plain.shape)
    finally:
        with suppress(PermissionError):  # where a file that is mapped has to stay, its folder is cleared by its owner
            Path(name).unlink()


def let_go_(model: nn.Module) -> None:
    """Lets each module of a model, in place, hold on to its own weights alone, so that those that go leave memory.

    accelerate keeps all weights of a model in one dictionary, which lives as long as any module.
    """
    emptied: dict[int, Any] = {}
    for module in model.modules():
        keeper = keeper_of(module)
        source = None if keeper is None else getattr(keeper.weights_map, "dataset", None)
        state = source if isinstance(source, dict) else getattr(source, "state_dict", None)
        if keeper is None or not state:
            continue
        prefix, tensors = keeper.weights_map.prefix, (module.named_parameters, module.named_buffers)
        own = [name for named in tensors for name, _ in named(recurse=False) if prefix + name in state]
        if id(source) not in emptied:
            emptied[id(source)] = {} if isinstance(source, dict) else copy.copy(source)
            if not isinstance(source, dict):
                emptied[id(source)].state_dict = {}
        rest = copy.copy(keeper.weights_map)
        rest.dataset = emptied[id(source)]
        keeper.weights_map = _Replaced(rest, {name: state[prefix + name] for name in own})


def tie_again_(model: nn.Module) -> None:
    """Ties the weights of a model that each use has made other objects, in place, so that they are saved once."""
    present = dict(model.named_parameters(remove_duplicate=False))
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        if name in present and source in present and present[name].is_meta and present[source].is_meta:
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, present[source])


def shared_by_copies(model: nn.Module) -> dict[int, Any]:
    """Returns, by identity as `deepcopy` takes it, what a copy of a model spread over devices shares with it.

    The copy has parameters and hooks of its own, and no weight is in memory twice.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for hook in accelerate_hooks(module):
            held = getattr(hook, "weights_map", None)
            memo |= {} if held is None else {id(held): held}
    if not any(True for module in model.modules() for _ in accelerate_hooks(module)):
        return memo
    memo |= {id(it): nn.Parameter(it.data, requires_grad=it.requires_grad) for it in model.parameters()}
    return memo | {id(it): it.detach() for it in model.buffers()}


@contextmanager
def reloading(model: nn.Module) -> Iterator[None]:
    """Lets backward passes load weights again, for the length of a `with` block, in place of holding all of them.

    Weights that are offloaded get no gradient meanwhile: the graph would hold those that do.
    """
    keepers = {module: keeper for module in model.modules() if (keeper := keeper_of(module)) is not None}
    if not keepers:
        yield
        return
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    def pack(tensor: torch.Tensor) -> Any:
        return _again(running[-1], tensor) if running else tensor

    def unpack(saved: Any) -> torch.Tensor:
        return saved if isinstance(saved, torch.Tensor) else saved()

    learning = [(module, name) for module in keepers for name in _learning(module)]
    with ExitStack() as stack:
        stack.callback(_set_learning_, learning, True)
        _set_learning_(learning, False)
        for module in keepers:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
        yield


def _learning(module: nn.Module) -> list[str]:
    """Returns the names of a module's own parameters that get a gradient."""
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad]


def _set_learning_(parameters: list[tuple[nn.Module, str]], value: bool) -> None:  # noqa: FBT001 - the value itself
    for module, name in parameters:
        getattr(module, name).requires_grad_(value)


def _again(module: nn.Module, saved: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
    """Returns what makes a view of a module's weight anew, or what is saved itself where it is no such view."""
    storage = saved.untyped_storage().data_ptr()
    for name, weight in module.named_parameters(recurse=False):
        if weight.is_meta or weight.untyped_storage().data_ptr() != storage:
            continue
        start = int(saved.storage_offset() - weight.storage_offset())
        if 0 <= start < weight.numel():
            return partial(_view, module, name, saved.device, saved.shape, saved.stride(), start)
    return saved


def _view(module: nn.Module, name: str, device: torch.device, shape: Any, stride: Any, start: Any) -> torch.Tensor:
    """Loads a weight, and returns the view of it that begins at an entry."""
    loaded = tensor_of(module, name).to(device)
    return loaded.as_strided(shape, stride, loaded.storage_offset() + start)


class Weights(Mapping[str, torch.Tensor]):
    """The state dict of a model, of which each weight is read when it is asked for."""

    def __init__(self, model: nn.Module) -> None:
        """Notes the names."""
        self._model = model
        self._state = model.state_dict()

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns a weight, to be read only."""
        owner, _, own = name.rpartition(".")
        found = self._state[name]
        return tensor_of(self._model.get_submodule(owner), own) if _is_meta(found) else found

    def __iter__(self) -> Iterator[str]:
        """Goes through the names."""
        return iter(self._state)

    def __len__(self) -> int:
        """Returns the number of weights."""
        return len(self._state)


class _Replaced(Mapping[str, torch.Tensor]):
    """Weights of a module of which some have another value."""

    def __init__(self, before: Mapping[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
        earlier = before if isinstance(before, _Replaced) else None
        self.before: Any = before if earlier is None else earlier.before
        self.own: dict[str, torch.Tensor] = own if earlier is None else {**earlier.own, **own}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.own[name] if name in self.own else self.before[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self.before), **self.own})

    def __len__(self) -> int:
        return len({*self.before, *self.own})


def _folder_of(weights: Mapping[str, torch.Tensor]) -> Path | None:
    """Returns the folder in which weights are kept; None where they are in memory."""
    before: Any = weights.before if isinstance(weights, _Replaced) else weights
    source: Any = getattr(before, "dataset", before)
    index = getattr(source, "index", {})
    if not any(name in index and name not in source.state_dict for name in before):
        return None
    folder = source.save_folder
    return Path(tempfile.gettempdir() if folder is None else folder)


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta
