"""Classes of pruned models, one for each task class of every declared family, generated when they are first asked for.

A class builds the skeleton of its dense class and resizes it to its configuration, so that no model code is copied.
`from_pretrained` builds it without memory; nothing is wasted.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import HfApi, create_branch, create_repo, upload_folder
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_headprune._beside_weights import WEIGHTS, folder_at, older_weights_removed, write_text
from hf_headprune._certificate_file import attach_saved_certificate_, write_certificate_
from hf_headprune._compat import let_record_outputs_, names_not_loaded
from hf_headprune._model_card import (
    CARD_NAME,
    attach_saved_card_,
    card_on_hub,
    remove_code_from_card_,
    tag_card_,
    write_card_,
)
from hf_headprune._offloaded import is_offloaded, tie_again_
from hf_headprune.anatomy import anatomy_of, base_model, family_of, layer_lists, towers_of
from hf_headprune.errors import (
    HeadPruneError,
    InvalidConfigError,
    InvalidSettingError,
    UnsupportedModelError,
    in_one_line,
    shown,
)
from hf_headprune.families import FAMILIES, PRUNABLE_PREFIX
from hf_headprune.shrink.adapters import check_adapter_fits, stale_adapter
from hf_headprune.shrink.config import check_numbers, config_names, prunable_config
from hf_headprune.shrink.description import is_of_some_tasks
from hf_headprune.shrink.remote_code import attach_auto_map_, travels, write_code_
from hf_headprune.shrink.resize import cut_site_
from hf_headprune.shrink.saved_dtypes import codes_among
from hf_headprune.shrink.saved_plan import attach_saved_plan_, remove_other_plan_, write_plan_
from hf_headprune.shrink.self_contained import align_weights_
from hf_headprune.shrink.shared_bias import write_heads_of_bias_

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn

    from hf_headprune.anatomy import Site

WHERE = ("cache_dir", "local_files_only", "revision", "subfolder", "token")  # arguments of `from_pretrained`
SHARDS = "model-*-of-*.safetensors"
SOURCE_OF_SIZES = "Load a checkpoint with the config.json that was saved with it."
_CLASSES: dict[str, type[Any]] = {}
OWN = "headprune_prunable"  # attribute of a class of the user's that holds its prunable sibling
DEVICE_MAP = "hf_device_map"  # attribute with which Transformers notes where parts of a model are
SHARD_OF_OFFLOADED = "2GB"
NEW_HEAD = "For a fresh head, for another task, pass ignore_mismatched_sizes=True."


class PrunableModel:
    """What all generated model classes share; mixed into the dense class of each task."""

    config_class: type[Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Builds the dense skeleton and resizes it to the configuration.

        Raises:
            InvalidConfigError: The configuration is of another class or breaks a rule.
        """
        if not isinstance(config, self.config_class):
            raise InvalidConfigError(
                f"{type(self).__name__}: the configuration must be a {self.config_class.__name__}, received a "
                f"{type(config).__name__} of {type(config).__module__}. Build the dense model and call prune_model_, "
                f"or pass a {self.config_class.__name__} with per_layer_config: AutoConfig reads one after `import "
                "hf_headprune`. Before that, trust_remote_code=True reads the code of the checkpoint, whose classes "
                "go together."
            )
        check_numbers(config)
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        resize_to_config_(self)  # type: ignore[arg-type] # every class that this is mixed into is a model
        adopt_classes_(self)  # type: ignore[arg-type]

    def initialize_weights(self) -> None:
        """Initialises as Transformers does, and writes what no checkpoint has said about a shared bias."""
        super().initialize_weights()  # type: ignore[misc]
        write_heads_of_bias_(self)  # type: ignore[arg-type] # it is a model

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Loads as torch does, and refuses the weights of an adapter that was made for another shape.

        Raises:
            UnsupportedModelError: See `check_adapter_fits`.
        """
        check_adapter_fits(self, state_dict, prefix)  # type: ignore[arg-type] # it is a model
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Loads an adapter of PEFT as Transformers does, and refuses one that was made for another shape.

        Raises:
            UnsupportedModelError: Not all of its weights have a place in this model.
        """
        try:
            info = super().load_adapter(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            if "mismatch" not in str(error):
                raise
            raise stale_adapter(self, ["weights have other shapes"]) from error
        unexpected = sorted(getattr(info, "unexpected_keys", ()))
        if unexpected:
            raise stale_adapter(self, [f"{name} has no place in it" for name in unexpected])
        return info

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads as Transformers does, and refuses weights that don't match the configuration.

        A plan and a certificate beside the weights stay with them: `save_pretrained` writes the plan again, and the
        certificate where the weights are the same.

        Args:
            pretrained_model_name_or_path: As in Transformers.
            *args: As in Transformers.
            **kwargs: As in Transformers. `ignore_mismatched_sizes` concerns the task head alone: a layer whose weights
                don't match would otherwise be initialised at random without a word.

        Raises:
            InvalidConfigError: A weight is missing, left over, or of another shape, or the configuration can't be read;
                the message names what is wrong.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        accepts_new_head = kwargs.pop("ignore_mismatched_sizes", False)
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
            )
        except HeadPruneError:
            raise
        except Exception:
            if kwargs.get("config") is None:
                check_config(cls, pretrained_model_name_or_path, kwargs)
            raise  # the configuration is not what failed
        codes = [*codes_among(model, pretrained_model_name_or_path, kwargs)]
        problems = sorted([*_weight_problems(model, info, accepts_new_head=accepts_new_head), *codes])
        if problems:
            if words := _both_towers(cls, pretrained_model_name_or_path, kwargs):
                raise InvalidConfigError(f"{cls.__name__}: {words}")
            is_head_alone = not codes and not any(_weight_problems(model, info, accepts_new_head=True))
            raise InvalidConfigError(
                f"{cls.__name__}: the weights don't match the configuration: {'; '.join(problems)}. "
                f"{NEW_HEAD if is_head_alone else SOURCE_OF_SIZES}"
            )
        align_weights_(model)
        attach_saved_plan_(model, pretrained_model_name_or_path, kwargs)
        attach_saved_certificate_(model, pretrained_model_name_or_path, kwargs)
        attach_saved_card_(model, pretrained_model_name_or_path, kwargs)
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,  # noqa: FBT001, FBT002 - as in Transformers
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,  # noqa: FBT001, FBT002
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Saves as Transformers does, with the plan of the model, the certificate of its weights if any, and code.

        The code loads the checkpoint where this package is not installed, by `trust_remote_code=True`. A class of your
        own has none.

        Weights keep the names and shapes that the model has. Transformers would give some families those of the
        checkpoint that the dense model came from, which it can't read back for blocks of different sizes.

        Of weights that the folder holds already in one file or several, none remain that would be loaded instead.

        Of a model that is offloaded, one file of at most 2 GB after the other is in memory (`max_shard_size`).

        With `push_to_hub=True` the model is uploaded as its `push_to_hub` does it, and no other file of the folder.

        Raises:
            InvalidSettingError: The directory is a file; a `state_dict` or `variant` is to be uploaded; or a
                `state_dict` is that of a model of other sizes.
        """
        if push_to_hub and state_dict is not None:
            raise InvalidSettingError(
                f"{type(self).__name__}.save_pretrained: push_to_hub=True uploads the weights of the model, received a "
                "state_dict in place of them. Save it here, load the folder, and call push_to_hub on what was loaded."
            )
        if push_to_hub and kwargs.get("variant") is not None:
            raise InvalidSettingError(
                f"{type(self).__name__}.save_pretrained: push_to_hub=True uploads weights that are loaded without a "
                f"variant, received variant={shown(kwargs['variant'])}. Save it here, and upload the folder by "
                "huggingface_hub.upload_folder."
            )
        model: Any = self
        folder_at(save_directory, where="save_pretrained")
        _check_shapes(model, state_dict)
        options = _options_of_upload(kwargs)
        kwargs.setdefault("save_original_format", False)
        saved = None if state_dict is None else dict(state_dict)  # Transformers empties what it is given
        attach_auto_map_(model)
        if is_main_process:
            remove_other_plan_(model, save_directory)
        with _saved_in_parts(model, args, kwargs), older_weights_removed(save_directory, kwargs.get("variant")):
            super().save_pretrained(  # type: ignore[misc]
                save_directory, is_main_process, saved, False, *args, **kwargs
            )
        if not is_main_process:
            return
        write_plan_(model, save_directory)
        write_certificate_(model, save_directory, state_dict)
        write_card_(model, save_directory, state_dict)
        if travels(model):
            write_code_(model, save_directory)
        else:
            remove_code_from_card_(save_directory)
        if push_to_hub:
            model.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    def push_to_hub(self, repo_id: str, *, revision: str | None = None, **options: Any) -> Any:
        """Uploads what `save_pretrained` writes: weights, configuration, plan, certificate, code and card.

        A card that is on the Hub already is kept, with our section in place of an earlier one.

        Args:
            repo_id: Name on the Hub.
            revision: Branch; it is made where there is none.
            **options: As in Transformers: `commit_message`, `commit_description`, `private`, `token`, `create_pr`,
                `max_shard_size`, `tags`.

        Returns:
            The commit.

        Raises:
            InvalidSettingError: An option is none of these.
        """
        model: Any = self
        known = {*inspect.signature(HfApi.upload_folder).parameters, "private", "max_shard_size", "tags"}
        if unknown := sorted({*options} - (known - {"self", "folder_path"})):
            raise InvalidSettingError(
                f"{type(self).__name__}.push_to_hub: there are no such options, received {', '.join(unknown)}. Leave "
                "them out; help(type(model).push_to_hub) lists those that there are."
            )
        made = {name: options.pop(name) for name in ("private", "token") if name in options}
        token = made.get("token")
        repo_id = create_repo(repo_id, exist_ok=True, **made).repo_id
        if revision is not None and not revision.startswith("refs/"):
            create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        saved = {name: options.pop(name) for name in ("max_shard_size",) if name in options}
        tags = options.pop("tags", None) or []
        with TemporaryDirectory() as folder:
            write_text(Path(folder, CARD_NAME), card_on_hub(repo_id, token=token, revision=revision))
            model.save_pretrained(folder, **saved)
            write_card_(model, folder, name=repo_id)
            tag_card_(folder, tags)
            options.setdefault("commit_message", "Upload model")
            # Weights of an earlier upload, which may be in another number of files.
            options.setdefault("delete_patterns", [*WEIGHTS, SHARDS])
            return upload_folder(repo_id=repo_id, folder_path=folder, token=token, revision=revision, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing: each checkpoint is saved with the code that the Auto classes need, for all of them."""


def _check_shapes(model: Any, state_dict: Mapping[str, torch.Tensor] | None) -> None:
    """Sees that weights that are saved in place of the model's own are those of a model of its sizes.

    Raises:
        InvalidSettingError: They are not, so the checkpoint could not be loaded.
    """
    own = {} if state_dict is None else model.state_dict()
    for name, tensor in (state_dict or {}).items():
        shapes = [tuple(getattr(it, "shape", ())) for it in (own.get(name, tensor), tensor)]
        if shapes[0] != shapes[1] and 0 not in shapes[0]:  # empty where the weights are gathered from processes
            raise InvalidSettingError(
                f"{type(model).__name__}.save_pretrained: state_dict is of another model: {name} has shape {shapes[1]} "
                f"there and {shapes[0]} here. Pass the weights of this model, or leave state_dict out."
            )


@contextmanager
def _saved_in_parts(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Lets Transformers load one file of an offloaded model after the other; its options are changed in place."""
    if not is_offloaded(model):
        yield
        return
    if not args:
        kwargs.setdefault("max_shard_size", SHARD_OF_OFFLOADED)
    tie_again_(model)
    known = vars(model).get(DEVICE_MAP)
    # Transformers looks here for what is offloaded; accelerate's cpu_offload and disk_offload leave no map.
    model.hf_device_map = {"": "disk", **(known or {})}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")  # of 50 GB
            yield
    finally:
        if known is None:
            del model.hf_device_map
        else:
            model.hf_device_map = known


def _options_of_upload(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes what only an upload needs out of the options of `save_pretrained`, in place, and returns it."""
    own = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
    found = {name: kwargs.pop(name) for name in own if name in kwargs}
    return found | {name: kwargs[name] for name in ("token", "max_shard_size") if name in kwargs}


def check_config(kind: type[Any], source: Any, given: dict[str, Any]) -> None:
    """Reads a configuration and builds a model of it without memory; Transformers has many errors for a wrong one.

    Args:
        kind: Class of the model.
        source: Folder, or name on the Hub.
        given: Arguments of `from_pretrained`, of which those that say where to look are used.

    Raises:
        InvalidConfigError: That fails, for another reason than that there is no configuration.
    """
    try:
        config = kind.config_class.from_pretrained(source, **_places(given))
        if not isinstance(config.dtype, torch.dtype | str | None):
            raise TypeError(f"dtype is {config.dtype!r}")
        with torch.device("meta"):
            kind(config)
    except HeadPruneError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error.__context__, (UnicodeDecodeError, json.JSONDecodeError)):
            return  # there is no file, or it can't be opened
        words = in_one_line(error) or "no reason"
        raise InvalidConfigError(
            f"{kind.__name__}: config.json of {shown(str(source))} must be JSON of which Transformers builds a model, "
            f"received one that it refuses: {type(error).__name__}: {words}. {SOURCE_OF_SIZES}"
        ) from error


def _places(given: dict[str, Any]) -> dict[str, Any]:
    """Returns those arguments of `from_pretrained` that say where to look."""
    return {name: given[name] for name in WHERE if name in given}


def _both_towers(kind: type[Any], source: Any, given: dict[str, Any]) -> str:
    """Says how to get one tower of a checkpoint that holds both, where it does; else nothing."""
    if source is None:  # the weights are given, and no folder says what they are of
        return ""
    saved_type = kind.config_class.get_config_dict(source, **_places(given))[0].get("model_type")
    family = FAMILIES.get((saved_type or "").removeprefix(PRUNABLE_PREFIX))
    if family is None or not family.towers or family.model_type == kind.config_class.dense_class.model_type:
        return ""
    parts = " or ".join(f".{stack.tower}" for stack in family.stacks)
    return f"the checkpoint holds both towers of a {family.model_type}: load it by AutoModel, and take its {parts}."


def check_buildable(kind: type[Any], config: Any) -> None:
    """Builds a model of a configuration without memory, as reading its checkpoint will.

    Raises:
        UnsupportedModelError: Transformers can't.
    """
    try:
        with torch.device("meta"):
            kind(config)
    except Exception as error:
        raise UnsupportedModelError(
            f"{kind.__name__}: what would be saved could not be read again, since Transformers builds no model whose "
            f"blocks have so few heads ({type(error).__name__}: {in_one_line(error)}). Keep "
            "a head in each block of attention, or in one of each kind of layer."
        ) from error


def resize_to_config_(model: nn.Module) -> None:
    """Cuts a freshly built skeleton, in place, to the numbers of its configuration, keeping the first units."""
    config: Any = model.config
    base = base_model(model)
    for site in anatomy_of(model).sites:
        own = site.config_of(config)
        numbers = own.per_layer_config[site.layer] if own.is_heterogeneous else own
        cut_site_(base, site, site.first(numbers))


def adopt_classes_(model: nn.Module) -> None:
    """Turns a model, its base model and its towers, in place, into their `Prunable*` classes where they are dense."""
    for module in (model, base_model(model), *towers_of(model)):
        module.__class__ = prunable_of(type(module)) or type(module)


def prunable_class(model: nn.Module) -> type[Any]:
    """Returns the class that a model has after pruning, which may be its own.

    Raises:
        UnsupportedModelError: The model is a wrapper, and no model of Transformers or subclass of one.
    """
    family = family_of(model)
    if isinstance(model, PrunableModel):
        return type(model)
    found = prunable_of(type(model))
    if found is None:
        known = sorted(name for name, model_type in _dense_classes().items() if model_type == family.model_type)
        raise UnsupportedModelError(
            f"{type(model).__module__}.{type(model).__qualname__} has no prunable sibling, so it could not be loaded "
            f"again. Classes of this family that have one: {', '.join(known)}, and your own subclasses of its "
            "PreTrainedModel. Unwrap the model first (adapters, torch.compile, DataParallel), or prune its "
            "Transformers model."
        )
    return found


def prunable_of(dense_class: type[Any]) -> type[Any] | None:
    """Returns the prunable sibling of a class of Transformers, or of a subclass of the user's; None without one."""
    if dense_class.__name__ in _dense_classes():
        found = prunable_named(f"Prunable{dense_class.__name__}")
        if dense_class in found.__bases__:
            return found
    return _own_class(dense_class) if _is_own(dense_class) else None


def register_prunable(dense_class: type[Any]) -> type[Any]:
    """Returns the prunable sibling of a model class of your own, to load what was pruned of it.

    `prune_model_` and the callback make it themselves. A pruned checkpoint is read by
    `register_prunable(MyBert).from_pretrained(folder)`.

    Args:
        dense_class: Subclass of a family's `PreTrainedModel` (such as `BertPreTrainedModel`), or of one of its task
            classes, whose constructor takes the configuration alone. A class of Transformers has its sibling already,
            which is returned.

    Raises:
        UnsupportedModelError: It is no such class.
    """
    found = prunable_of(dense_class) if isinstance(dense_class, type) else None
    if found is None:
        raise UnsupportedModelError(
            f"register_prunable: pass a subclass of the PreTrainedModel of a supported family "
            f"({', '.join(sorted(FAMILIES))}), received {shown(dense_class)}."
        )
    return found


def _is_own(dense_class: type[Any]) -> bool:
    """Tells whether a class is one of the user's, on the body of a declared family."""
    if not issubclass(dense_class, PreTrainedModel) or issubclass(dense_class, PrunableModel):
        return False
    model_type = getattr(dense_class.config_class, "model_type", None)
    return model_type in FAMILIES and not dense_class.__module__.startswith("transformers.")


def _own_class(dense_class: Any) -> type[Any]:
    """Makes the sibling of a class of the user's, once; the class itself holds it."""
    if OWN not in vars(dense_class):
        made: Any = _model_class(dense_class, prunable_config(dense_class.config_class.model_type))
        made.__reduce_ex__ = lambda self, protocol: (_blank, (dense_class,), self.__dict__.copy())
        setattr(dense_class, OWN, made)
    return vars(dense_class)[OWN]


def _blank(dense_class: type[Any]) -> Any:
    """Returns an empty instance: copies and pickles name a sibling by the class of the user that it is made from."""
    made = _own_class(dense_class)
    return made.__new__(made)  # type: ignore[call-overload]


def class_names() -> tuple[str, ...]:
    """Returns the names of all classes, of configurations and of models, without generating any."""
    return (*config_names(), *(f"Prunable{name}" for name in _dense_classes()))


def prunable_named(name: str) -> type[Any]:
    """Returns the class of a name, always the same one; the first call generates it.

    Raises:
        KeyError: There is no such class.
    """
    if name in config_names():
        return prunable_config(config_names()[name])
    dense_name = name.removeprefix("Prunable")
    if name not in _CLASSES:
        config_class = prunable_config(_dense_classes()[dense_name])
        _CLASSES.setdefault(name, _model_class(getattr(transformers, dense_name), config_class))
    return _CLASSES[name]


def __getattr__(name: str) -> Any:
    """Finds a class as an attribute of this file, where pickles look for it."""
    if name not in class_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return prunable_named(name)


@functools.cache
def _dense_classes() -> dict[str, str]:
    """Returns the family of each class of Transformers that has a prunable counterpart."""
    found: dict[str, str] = {}
    for constant, names in vars(modeling_auto).items():
        is_of_models = constant.startswith("MODEL_") and constant.endswith("_MAPPING_NAMES")
        for model_type in FAMILIES if is_of_models else ():
            listed = names.get(model_type, ())
            for name in (listed,) if isinstance(listed, str) else listed:
                if _is_named_after(model_type, name):
                    found[name] = model_type
    return found | {family.body: family.model_type for family in FAMILIES.values() if family.body}


def _is_named_after(model_type: str, name: str) -> bool:
    """Tells whether a class belongs to a model type, as its name says without an import.

    A head around a whole model, with a configuration of its own, is listed for every model that it can hold, but has
    another name. Prune the model that it holds.
    """
    return name.startswith(CONFIG_MAPPING_NAMES[model_type].removesuffix("Config").removesuffix("Text"))


def _model_class(dense_class: type[Any], config_class: type[Any]) -> type[Any]:
    name = f"Prunable{dense_class.__name__}"

    @functools.wraps(dense_class.__init__)  # so that its arguments are seen, such as `use_mask_token`
    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        PrunableModel.__init__(self, config, *args, **kwargs)

    namespace: dict[str, Any] = {
        "__init__": build,
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"`{dense_class.__name__}` whose layers have the numbers of heads and FFN units of its config.",
        "config_class": config_class,
    }
    cls: Any = type(name, (PrunableModel, dense_class), namespace)
    let_record_outputs_(cls)
    return cls


def _weight_problems(model: nn.Module, info: dict[str, Any], *, accepts_new_head: bool) -> Iterator[str]:
    base = base_model(model)  # a decoder alone lacks the encoder's layers
    present = dict(base.named_modules())
    stacks = tuple(f"{path}." for stack in family_of(model).stacks for path in layer_lists(present, stack))
    sites, missing = anatomy_of(model).sites, set(info["missing_keys"])
    heads = _modules_of_heads(model)
    has_new_head = all(missing >= names for names in heads.values())
    if heads and has_new_head and not accepts_new_head and _is_of_own_class(model):
        yield (
            f"they were written by a {_written_by(model)}, a class of its own, whose head this class lacks: load them "
            "by hf_headprune.register_prunable(<the dense class>).from_pretrained"
        )
    for key in info["missing_keys"]:
        is_body = _is_body(key, model) or (heads and not has_new_head and is_of_some_tasks(key, model))
        is_torn = any(key in names and not missing >= names for names in heads.values())
        if _in_layers(key, stacks) or ((is_body or is_torn) and not _is_computed(key, model)):
            yield f"{_where(key, sites)} is missing from the weights"
    for key in info["unexpected_keys"]:
        if _in_layers(key, stacks):
            yield f"{_where(key, sites)} has weights, but no place in the configuration"
    for key, saved, expected in info["mismatched_keys"]:
        if _in_layers(key, stacks) or _is_body(key, model) or not accepts_new_head:
            yield f"{_where(key, sites)} has shape {tuple(saved)} in the weights and {tuple(expected)} by configuration"


def _is_body(key: str, model: nn.Module) -> bool:
    """Tells whether a weight is one of the base model that every task needs."""
    parts = _body(model)
    paths = tuple(f"{path}." if path else "" for path, module in model.named_modules() if module in parts)
    return key.startswith(paths) and not is_of_some_tasks(key, model)


def _body(model: Any) -> list[Any]:
    """Returns what all tasks share: the base model, or the towers that a task class holds beside its head."""
    base, names = base_model(model), modeling_auto.MODEL_MAPPING_NAMES.get(family_of(model).model_type, ())
    names = (names,) if isinstance(names, str) else names
    is_task = base is model and type(model).__name__.removeprefix("Prunable") not in names
    return (towers_of(model) if is_task else []) or [base]


def _modules_of_heads(model: nn.Module) -> dict[str, set[str]]:
    """Returns the names of the parameters of each module outside of the base model, but for those that are tied."""
    body = {id(parameter) for part in _body(model) for parameter in part.parameters()}
    found: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in body:
            found.setdefault(name.rpartition(".")[0], set()).add(name)
    return found


def _is_of_own_class(model: Any) -> bool:
    """Tells whether a checkpoint was written by a class of a user's, which the Auto classes do not know."""
    name = _written_by(model)
    return name.startswith("Prunable") and name not in (*class_names(), type(model).__name__)


def _written_by(model: Any) -> str:
    return str((getattr(model.config, "architectures", None) or [""])[0])


def _is_computed(key: str, model: nn.Module) -> bool:
    """Tells whether a checkpoint may lack a weight outside the layers, since it follows from the configuration.

    Where Transformers does not say which, any may; its own report of the loading names those that it has made up.
    """
    names, prefix = names_not_loaded(model), f"{model.base_model_prefix}."
    return names is None or key.removeprefix(prefix) in {name.removeprefix(prefix) for name in names}


def _in_layers(key: str, stacks: tuple[str, ...]) -> bool:
    return any(f".{stack}" in f".{key}" for stack in stacks)


def _where(key: str, sites: Iterable[Site]) -> str:
    for site in sites:
        if any(f".{path}." in f".{key}" for path in (*site.inputs, site.output)):
            return f"layer {site.layer}: {key} ({site.field})"
    return key
