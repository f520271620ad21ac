"""Configurations of pruned models, generated from the declared families on demand, and the rules that they obey.

The numbers of each layer are in Transformers' own `per_layer_config`; the fields of the dense configuration keep the
dense numbers, from which the skeleton of the model is built.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_headprune._compat import unsupported
from hf_headprune.anatomy import family_of
from hf_headprune.errors import InvalidConfigError
from hf_headprune.families import FAMILIES
from hf_headprune.shrink.adapters import let_peft_know
from hf_headprune.shrink.registration import register_models

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hf_headprune.anatomy import Site
    from hf_headprune.families import Block, Family


Entries = Mapping[Any, Any]  # {layer: {field: units}}, or {tower: {layer: {field: units}}}
_CLASSES: dict[str, type[Any]] = {}


def config_names() -> dict[str, str]:
    """Returns the name of each generated class and its family, without generating any."""
    known = (model_type for model_type in FAMILIES if model_type in CONFIG_MAPPING_NAMES)
    return {f"Prunable{CONFIG_MAPPING_NAMES[model_type]}": model_type for model_type in known}


def prunable_config(model_type: str) -> type[Any]:
    """Returns the configuration class of a family's pruned models, always the same one.

    The first call generates it, and registers the models that belong to it with the Auto classes.

    Args:
        model_type: Of the dense model.
    """
    if model_type not in _CLASSES:
        register_models(_CLASSES.setdefault(model_type, _config_class(FAMILIES[model_type])))
    return _CLASSES[model_type]


def __getattr__(name: str) -> Any:
    """Finds a class as an attribute of this file, where pickles look for it."""
    if name not in config_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return prunable_config(config_names()[name])


_LAST_CLASS: type = PretrainedConfig.__mro__[-2]  # before `object`: nothing of Transformers comes after it


class PrunedConfig:
    """What a configuration of a pruned model needs to be read and written, with this package or without it.

    Attributes:
        dense_class: Configuration class of the dense model.
    """

    dense_class: ClassVar[type[Any]]
    # The modeling code reads the dense numbers while it builds the skeleton that is then resized, layer by layer.
    allow_global_per_layer_attribute_access = True

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns what differs from a default configuration, and two labels where the dense class takes another number.

        Transformers leaves out two labels without names. Read again, a class like BART's would take its own three.
        """
        content = super().to_diff_dict()  # type: ignore[misc]
        if "id2label" not in content and self.dense_class().num_labels != self.num_labels:
            content |= {"id2label": self.id2label, "label2id": self.label2id}
        return content

    def __getattribute__(self, name: str) -> Any:
        """Reads a field without the warning that its number may differ between layers, which is the point here."""
        plain = super(_LAST_CLASS, self)  # `torch.compile` traces this, and no call of `object.__getattribute__`
        return plain.__getattribute__(plain.__getattribute__("attribute_map").get(name, name))


class PrunableConfig(PrunedConfig):
    """What all generated configurations share; mixed into the dense configuration class of each family.

    Attributes:
        head_dim: Width of one head, which the numbers of heads no longer imply.
    """

    head_dim: int | None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills in the numbers that the dense configuration implies, then checks all."""
        complete_config_(self)
        check_dense_numbers(self)
        super().__post_init__(**kwargs)  # type: ignore[misc] # every class that this is mixed into has it
        for tower in family_of(self).towers:
            if not isinstance(getattr(self, tower), PrunableConfig):
                setattr(self, tower, to_prunable(getattr(self, tower), {}))

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields. PEFT asks for them before it looks up which modules of a model type it adapts."""
        let_peft_know(type(self).model_type)  # type: ignore[attr-defined] # of the dense class
        return super().to_dict()  # type: ignore[misc]

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: `save_pretrained` of a model writes the code that the Auto classes need, for all of them."""

    @property
    def per_layer_config(self) -> Any:
        """The configuration of each layer, where `[i]` has the numbers of layer i."""
        return _native_entries(type(self)).fget(self)

    @per_layer_config.setter
    def per_layer_config(self, entries: Any) -> None:
        if entries is not None:
            entries = checked_entries(self, entries)
        _native_entries(type(self)).fset(self, entries)


def _native_entries(config_class: type[Any]) -> Any:
    """Returns the property of Transformers that `PrunableConfig.per_layer_config` puts its checks before."""
    native = getattr(super(PrunableConfig, config_class), "per_layer_config", None)
    if not isinstance(native, property):
        raise unsupported("PreTrainedConfig.per_layer_config", "to hold the numbers of heads and units of each layer")
    return native


@dataclass(frozen=True)
class _FieldRule:
    """Where a field of a layer's entry applies and how much it may say."""

    dense_numbers: tuple[int, ...]  # of each layer
    place: str


def complete_config_(config: Any) -> None:
    """Sets, in place, the fields of a pruned configuration that are not given and that the dense ones imply.

    Raises:
        InvalidConfigError: A number of heads is invalid.
    """
    family = _without_towers(family_of(config))
    fields = [field for block in family.attentions for field in (block.units, block.groups)]
    for field in [field for field in dict.fromkeys(fields) if isinstance(field, str)]:
        number = getattr(config, field)
        if number is None and getattr(type(config), field, 1) is None:  # the dense class fills it in later
            continue
        if type(number) is not int or number < 1:
            raise InvalidConfigError(
                f"{type(config).__name__}: {field} must be a positive integer, the number of the dense model, received "
                f"{number!r}. Layers without heads belong in per_layer_config."
            )
    if _implies_head_dim(family) and config.head_dim is None:
        config.head_dim = getattr(config, family.hidden_size) // family.attentions[0].dense_units(config, 0)
    for block in _own_fields(family):
        if getattr(config, block.field) is None:
            setattr(config, block.field, block.dense_number(config))
    if _needs_depth(family) and config.num_hidden_layers is None:
        config.num_hidden_layers = _deepest(config, family)


def check_dense_numbers(config: Any) -> None:
    """Checks that the numbers outside `per_layer_config` are those of one dense model.

    Raises:
        InvalidConfigError: They contradict each other; the message lists every rule that is broken.
    """
    family = _without_towers(family_of(config))
    problems = []
    for block in family.attentions[:1] if _implies_head_dim(family) else ():  # a decoder may have other heads
        num_heads, hidden_size = block.dense_units(config, 0), getattr(config, family.hidden_size)
        if num_heads * config.head_dim != hidden_size:
            problems.append(
                f"{block.dense_field} x head_dim must be {family.hidden_size} = {hidden_size}, the numbers of the "
                f"dense model; received {num_heads} x {config.head_dim}"
            )
    for block in _own_fields(family):
        number = block.dense_number(config)
        if getattr(config, block.field) != number:
            named = f"{block.units} = " if isinstance(block.units, str) else ""
            what = "since the layers of the dense model differ" if number is None else "the number of the dense model"
            problems.append(f"{block.field} must be {named}{number}, {what}; received {getattr(config, block.field)}")
    if _needs_depth(family) and config.num_hidden_layers != _deepest(config, family):
        problems.append(
            f"num_hidden_layers must be {_deepest(config, family)}, the depth of the deeper stack; received "
            f"{config.num_hidden_layers}"
        )
    if problems:
        raise InvalidConfigError(
            f"{type(config).__name__}: {'; '.join(problems)}. Fewer heads or units of a layer belong in "
            "per_layer_config."
        )


def checked_entries(config: Any, entries: Any) -> dict[int, dict[str, int]]:
    """Checks `per_layer_config` and returns it with integer keys.

    Args:
        config: Configuration that it belongs to, with its dense numbers set.
        entries: `{layer: {field: heads or units kept}}`; layers as integers or their decimal strings.

    Raises:
        InvalidConfigError: At least one entry breaks a rule; the message names layer and rule of each.
    """
    if not isinstance(entries, Mapping):
        raise InvalidConfigError(
            f"{type(config).__name__}: per_layer_config must map layers to their numbers, received {entries!r}."
        )
    rules = _field_rules(config)
    checked: dict[int, dict[str, int]] = {}
    problems: list[str] = []
    for key, entry in entries.items():
        layer = _layer_index(key)
        if layer is None or layer in checked:
            problems.append(f"layer {key!r}: the key must be the zero-based index of a layer, each layer once")
        elif not isinstance(entry, Mapping):
            problems.append(f"layer {layer}: the entry must map fields to numbers, received {entry!r}")
        else:
            checked[layer] = {field: number for field, number in entry.items() if field != "skip"}
            wrong = [*_entry_problems(layer, entry, rules)]
            problems += wrong or _group_problems(layer, entry, config)
    if problems:
        raise InvalidConfigError(
            f"{type(config).__name__}: per_layer_config: {'; '.join(problems)}. Use the configuration that was saved "
            "with the pruned weights."
        )
    return checked


def check_numbers(config: Any) -> None:
    """Checks all numbers of a pruned configuration, and those of its towers.

    Raises:
        InvalidConfigError: A rule is broken.
    """
    check_dense_numbers(config)
    checked_entries(config, config.to_dict().get("per_layer_config") or {})
    for tower in family_of(config).towers:
        own = getattr(config, tower)
        if not isinstance(own, PrunedConfig):
            expected = tower_configs(family_of(config))[tower].__name__
            raise InvalidConfigError(
                f"{type(config).__name__}: {tower} must be a {expected}, received a {type(own).__name__}. Build the "
                "dense model and call prune_model_."
            )
        check_numbers(own)


def entries_of(numbers: Iterable[tuple[Site, Mapping[str, int]]]) -> Entries:
    """Returns what `to_prunable` takes of the entries of sites; see `Site.numbers`."""
    found: dict[Any, Any] = {}
    for site, entry in numbers:
        layers = found.setdefault(site.tower, {}) if site.tower else found
        layers.setdefault(site.layer, {}).update(entry)
    return found


def to_prunable(config: Any, entries: Entries) -> Any:
    """Returns the configuration of a pruned model; the one that is given is not changed.

    Args:
        config: Of the live model, dense or already pruned.
        entries: `{layer: {field: heads or units kept}}` of the sites of the live model; they replace earlier ones. Of a
            model of towers, such entries for each of their fields.

    Raises:
        InvalidConfigError: An entry breaks a rule.
    """
    pruned = copy.deepcopy(config)
    for tower in (towers := family_of(config).towers):
        setattr(pruned, tower, to_prunable(getattr(pruned, tower), entries.get(tower, {})))
    if towers:
        pruned.__class__ = prunable_config(family_of(config).model_type)
        return pruned
    present = pruned.to_dict().get("per_layer_config") or {}
    merged = {int(layer): dict(entry) for layer, entry in present.items()}
    for layer, entry in entries.items():
        merged[layer] = merged.get(layer, {}) | dict(entry)
    pruned.__class__ = prunable_config(family_of(config).model_type)
    complete_config_(pruned)
    check_dense_numbers(pruned)
    pruned.per_layer_config = merged
    return pruned


def _without_towers(family: Family) -> Family:
    """Returns a family with the stacks alone whose numbers its configuration itself holds, and no tower's."""
    return dataclasses.replace(family, stacks=tuple(stack for stack in family.stacks if stack.config is None))


def _own_fields(family: Family) -> list[Block]:
    return [block for block in family.blocks if block.own_field]


def _implies_head_dim(family: Family) -> bool:
    """Tells whether the width of a head follows from the number of heads in the dense configuration."""
    return family.head_dim is None and any(isinstance(block.units, str) for block in family.attentions)


def _needs_depth(family: Family) -> bool:
    """Tells whether no field of the dense configuration bounds the layers of `per_layer_config`."""
    in_stages = any(callable(stack.depth) and stack.uses is None for stack in family.stacks)
    return len(family.stacks) > 1 or in_stages


def _deepest(config: Any, family: Family) -> int:
    # A depth that the configuration has yet to fill in is that of another stack.
    depths = [stack.number_of_layers(config) for stack in family.stacks]
    return max(depth for depth in depths if depth is not None)


def _field_rules(config: Any) -> dict[str, _FieldRule]:
    rules: dict[str, _FieldRule] = {}
    for stack in _without_towers(family_of(config)).stacks:
        depth = stack.number_of_layers(config)
        for block in stack.blocks:
            enabled = block.is_enabled(config)
            if not enabled and block.field in rules:  # of another form of the block
                continue
            place = stack.layers if enabled else f"{stack.layers} without {block.enabled_by}"
            numbers = tuple(block.dense_units(config, layer) for layer in range(depth if enabled else 0))
            rules[block.field] = _FieldRule(numbers, place)
            if block.groups is not None:
                rules[block.groups] = _FieldRule((getattr(config, block.groups),) * depth, place)
    return rules


def _layer_index(key: Any) -> int | None:
    if isinstance(key, str) and key.isdecimal():
        return int(key)
    return key if type(key) is int else None


def _entry_problems(layer: int, entry: Mapping[str, Any], rules: Mapping[str, _FieldRule]) -> Iterator[str]:
    for field, number in entry.items():
        rule = rules.get(field)
        if field == "skip":
            if number:
                yield f"layer {layer}: skip {number!r} is not supported; a block without units has the number 0"
        elif rule is None:
            yield f"layer {layer}: unknown field {field!r} (known: {', '.join(rules)})"
        elif not 0 <= layer < len(rule.dense_numbers):
            yield f"layer {layer}: {rule.place} has {len(rule.dense_numbers)} layers with {field}"
        elif type(number) is not int or not 0 <= number <= rule.dense_numbers[layer]:
            yield (
                f"layer {layer}: {field} must be an integer from 0 to {rule.dense_numbers[layer]}, the number of the "
                f"dense model; received {number!r}"
            )


def _group_problems(layer: int, entry: Mapping[str, Any], config: Any) -> Iterator[str]:
    """Yields where a layer's heads are not equally many for each of its groups, or more than in the dense model."""
    for block in family_of(config).attentions:
        if block.groups is None:
            continue
        dense, groups_before = block.dense_units(config, layer), getattr(config, block.groups)
        heads, groups = entry.get(block.field, dense), entry.get(block.groups, groups_before)
        each = heads // max(groups, 1)
        if heads != each * groups or each * groups_before > dense or bool(heads) != bool(groups):
            yield (
                f"layer {layer}: {block.field} must be a multiple of {block.groups}, at most {dense // groups_before} "
                f"for each and none for 0; received {heads} and {groups}"
            )


def added_fields(family: Family) -> list[str]:
    """Returns the fields that the configuration of a family's pruned models has besides those of the dense class."""
    family = _without_towers(family)
    found = ["head_dim"] if _implies_head_dim(family) else []
    found += [block.field for block in _own_fields(family)]
    return list(dict.fromkeys([*found, *(["num_hidden_layers"] if _needs_depth(family) else [])]))


def mapped_fields(family: Family, dense: type[Any]) -> dict[str, str]:
    """Returns the other names of fields: those of the dense class, but for the depth where it is a field of its own.

    Transformers lets that field bound the layers of `per_layer_config`; the dense class maps it to one stack.
    """
    return {name: field for name, field in dense.attribute_map.items() if name not in added_fields(family)}


def tower_configs(family: Family) -> dict[str, type[Any]]:
    """Returns the configuration class of each tower of a family's pruned models, by its field."""
    dense = CONFIG_MAPPING[family.model_type]
    return {tower: prunable_config(dense.sub_configs[tower].model_type) for tower in family.towers}


def _config_class(family: Family) -> type[Any]:
    dense = CONFIG_MAPPING[family.model_type]
    optional = added_fields(family)
    name = f"Prunable{dense.__name__}"
    fields: dict[str, Any] = dict.fromkeys(optional)
    namespace = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"Configuration of a pruned model; see `{dense.__name__}` for the fields of the dense one.",
        "__annotations__": dict.fromkeys(optional, int | None),
        "model_type": family.prunable_type,
        "dense_class": dense,
        "attribute_map": mapped_fields(family, dense),
        **fields,
    }
    if family.towers:
        namespace["sub_configs_defaults"] = tower_configs(family)
    return strict(type(name, (PrunableConfig, dense), namespace))
