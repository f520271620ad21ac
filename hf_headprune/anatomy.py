"""Anatomy: the heads and FFN units of a live model, found by the declaration of its family.

Nothing here computes with tensors.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune._compat import is_older_than, names_not_saved
from hf_headprune._layouts import Entries
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.families import FAMILIES, PRUNABLE_PREFIX, REFUSED

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn

    from hf_headprune.families import Block, Family, SiteKind, Stack

KEPT_HEADS = "headprune_kept_heads"  # buffer of a block that takes its heads of a bias of all heads
BYTES_PER_INDEX = 8


@dataclass(frozen=True)
class Part:
    """A linear module, by its path, whose rows belong to the units of a site."""

    path: str
    rows: Entries


@dataclass(frozen=True)
class Site:
    """One prunable block of a live model. All paths are relative to the base model.

    Attributes:
        name: Path of the block, such as "encoder.layer.3.attention".
        kind: "encoder", "decoder" or "cross" for attention, "ffn" for a feed-forward block.
        layer: Zero-based index in its stack.
        units: Number of heads (or groups of heads that share a key) or FFN units that the live model has.
        unit_width: Columns of the output projection per unit: `head_dim`, or 1 for FFN units.
        parts: The linear modules whose rows are cut: query, key and value, or the first FFN matrix.
        output: Path of the linear module whose columns are cut.
        core: Path of the module that computes the heads.
        block: The declaration.
        sizes: Of the letters in its layouts.
        hidden_size: Width of the residual stream.
        in_decoder: Whether it runs over the tokens of a decoder, be that half of a model or all of it.
        uses: How often a forward pass runs the block.
        parameters_per_unit: Parameters that leave with one unit, biases included.
        bytes_per_unit: Bytes of those parameters at their present dtype.
        bytes_per_index: Bytes that a unit costs which stays where others leave: the checkpoint then says which.
    """

    name: str
    kind: SiteKind
    layer: int
    units: int
    unit_width: int
    parts: tuple[Part, ...]
    output: str
    core: str
    block: Block = dataclasses.field(hash=False)
    sizes: Mapping[str, int] = dataclasses.field(hash=False)
    hidden_size: int
    in_decoder: bool
    uses: int
    parameters_per_unit: int
    bytes_per_unit: int
    bytes_per_index: int

    @property
    def is_attention(self) -> bool:
        """Whether the units are attention heads."""
        return self.kind != "ffn"

    @property
    def prefix(self) -> str:
        """Path of the layer."""
        return self.name.removesuffix(f".{self.block.site}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths of `parts`."""
        return tuple(part.path for part in self.parts)

    @property
    def field(self) -> str:
        """Field of the layer's entry in `per_layer_config` that holds the number of units."""
        return self.block.field

    @property
    def dense_field(self) -> str:
        """Field of the configuration that holds the number of units of the unpruned model."""
        return self.block.dense_field

    @property
    def is_gated(self) -> bool:
        """Whether a unit multiplies two of its rows, as those of a gated FFN do."""
        return not self.is_attention and sum(part.rows.per_unit for part in self.parts) > 1

    @property
    def has_own_state(self) -> bool:
        """Whether a cut changes more than linear modules, such as numbers that the forward pass reads."""
        block = self.block
        return bool(block.attributes or block.own_numbers or block.tables or block.shared_bias)

    def columns(self, units: Iterable[int]) -> list[int]:
        """Returns the columns of the output projection that belong to units.

        Args:
            units: In the order wanted.
        """
        width = self.unit_width
        return [column for unit in units for column in range(unit * width, (unit + 1) * width)]

    def number(self, layout: str, units: int) -> int:
        """Returns a product of sizes, such as "u d", for a number of units."""
        return Entries.of(layout, {**self.sizes, "u": units}).total


@dataclass(frozen=True)
class Anatomy:
    """Every site of a live model, and the totals that `cost` starts from.

    Attributes:
        model_type: Family, without the prefix of pruned models.
        sites: Sites in the order of the forward pass; the order of all score vectors over heads.
        num_parameters: Parameters of the whole model, tied ones counted once.
        num_bytes: Bytes of all tensors that `save_pretrained` writes, tied ones counted once.
        left_out: Why units that the family has are not among the sites, if so.
    """

    model_type: str
    sites: tuple[Site, ...]
    num_parameters: int
    num_bytes: int
    left_out: str | None = None

    @property
    def attention_sites(self) -> tuple[Site, ...]:
        """Sites whose units are heads."""
        return tuple(site for site in self.sites if site.is_attention)

    @property
    def ffn_sites(self) -> tuple[Site, ...]:
        """Sites whose units are FFN units."""
        return tuple(site for site in self.sites if not site.is_attention)

    @property
    def num_heads(self) -> int:
        """Heads of all sites together."""
        return sum(site.units for site in self.attention_sites)


def family_of(model_or_config: Any) -> Family:
    """Returns the declaration of a model's family.

    Args:
        model_or_config: A Transformers model or configuration, dense or pruned.

    Raises:
        UnsupportedModelError: No family of that `model_type` is declared.
    """
    config = getattr(model_or_config, "config", model_or_config)
    model_type = getattr(config, "model_type", None)
    name = model_type.removeprefix(PRUNABLE_PREFIX) if isinstance(model_type, str) else model_type
    if name not in FAMILIES:
        if name in REFUSED:
            raise UnsupportedModelError(f"{type(model_or_config).__name__} can't be pruned: {REFUSED[name]}.")
        raise UnsupportedModelError(
            f"{type(model_or_config).__name__}: no declaration says where its heads are (model_type {model_type!r}). "
            f"Supported: {', '.join(sorted(FAMILIES))}. A further family is one more entry in "
            "hf_headprune.families.FAMILIES."
        )
    return FAMILIES[name]


def base_model(model: nn.Module) -> nn.Module:
    """Returns the module below which the paths of all sites start."""
    return getattr(model, "base_model", model)


def named_arguments(signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a forward pass by name, also those that were passed by position."""
    given = signature.bind(*args, **kwargs).arguments
    return given | given.pop("kwargs", {})


def anatomy_of(model: nn.Module) -> Anatomy:
    """Finds the heads and FFN units of a live model, dense or already pruned.

    Args:
        model: A Transformers model of a declared family, with or without a task head.

    Raises:
        UnsupportedModelError: The family is unknown, or the model lacks a module that its declaration names.
    """
    family = family_of(model)
    if family.since is not None and is_older_than(family.since):
        raise UnsupportedModelError(
            f"{type(model).__name__} can be pruned from Transformers {family.since} on: its layers were others before. "
            "Install a newer Transformers."
        )
    base = base_model(model)
    sites = tuple(_sites(family, base, model.config))
    if not sites:
        raise UnsupportedModelError(
            f"{type(model).__name__}: none of the stacks {[stack.layers for stack in family.stacks]} exists in "
            f"{type(base).__name__}. Pass the Transformers model itself, not a wrapper around it; of a model with "
            "adapters of PEFT, what its merge_and_unload() returns."
        )
    not_saved = names_not_saved(model)
    saved = {
        tensor.data_ptr() or id(tensor): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in not_saved
    }
    return Anatomy(
        model_type=family.model_type,
        sites=sites,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in saved.values()),
        left_out=family.left_out,
    )


def attention_by_layer(model: nn.Module) -> dict[int, Site]:
    """Returns the self-attention of each layer by its number, as Transformers 4 counted them to prune heads.

    Raises:
        UnsupportedModelError: The family is unknown, or a number stands for a layer of the encoder and of the decoder.
    """
    found: dict[int, Site] = {}
    for site in anatomy_of(model).attention_sites:
        if site.kind == "cross":
            continue
        if site.layer in found:
            raise UnsupportedModelError(
                f"{type(model).__name__}: encoder and decoder both have a layer {site.layer}, so that a number does "
                "not say which layer is meant. Name the sites in a PruningPlan, for masked or prune_model_."
            )
        found[site.layer] = site
    return found


def layer_lists(base: nn.Module, stack: Stack) -> list[str]:
    """Returns the paths of the lists of layers of a stack that a model has; several where stages follow one another."""
    pattern = re.compile(re.escape(stack.layers).replace(r"\*", r"\d+"))
    return [path for path, _ in base.named_modules() if pattern.fullmatch(path)]


def transposed(module: Any) -> bool:
    """Tells whether a linear module stores its weight as `(in, out)`, as those of GPT-2 do."""
    return hasattr(module, "nf")


def matrix_of(module: Any) -> Any:
    """Returns the weight of a linear module as `(out, in)`, a view of it."""
    return module.weight.T if transposed(module) else module.weight


def _sites(family: Family, base: nn.Module, config: Any) -> Iterator[Site]:
    present = dict(base.named_modules())
    is_decoder = bool(getattr(config, "is_decoder", False)) and not getattr(config, "is_encoder_decoder", False)
    for stack in family.stacks:
        in_decoder = is_decoder or any(block.kind == "decoder" for block in stack.blocks)
        lists: list[tuple[str, Any]] = [(path, present[path]) for path in layer_lists(base, stack)]
        paths = [f"{path}.{index}" for path, layers in lists for index in range(len(layers))]
        for index, prefix in enumerate(paths):
            uses = 1 if stack.uses is None else stack.uses(config, index)
            for block in stack.blocks:
                shown_by = block.site if block.is_attention else next(iter(block.inputs))
                if block.enabled_by is not None and f"{prefix}.{shown_by}" not in present:
                    continue
                yield _Reader(present, prefix, block).site(layer=index, in_decoder=in_decoder, uses=uses)


@dataclass(frozen=True)
class _Reader:
    """Reads one block of one layer of a live model.

    Attributes:
        present: Modules of the base model.
        prefix: Path of the layer.
        block: Its declaration.
    """

    present: Mapping[str, Any]
    prefix: str
    block: Block

    def site(self, *, layer: int, in_decoder: bool, uses: int) -> Site:
        """Returns the site.

        Raises:
            UnsupportedModelError: The layer differs from the declaration.
        """
        block, name = self.block, self.path(self.block.site)
        output, core = self.module(block.output), self.path(block.core or block.site)
        sizes = {letter: getattr(self.module(block.core), attribute) for letter, attribute in block.sizes.items()}
        unit_width = Entries.of(block.columns, {**sizes, "u": 1}).total
        width = output.nx if transposed(output) else output.in_features
        if width % unit_width:
            raise self.misfit(f"{block.output} has {width} columns, no multiple of {block.columns} with {sizes}")
        units = width // unit_width
        parts = tuple(self.parts({**sizes, "u": units}))
        owned = self.tensors(parts, output, {**sizes, "u": units}) if units else []
        index = getattr(self.present.get(core), KEPT_HEADS, None)
        return Site(
            name=name,
            kind="decoder" if block.kind == "encoder" and in_decoder else block.kind,
            layer=layer,
            units=units,
            unit_width=unit_width,
            parts=parts,
            output=self.path(block.output),
            core=core,
            block=block,
            sizes=sizes,
            hidden_size=output.nf if transposed(output) else output.out_features,
            in_decoder=in_decoder,
            uses=uses,
            parameters_per_unit=sum(tensor.numel() for tensor in owned) // max(units, 1),
            bytes_per_unit=sum(tensor.numel() * tensor.element_size() for tensor in owned) // max(units, 1)
            + (0 if index is None else BYTES_PER_INDEX),
            bytes_per_index=BYTES_PER_INDEX if block.shared_bias and index is None else 0,
        )

    def path(self, below_layer: str) -> str:
        """Returns the path of a module of the layer."""
        return f"{self.prefix}.{below_layer}" if below_layer else self.prefix

    def module(self, below_layer: str) -> Any:
        """Returns a module of the layer, which must be there."""
        path = self.path(below_layer)
        if path not in self.present:
            raise UnsupportedModelError(
                f"{self.path(self.block.site)}: the declaration names {path!r}, which this model does not have. "
                "Its layers differ from the family's; prune a model of the family's original layout."
            )
        return self.present[path]

    def parts(self, sizes: Mapping[str, int]) -> Iterator[Part]:
        """Yields the modules whose rows belong to units; each row must be accounted for."""
        missing = []
        for name, layout in self.block.inputs.items():
            part = Part(self.path(name), Entries.of(layout, sizes))
            if part.path not in self.present:
                if name in self.block.optional:
                    continue
                missing.append(part.path)
            yield part
        if missing and sizes["u"]:
            raise UnsupportedModelError(
                f"The declaration names {missing}, which this model does not have although its output projection has "
                "units. Prune a model of the family's original layout."
            )

    def tensors(self, parts: tuple[Part, ...], output: Any, sizes: Mapping[str, int]) -> list[Any]:
        """Returns the tensors of which each unit owns an equal share, with the layouts checked."""
        found = []
        for part in parts:
            linear = self.present[part.path]
            if not hasattr(linear.weight, "numel"):
                raise UnsupportedModelError(
                    f"{part.path}: its weight is no tensor, as in models that torch has quantized. Prune the model "
                    "first, and quantize what is left."
                )
            rows = linear.nf if transposed(linear) else linear.out_features
            if rows != part.rows.total:
                raise self.misfit(f"{part.path} has {rows} rows, but {part.rows.text!r} makes {part.rows.total}")
            found += [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
        return [*found, output.weight, *self.tables(sizes)]

    def tables(self, sizes: Mapping[str, int]) -> Iterator[Any]:
        """Yields the parameters beside the linear modules."""
        for name, (dim, layout) in self.block.tables.items():
            path, _, attribute = name.rpartition(".")
            table = getattr(self.module(path), attribute)
            if table.shape[dim] != (total := Entries.of(layout, sizes).total):
                raise self.misfit(f"{path}.{attribute} has shape {tuple(table.shape)}, but {layout!r} makes {total}")
            yield table

    def misfit(self, what: str) -> UnsupportedModelError:
        """Returns the error for a layout that does not account for a tensor."""
        return UnsupportedModelError(
            f"{self.path(self.block.site)}: {what}. The layer differs from what is declared for its family; prune a "
            "model of the family's original layout."
        )
