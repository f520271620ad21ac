"""Anatomy: the heads and FFN units of a live model, found by the declaration of its family.

Nothing here computes with tensors.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune._compat import is_dispatched, is_older_than, names_not_saved
from hf_headprune._layouts import HEADS, UNIT, Entries
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.families import FAMILIES, PRUNABLE_PREFIX, REFUSED

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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
class Price:
    """What units of a site cost, in whatever is counted.

    Attributes:
        per_unit: Of each unit.
        per_group: Of what the query heads of a group share, once for all of them; zero where heads share nothing.
    """

    per_unit: int
    per_group: int = 0

    def of(self, units: int, groups: int) -> int:
        """Returns the price of some units, which lie in so many groups."""
        return self.per_unit * units + self.per_group * groups


@dataclass(frozen=True)
class Site:
    """One prunable block of a live model. All paths are relative to the base model.

    Attributes:
        name: Path of the block, such as "encoder.layer.3.attention".
        kind: "encoder", "decoder" or "cross" for attention, "ffn" for a feed-forward block.
        layer: Zero-based index in its stack.
        units: Number of heads or FFN units that the live model has.
        unit_width: Columns of the output projection per unit: `head_dim`, or 1 for FFN units.
        group: Query heads that share a key and a value, and follow one another; 1 where each has its own. Equally many
            of each group that is there.
        parts: The linear modules whose rows are cut: query, key and value, or the first FFN matrix.
        output: Path of the linear module whose columns are cut.
        core: Path of the module that computes the heads.
        block: The declaration.
        sizes: Of the letters in its layouts.
        hidden_size: Width of the residual stream.
        in_decoder: Whether it runs over the tokens of a decoder, be that half of a model or all of it.
        uses: How often a forward pass runs the block.
        parameters: Parameters that leave with units, biases included.
        bytes: Bytes of those parameters at their present dtype.
        bytes_per_index: Bytes that a unit costs which stays where others leave: the checkpoint then says which.
        tower: Field of the configuration with the configuration of its tower; None where the model is of one piece.
        tokens: How many tokens it sees, and how many of them each attends to, where the configuration says that.
    """

    name: str
    kind: SiteKind
    layer: int
    units: int
    unit_width: int
    group: int
    parts: tuple[Part, ...]
    output: str
    core: str
    block: Block = dataclasses.field(hash=False)
    sizes: Mapping[str, int] = dataclasses.field(hash=False)
    hidden_size: int
    in_decoder: bool
    uses: int
    parameters: Price
    bytes: Price
    bytes_per_index: int
    tower: str | None = None
    tokens: tuple[int, int] | None = None

    @property
    def is_attention(self) -> bool:
        """Whether the units are attention heads."""
        return self.kind != "ffn"

    @property
    def groups(self) -> int:
        """Number of groups of heads; of units where each is one of its own."""
        return self.units // self.group

    @property
    def group_width(self) -> int:
        """Columns of the output projection per group."""
        return self.unit_width * self.group

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

    def runs_with(self, kept: Sequence[int]) -> bool:
        """Tells whether the forward pass computes some of the units where its projections return no others.

        No kernel takes products of no width, and numbers that a forward pass reads beside them would have to change.
        """
        return 0 < len(kept) == self.group * len(self.groups_of(kept)) and not self.has_own_state

    def config_of(self, config: Any) -> Any:
        """Returns the configuration that holds the numbers of the site, by that of the model."""
        return getattr(config, self.tower) if self.tower else config

    def dense_units(self, config: Any) -> int:
        """Returns the number of units that the dense model has here, by the configuration of the model."""
        return self.block.dense_units(self.config_of(config), self.layer)

    def columns(self, units: Iterable[int]) -> list[int]:
        """Returns the columns of the output projection that belong to units.

        Args:
            units: In the order wanted.
        """
        width = self.unit_width
        return [column for unit in units for column in range(unit * width, (unit + 1) * width)]

    def rows(self, part: Part, units: Iterable[int]) -> list[int]:
        """Returns the rows of one of `parts` that belong to units, and those that their groups share.

        Args:
            part: The module.
            units: Ascending.
        """
        return part.rows.indices_of_heads(units, self.group)

    def groups_of(self, units: Iterable[int]) -> tuple[int, ...]:
        """Returns the groups that units lie in."""
        return tuple(dict.fromkeys(unit // self.group for unit in units))

    def units_of(self, groups: Iterable[int]) -> list[int]:
        """Returns the units of whole groups."""
        return [unit for group in groups for unit in range(group * self.group, (group + 1) * self.group)]

    def price(self, price: Price, units: Sequence[int] | None = None) -> int:
        """Returns what some units cost, or all of them."""
        units = range(self.units) if units is None else units
        return price.of(len(units), len(self.groups_of(units)) if price.per_group else 0)

    def numbers(self, kept: Sequence[int]) -> dict[str, int]:
        """Returns the layer's entry in `per_layer_config` when some units are kept."""
        found = {self.field: len(kept)}
        return found if self.block.groups is None else found | {self.block.groups: len(self.groups_of(kept))}

    def first(self, numbers: Any) -> list[int]:
        """Returns the first units, as many as a configuration says, equally many of each of the first groups."""
        units = getattr(numbers, self.field)
        if self.group == 1:  # None where the layers of the dense model differ: all
            return list(range(self.units if units is None else units))
        groups = getattr(numbers, str(self.block.groups))
        return [group * self.group + head for group in range(groups) for head in range(units // groups)]

    def number(self, layout: str, kept: Sequence[int]) -> int:
        """Returns a product of sizes, such as "u d", when some units are kept."""
        groups = len(self.groups_of(kept))
        return Entries.of(layout, {**self.sizes, HEADS: len(kept) // max(groups, 1), UNIT: groups}).total


@dataclass(frozen=True)
class Anatomy:
    """Every site of a live model, and the totals that `cost` starts from.

    Attributes:
        model_type: Family, without the prefix of pruned models.
        sites: Sites in the order of the forward pass; the order of all score vectors over heads.
        num_parameters: Parameters of the whole model, tied ones counted once.
        num_bytes: Bytes of all tensors that `save_pretrained` writes, tied ones counted once.
        num_embedding_parameters: Those of the embedding tables; a table inside an attention block belongs to the block.
        num_embedding_bytes: Bytes of the embedding tables in the file.
        left_out: Why units that the family has are not among the sites, if so.
    """

    model_type: str
    sites: tuple[Site, ...]
    num_parameters: int
    num_bytes: int
    num_embedding_parameters: int
    num_embedding_bytes: int
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
    family = declaration_of(model_or_config)
    if family is None:
        model_type = getattr(getattr(model_or_config, "config", model_or_config), "model_type", None)
        name = _dense_type(model_type)
        if name in REFUSED:
            raise UnsupportedModelError(f"{type(model_or_config).__name__} can't be pruned: {REFUSED[name]}.")
        inside = _supported_inside(model_or_config)
        if inside is not None:
            raise UnsupportedModelError(
                f"{type(model_or_config).__name__} is no Transformers model, but holds one: pass its .{inside}. Prune, "
                "save and load that part; the rest of the weights is yours to save."
            )
        raise UnsupportedModelError(
            f"{type(model_or_config).__name__}: no declaration says where its heads are (model_type {model_type!r}). "
            f"Supported: {', '.join(sorted(FAMILIES))}. A further family is one more entry in "
            "hf_headprune.families.FAMILIES."
        )
    return family


def declaration_of(model_or_config: Any) -> Family | None:
    """Returns the declaration of a model's family, or None where there is none."""
    return FAMILIES.get(_dense_type(getattr(getattr(model_or_config, "config", model_or_config), "model_type", None)))


def _dense_type(model_type: Any) -> Any:
    """Returns the model type of the dense model."""
    return model_type.removeprefix(PRUNABLE_PREFIX) if isinstance(model_type, str) else None


def towers_of(model: nn.Module) -> list[Any]:
    """Returns the towers that a model has, models themselves; none of a model that is not declared."""
    family, present = declaration_of(model), dict(base_model(model).named_modules())
    paths = {stack.tower: None for stack in family.stacks if stack.tower} if family is not None else {}
    return [present[path] for path in paths if path in present]


def _supported_inside(wrapper: Any) -> str | None:
    """Returns the path of a Transformers model of a declared family in a module without a configuration of its own."""
    modules = getattr(wrapper, "named_modules", None)
    if modules is None or getattr(getattr(wrapper, "config", None), "model_type", None) is not None:
        return None
    kinds = ((path, getattr(getattr(it, "config", None), "model_type", None)) for path, it in modules())
    names = ((path, kind.removeprefix(PRUNABLE_PREFIX)) for path, kind in kinds if isinstance(kind, str) and path)
    return next((path for path, name in names if name in FAMILIES), None)


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
            f"{type(model).__name__} can be pruned from Transformers {family.since} on: before, its modules have other "
            "names. Install a newer Transformers."
        )
    base = base_model(model)
    present = dict(base.named_modules())
    sites = tuple(_sites(family, present, model.config))
    if not sites:
        raise UnsupportedModelError(
            f"{type(model).__name__}: none of the stacks {[stack.layers for stack in family.stacks]} exists in "
            f"{type(base).__name__}. Pass the Transformers model itself, not a wrapper around it; of a model with "
            "adapters of PEFT, what its merge_and_unload() returns."
        )
    # Weights that are offloaded are tied by name alone: each use makes them other objects.
    tied = set(getattr(model, "all_tied_weights_keys", {})) if is_dispatched(model) else set()
    not_saved = names_not_saved(model) | tied
    # What quantization packs into a state has parts that are no tensors.
    state = {name: it for name, it in model.state_dict(keep_vars=True).items() if hasattr(it, "data_ptr")}
    saved = {name: it for name, it in state.items() if name not in not_saved}
    parameters = {name: it for name, it in model.named_parameters(remove_duplicate=False) if name not in tied}
    tables = _embedding_tables(model, present, sites)
    return Anatomy(
        model_type=family.model_type,
        sites=sites,
        num_parameters=_entries(parameters.values()),
        num_bytes=_bytes(saved.values()),
        num_embedding_parameters=_entries(it for name, it in parameters.items() if name in tables),
        num_embedding_bytes=_bytes(it for name, it in saved.items() if name in tables),
        left_out=family.left_out,
    )


def _embedding_tables(model: Any, present: Mapping[str, Any], sites: Iterable[Site]) -> set[str]:
    """Returns the names of the weights of all embeddings that are in no attention block."""
    inside = {id(module) for site in sites if site.is_attention for module in present[site.name].modules()}
    modules = model.named_modules(remove_duplicate=False)
    return {f"{path}.weight" for path, it in modules if "num_embeddings" in vars(it) and id(it) not in inside}


def _entries(parameters: Iterable[Any]) -> int:
    """Counts the entries of parameters, those of the same one once."""
    return sum(parameter.numel() for parameter in {id(it): it for it in parameters}.values())


def _bytes(tensors: Iterable[Any]) -> int:
    """Counts the bytes of tensors, those in the same memory once."""
    apart = {tensor.data_ptr() or id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in apart.values())


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
                f"{type(model).__name__}: two of its stacks have a layer {site.layer} (encoder and decoder, or "
                "towers), so a number does not say which is meant. Name the sites in a PruningPlan, for masked or "
                "prune_model_."
            )
        found[site.layer] = site
    return found


def layer_lists(paths: Iterable[str], stack: Stack) -> list[str]:
    """Returns those paths that are lists of layers of a stack; several where stages follow one another.

    Args:
        paths: Of all modules of a base model.
        stack: As it is declared.
    """
    pattern = re.compile(re.escape(stack.layers).replace(r"\*", r"\d+"))
    return [path for path in paths if pattern.fullmatch(path)]


def transposed(module: Any) -> bool:
    """Tells whether a linear module stores its weight as `(in, out)`, as those of GPT-2 do."""
    return hasattr(module, "nf")


def matrix_of(module: Any) -> Any:
    """Returns the weight of a linear module as `(out, in)`, a view of it."""
    return module.weight.T if transposed(module) else module.weight


def _sites(family: Family, present: Mapping[str, Any], config: Any) -> Iterator[Site]:
    is_decoder = bool(getattr(config, "is_decoder", False)) and not getattr(config, "is_encoder_decoder", False)
    for stack in family.stacks:
        own = getattr(config, stack.config) if stack.config else config
        in_decoder = is_decoder or any(block.kind == "decoder" for block in stack.blocks)
        lists: list[tuple[str, Any]] = [(path, present[path]) for path in layer_lists(present, stack)]
        paths = [f"{path}.{index}" for path, layers in lists for index in range(len(layers))]
        for index, prefix in enumerate(paths):
            uses = 1 if stack.uses is None else stack.uses(own, index)
            for block in stack.blocks:
                shown_by = block.site if block.is_attention else next(iter(block.inputs))
                if block.enabled_by is not None and f"{prefix}.{shown_by}" not in present:
                    continue
                found = _Reader(present, prefix, block).site(layer=index, in_decoder=in_decoder, uses=uses)
                tokens = block.tokens(own, index) if block.tokens else None
                yield dataclasses.replace(found, tower=stack.config, tokens=tokens)


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
        groups = width // unit_width
        group = sizes.get(HEADS, 1) if groups else 1
        sized = {**sizes, UNIT: groups}
        parts = tuple(self.parts(sized))
        owned = [*self.tensors(parts, output, sized)] if groups else []
        index = getattr(self.present.get(core), KEPT_HEADS, None)
        return Site(
            name=name,
            kind="decoder" if block.kind == "encoder" and in_decoder else block.kind,
            layer=layer,
            units=groups * group,
            unit_width=unit_width // group,
            group=group,
            parts=parts,
            output=self.path(block.output),
            core=core,
            block=block,
            sizes=sizes,
            hidden_size=output.nf if transposed(output) else output.out_features,
            in_decoder=in_decoder,
            uses=uses,
            parameters=_price([(tensor.numel(), rows) for tensor, rows in owned], groups, group),
            bytes=_price(
                [(tensor.numel() * tensor.element_size(), rows) for tensor, rows in owned]
                + [(BYTES_PER_INDEX * groups * group, None)] * (index is not None),
                groups,
                group,
            ),
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

    def tensors(
        self, parts: tuple[Part, ...], output: Any, sizes: Mapping[str, int]
    ) -> Iterator[tuple[Any, Entries | None]]:
        """Yields the tensors of which each unit owns an equal share, and the layout of rows, which is checked."""
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
            yield from ((tensor, part.rows) for tensor in (linear.weight, linear.bias) if tensor is not None)
        yield from ((tensor, None) for tensor in (output.weight, *self.tables(sizes)))

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


def _price(sizes: Iterable[tuple[int, Entries | None]], groups: int, group: int) -> Price:
    """Returns what a unit and a group own of tensors.

    Args:
        sizes: Of each tensor, what is counted of it, and the layout of its rows; None where heads share nothing of it.
        groups: Number of groups.
        group: Heads of each.
    """
    own = shared = 0
    for size, rows in sizes:
        of_heads = size if rows is None or group == 1 else size * rows.of_heads // rows.total
        own, shared = own + of_heads, shared + size - of_heads
    return Price(own // max(groups * group, 1), shared // max(groups, 1))
