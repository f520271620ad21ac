"""Names that other libraries keep to themselves, as far as models, configurations and their cards need them.

Each is used by one function here, which says what happens in a version that lacks it; those of the Trainer are in
`hf_headprune.callback.trainer_compat`. Importing this file touches none; `tests/test_compat.py` takes away each.
"""

from __future__ import annotations

import re
import sys
from collections import UserDict
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from types import CellType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from hf_headprune.errors import UnsupportedVersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

    Wrapper = Callable[[Callable[..., None]], Callable[..., None]]

SUPPORTED_TRANSFORMERS = "5.14 to 5.24"

# Transformers
NOT_SAVED = "_keys_to_ignore_on_save"
NOT_LOADED = "_keys_to_ignore_on_load_missing"
LOADED_FROM = "_name_or_path"  # a field of configurations; without it, there is nothing to leave out of a fingerprint
ATTENTION = "_attn_implementation"
RECORDABLE = "_can_record_outputs"
RECORDABLE_OF_ALL = "_CAN_RECORD_REGISTRY"
REGISTERED = "_extra_content"
LOOKED_UP_IN = "_model_mapping"
# accelerate
DISPATCHED = "_hf_hook"
HOOKED_FORWARD = "_old_forward"
UNWRAPPED_FORWARD = "_original_forward"
# sentence-transformers
CARD_WRITER = "_create_model_card"
WRITE_CARDS = ("SentenceTransformer", "CrossEncoder", "SparseEncoder")
# torch
DYNAMO, COMPILED = "torch._dynamo.utils", "counters"
HOOKS_BEFORE_FORWARD = "_forward_pre_hooks"
HOOKS = (HOOKS_BEFORE_FORWARD, "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
MOVERS = ("to", "cuda", "npu", "mlu", "sdaa", "musa", "xpu", "neuron")  # methods that accelerate puts in their place
LIBRARIES = frozenset({"torch", "transformers", "accelerate", "hf_headprune"})  # whose hooks a model can't do without


def unsupported(name: str, purpose: str) -> UnsupportedVersionError:
    """Returns the error for a name that an installed library no longer has and that nothing can stand for.

    Args:
        name: As it was looked for, with its owner.
        purpose: What it is needed for.
    """
    return UnsupportedVersionError(
        f"The installed libraries have no {name}, which is needed {purpose}. hf_headprune is tested with Transformers "
        f"{SUPPORTED_TRANSFORMERS}. Install one of these, or a newer hf_headprune."
    )


def is_older_than(version: str) -> bool:
    """Tells whether the installed Transformers comes before a version, such as "5.24"; candidates count as releases."""
    installed = re.match(r"\d+(\.\d+)*", metadata.version("transformers"))
    numbers = [int(part) for part in installed.group().split(".")] if installed else []
    return numbers < [int(part) for part in version.split(".")]


def names_not_saved(model: nn.Module) -> frozenset[str]:
    """Returns the weights that `save_pretrained` leaves out. Without the list of Transformers: none."""
    return frozenset(getattr(model, NOT_SAVED, None) or ())


def names_not_loaded(model: nn.Module) -> frozenset[str] | None:
    """Returns the weights that no checkpoint needs, since they follow from the configuration, as Marian's positions do.

    Without the list of Transformers: None, for unknown.
    """
    return frozenset(getattr(model, NOT_LOADED) or ()) if hasattr(model, NOT_LOADED) else None


def returns_attentions(config: Any) -> bool:
    """Tells whether the attention of a model returns its probabilities. If nothing says so: no."""
    return getattr(config, ATTENTION, None) == "eager"


def let_record_outputs_(model_class: type[Any]) -> None:
    """Lets models that have become instances of a class return attentions and hidden states, as if it had made them.

    Transformers registers what a class can record when it constructs a model. Without that registry: does nothing.
    """
    registry = getattr(sys.modules.get("transformers.utils.output_capturing"), RECORDABLE_OF_ALL, None)
    recordable = getattr(model_class, RECORDABLE, None)
    if isinstance(registry, dict) and recordable is not None:
        dict.__setitem__(registry, str(model_class), recordable)  # its own __setitem__ takes models, from 5.2x on


class _MadeOnDemand(UserDict[Any, Any]):
    """A dictionary in which a function without arguments stands for a value until the value is asked for."""

    def __getitem__(self, key: Any) -> Any:
        value = self.data[key]
        if isinstance(value, partial):
            value = self.data[key] = value()
        return value


class _StandIn:
    """Is called, and looked at, in place of a class that is made when that happens for the first time."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._make()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)


def register_on_demand_(mapping: Any, key: Any, make: Callable[[], Any]) -> None:
    """Registers a class in a mapping of the Auto classes, in place, without making it before it is asked for.

    Without the dictionary in which Transformers keeps what was registered: something that stands for the class is in
    the mapping. Models, configurations and tokenizers are read through it all the same.

    Args:
        mapping: Such as `CONFIG_MAPPING`, `MODEL_MAPPING` or `TOKENIZER_MAPPING`.
        key: What leads to it: a model type, or a class of configurations.
        make: Returns the class, the same one each time.
    """
    registered = getattr(mapping, REGISTERED, None)
    if isinstance(registered, dict):
        registered = _MadeOnDemand(registered)
        setattr(mapping, REGISTERED, registered)
    if isinstance(registered, _MadeOnDemand):
        registered[key] = partial(make)
    if key not in mapping:
        mapping.register(key, _StandIn(make), exist_ok=True)


def part_of_cache(cache: Any, name: str) -> Any:
    """Returns a part of the key-value cache of an encoder-decoder model.

    Raises:
        UnsupportedVersionError: The cache calls its parts something else.
    """
    if not hasattr(cache, name):
        raise unsupported(f"{type(cache).__name__}.{name}", "to generate with a block that has lost all its heads")
    return getattr(cache, name)


def is_dispatched(model: nn.Module) -> bool:
    """Tells whether accelerate has spread a model over devices. Without its hooks, the weights say so."""
    if any(True for module in model.modules() for _ in accelerate_hooks(module)):
        return True
    return hasattr(model, "hf_device_map") and len({parameter.device for parameter in model.parameters()}) > 1


def accelerate_hooks(module: nn.Module) -> tuple[Any, ...]:
    """Returns the hooks with which accelerate moves the inputs and the weights of a module. Without its name: none."""
    hook = vars(module).get(DISPATCHED)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def let_class_run_(module: nn.Module) -> None:
    """Lets a module whose class has changed run the forward pass of that class, inside the hooks of accelerate.

    accelerate remembers the forward pass that a module had. Without that name: does nothing.
    """
    if HOOKED_FORWARD in vars(module):
        setattr(module, HOOKED_FORWARD, type(module).forward.__get__(module))


def unwrap_forward_(model: nn.Module) -> None:
    """Takes off, in place, the wrapper that mixed precision puts around a model's forward method.

    On a copy of a model that accelerate has spread, the methods go that would still move the original.
    """
    is_spread = bool(accelerate_hooks(model))
    for name in MOVERS if is_spread else ("forward", UNWRAPPED_FORWARD):
        vars(model).pop(name, None)


@contextmanager
def lent_forward(owner: Any, model: Any) -> Iterator[None]:
    """Lets a copy run with the forward method that a Trainer has given the model of its run, as TRL's does.

    If that method calls the earlier one of the model of the run, it calls that of the copy instead. Where the model
    has the method of its class: does nothing.

    Args:
        owner: The model of the run.
        model: A copy of it, or the model itself.
    """
    given, kind = vars(owner).get(UNWRAPPED_FORWARD, vars(owner).get("forward")), type(owner)
    is_own = isinstance(given, MethodType) and given.__self__ is owner and given.__func__ is not kind.forward
    if model is owner or not is_own or "forward" in vars(model):
        yield
        return
    model.forward = _bound_to(given, owner, model)
    try:
        yield
    finally:
        unwrap_forward_(model)


def _bound_to(method: Any, owner: Any, model: Any) -> MethodType:
    """Returns a method with another model in the place of its owner, also where its function has kept that."""
    function = method.__func__
    cells = []
    for cell in function.__closure__ or ():
        kept = None if cell == CellType() else cell.cell_contents  # an empty one has none
        if isinstance(kept, MethodType) and kept.__self__ is owner:
            cells.append(CellType(MethodType(kept.__func__, model)))
        else:
            cells.append(CellType(model) if kept is owner else cell)
    bound = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    vars(bound).update(vars(function))
    return MethodType(bound, model)


@contextmanager
def traced_anew() -> Iterator[None]:
    """Lets torch trace inside of the block, and again after it, what it has compiled: hooks come and go there.

    What is compiled may be a function or a wrapper that no model knows of. Where torch does not say whether anything
    is, everything is traced anew.
    """
    _forget_compiled()
    try:
        yield
    finally:
        _forget_compiled()


def _forget_compiled() -> None:
    utils = sys.modules.get(DYNAMO)
    if utils is not None and (not hasattr(utils, COMPILED) or getattr(utils, COMPILED)["frames"]):
        sys.modules["torch"].compiler.reset()


def hooks_before_forward(module: nn.Module) -> Iterable[Any]:
    """Returns the forward pre-hooks of a module. Without torch's list: none."""
    return tuple(getattr(module, HOOKS_BEFORE_FORWARD, {}).values())


def drop_hooks_(model: nn.Module) -> None:
    """Takes every hook of the user's own off a model's modules, in place. Without torch's lists: none."""
    for module in model.modules():
        for name in HOOKS:
            hooks = getattr(module, name, {})
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__module__", None) or type(hook).__module__
                if owner.partition(".")[0] not in LIBRARIES:
                    del hooks[key]


def classes_by_auto_class(auto: Any, config_class: type[Any]) -> dict[str, type[Any]]:
    """Returns, by the name of each Auto class, the class of models that it makes from a configuration.

    Without the mappings in which the Auto classes look: none, and then no code can be written that they would run.

    Args:
        auto: The module of the Auto classes.
        config_class: Of the configuration.
    """
    found: dict[str, type[Any]] = {}
    for name, auto_class in vars(auto).items():
        mapping = getattr(auto_class, LOOKED_UP_IN, None) if name.startswith("Auto") else None
        if mapping is not None and config_class in mapping:
            classes = mapping[config_class]
            found[name] = classes[0] if isinstance(classes, tuple | list) else classes
    return found


def wrap_card_writers_(writing: Wrapper, saving: Wrapper) -> None:
    """Wraps, once, what writes the model cards of sentence-transformers, if the package is in use.

    Its models save the modules inside first and then write a card over the one that came with them; there is no hook
    for it. A version that writes no cards in this way is left unchanged: then its card has no section of ours.

    Args:
        writing: Wraps the method that writes a card.
        saving: Wraps the method that saves a model, and may be asked for no card.
    """
    package = sys.modules.get("sentence_transformers")
    for kind in filter(None, (getattr(package, name, None) for name in WRITE_CARDS)):
        owner = next((it for it in kind.__mro__ if CARD_WRITER in vars(it)), None)
        if owner is not None and not hasattr(vars(owner)[CARD_WRITER], "__wrapped__"):
            setattr(owner, CARD_WRITER, writing(vars(owner)[CARD_WRITER]))
            if "save" in vars(owner):
                owner.save = saving(owner.save)
