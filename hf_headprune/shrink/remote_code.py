"""The code that travels with a checkpoint: a file that Transformers runs where this package is not installed.

`trust_remote_code=True` loads the checkpoint then. The file is the same for every checkpoint of a family: the
declaration of the family, a class per task, and below them `self_contained`, the same for all families.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING

from hf_headprune._beside_weights import write_text
from hf_headprune._compat import classes_by_auto_class
from hf_headprune._layouts import HEADS
from hf_headprune.anatomy import KEPT_HEADS, family_of
from hf_headprune.families import FAMILIES, PRUNABLE_PREFIX
from hf_headprune.shrink import hollow, self_contained, shared_bias
from hf_headprune.shrink.config import PrunedConfig, added_fields, mapped_fields, tower_configs
from hf_headprune.shrink.own_numbers import LayerNumbers
from hf_headprune.shrink.registration import AUTO_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hf_headprune.families import Block, Family

AUTO_MAP = "auto_map"  # field of a configuration: which class of which file an Auto class makes
PIECES = (  # beside the functions of `self_contained`
    hollow.BiasOnly,
    hollow.NoUnits,
    hollow.HeadlessAttention,
    hollow.headless_class,
    hollow._blank_headless,
    shared_bias.OwnHeadsOfBias,
    shared_bias.own_heads_class,
    shared_bias.signature_of,
    shared_bias._blank,
    LayerNumbers,
)
HEADER = '''\
"""Pruned {name}: the classes of Transformers, whose layers have the heads and FFN units that config.json says.

Written by hf_headprune for checkpoints with model_type "{prunable_type}"; it needs torch and Transformers 5.14 or
newer alone, and is run by

    AutoModel.from_pretrained(folder, trust_remote_code=True)

Where hf_headprune is installed, `import hf_headprune` loads the same checkpoint without this file.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
{imports}
)

ALIGNMENT = {alignment}  # bytes, as torch allocates on CPUs
KEPT_HEADS = "{kept_heads}"  # buffer of a block that takes its heads of a bias of all heads
_LAST_CLASS = PretrainedConfig.__mro__[-2]  # before `object`: nothing of Transformers comes after it
'''
CONFIG = '''\
class {name}(PrunedConfig, {dense}):
    """Configuration of a pruned model; see `{dense}` for the fields of the dense one."""

    model_type = "{prunable_type}"
    dense_class = {dense}
    attribute_map = {attribute_map}
{more}'''
MODEL = """\
class {name}(PrunedModel, {dense}):
    config_class = {config}
    stacks = STACKS
    towers = TOWERS
"""
HOST = '''\
def returns_attentions(config: Any) -> bool:
    """Tells whether the attention of a model returns its probabilities."""
    return getattr(config, "_attn_implementation", None) == "eager"


def part_of_cache(cache: Any, name: str) -> Any:
    """Returns a part of the key-value cache of an encoder-decoder model."""
    return getattr(cache, name)
'''


def file_name(model_type: str) -> str:
    """Returns the name of the file of a family."""
    return f"modeling_{PRUNABLE_PREFIX}{model_type.replace('-', '_')}.py"


def travels(model: Any) -> bool:
    """Tells whether the code of a model can be written: its class is one of those generated for Transformers' own."""
    family = family_of(model)
    named = {f"Prunable{dense.__name__}" for dense in _dense_classes(family.model_type).values()}
    is_ours = type(model).__module__ == "hf_headprune.shrink.prunable"
    return is_ours and type(model).__name__ in named


def auto_class_of(model: Any) -> str:
    """Returns the name of the Auto class that loads a pruned model; that of the body where no task's does."""
    dense = type(model).__name__.removeprefix("Prunable")
    found = [auto for auto, made in _dense_classes(family_of(model).model_type).items() if made.__name__ == dense]
    return next(iter([name for name in found if name != "AutoModelForPreTraining"] or found), "AutoModel")


def attach_auto_map_(model: Any) -> None:
    """Lets the configuration of a model say, in place, which classes of its code the Auto classes make.

    A model of a class of the user's, whose code can't be written, says nothing.
    """
    config = model.config
    if not travels(model):
        vars(config).pop(AUTO_MAP, None)
        return
    model_type = family_of(model).model_type
    module = file_name(model_type).removesuffix(".py")
    classes = _dense_classes(model_type)
    names = {auto: f"{module}.Prunable{dense.__name__}" for auto, dense in classes.items()}
    config.auto_map = {"AutoConfig": f"{module}.Prunable{_dense_config(model_type).__name__}", **names}


def write_code_(model: Any, folder: str | Path) -> None:
    """Writes the code of a model's family beside its weights, where `config.json` names it; see `travels`."""
    model_type = family_of(model).model_type
    write_text(Path(folder, file_name(model_type)), code_of(model_type).rstrip())


@functools.cache
def code_of(model_type: str) -> str:
    """Returns the self-contained code of a family's pruned models.

    Args:
        model_type: Of the dense model.
    """
    family, dense_config = FAMILIES[model_type], _dense_config(model_type)
    dense = list(dict.fromkeys(found.__name__ for found in _dense_classes(model_type).values()))
    config = f"Prunable{dense_config.__name__}"
    towers = [prunable.dense_class.model_type for prunable in tower_configs(family).values()]
    configs = [_dense_config(each).__name__ for each in (*towers, model_type)]
    imported = ["EncoderDecoderCache", "PretrainedConfig", *configs, *dense]
    header = HEADER.format(
        name=dense_config.__name__.removesuffix("Config"),
        prunable_type=family.prunable_type,
        imports="\n".join(f"    {name}," for name in imported),
        alignment=self_contained.ALIGNMENT,
        kept_heads=KEPT_HEADS,
    )
    of_towers = {stack.layers: stack.config for stack in family.stacks if stack.config}
    top = [
        header,
        _source(self_contained.Block),
        f"STACKS = {{\n{''.join(map(_shown_stack, family.stacks))}}}\n"
        f"TOWERS: Mapping[str, str] = {_shown_value(of_towers)}  # field with the configuration of a stack\n",
        _source(PrunedConfig),
        _source(self_contained.PrunedModel),
        *(_shown_config(FAMILIES[each]) for each in (*towers, model_type)),
        *(MODEL.format(name=f"Prunable{name}", dense=name, config=config) for name in dense),
    ]
    return "\n\n".join([*top, *_builder(), HOST, *map(_source, PIECES)])


def _shown_config(family: Family) -> str:
    """Returns the configuration class of a family's pruned models as code."""
    dense, fields = _dense_config(family.model_type), added_fields(family)
    parts = ", ".join(f'"{tower}": {found.__name__}' for tower, found in tower_configs(family).items())
    return CONFIG.format(
        name=f"Prunable{dense.__name__}",
        dense=dense.__name__,
        prunable_type=family.prunable_type,
        attribute_map=_shown_value(mapped_fields(family, dense)),
        more=(f"    sub_configs_defaults = {{{parts}}}\n" if parts else "")
        + "".join(f"    {name}: int | None = None\n" for name in fields),
    )


def _builder() -> Iterator[str]:
    """Yields the functions of `self_contained`, in their order."""
    yield from (_source(found) for found in vars(self_contained).values() if _is_own_function(found))


def _is_own_function(found: Any) -> bool:
    return inspect.isfunction(found) and found.__module__ == self_contained.__name__


def _source(found: Any) -> str:
    """Returns the source of a class or function without the marks for tools of this project."""
    lines = inspect.getsource(found).splitlines()
    return "\n".join(line.split("  # type: ignore")[0].split("  # noqa")[0].rstrip() for line in lines) + "\n"


def _shown_stack(stack: Any) -> str:
    blocks = "".join(f"        {_shown(block)},\n" for block in stack.blocks)
    return f'    "{stack.layers}": (\n{blocks}    ),\n'


def _shown(block: Block) -> str:
    """Returns the declaration of a block as code, without what is left at its default."""
    fields = dataclasses.fields(self_contained.Block)
    given = {field.name: getattr(block, field.name, None) for field in fields} | {"number": block.field}
    if block.groups is not None:
        given["attributes"] = {**block.attributes, block.sizes[HEADS]: HEADS}
    defaults = {field.name: _default(field) for field in fields}
    lines = [f"{name}={_shown_value(value)}" for name, value in given.items() if _plain(value) != defaults[name]]
    return "Block(\n" + "".join(f"            {line},\n" for line in lines) + "        )"


def _shown_value(value: Any) -> str:
    return repr(_plain(value)).replace("'", '"')  # names and layouts, without a quote among them


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


def _default(field: dataclasses.Field[Any]) -> Any:
    return {} if field.default_factory is not dataclasses.MISSING else field.default


def _dense_config(model_type: str) -> type[Any]:
    return CONFIG_MAPPING[model_type]


def _dense_classes(model_type: str) -> dict[str, type[Any]]:
    """Returns the dense class of each Auto class that has one for a family."""
    body = FAMILIES[model_type].body
    more = {} if body is None else {"AutoModel": getattr(import_module("transformers"), body)}
    return classes_by_auto_class(import_module(AUTO_MODEL), _dense_config(model_type)) | more
