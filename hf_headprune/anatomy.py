"""Anatomy: the heads and FFN units of a live model, found by the declaration of its family.

Nothing here computes with tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_headprune._compat import names_not_saved
from hf_headprune.errors import UnsupportedModelError
from hf_headprune.families import FAMILIES, PRUNABLE_PREFIX

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterable, Iterator

    from torch import nn

    from hf_headprune.families import AttentionNames, Family, FFNNames, SiteKind


@dataclass(frozen=True)
class Site:
    """One prunable block of a live model. All paths are relative to the base model.

    Attributes:
        name: Path of the block, such as "encoder.layer.3.attention".
        kind: "encoder", "decoder" or "cross" for attention, "ffn" for a feed-forward block.
        layer: Zero-based index in its stack.
        units: Number of heads or FFN units that the live model has.
        unit_width: Columns of the output projection per unit: `head_dim`, or 1 for FFN units.
        inputs: Paths of the linear modules whose rows are cut: query, key and value, or the first FFN matrix.
        output: Path of the linear module whose columns are cut.
        core: Path of the module that is replaced when no unit stays; for FFN the first matrix.
        field: Field of the layer's entry in `per_layer_config` that holds the number of units.
        dense_field: Field of the dense configuration that holds the number of units of the unpruned model.
        hidden_size: Width of the residual stream.
        in_decoder: Whether it runs over the tokens of a decoder, be that half of a model or all of it.
        parameters_per_unit: Parameters that leave with one unit, biases included.
        bytes_per_unit: Bytes of those parameters at their present dtype.
    """

    name: str
    kind: SiteKind
    layer: int
    units: int
    unit_width: int
    inputs: tuple[str, ...]
    output: str
    core: str
    field: str
    dense_field: str
    hidden_size: int
    in_decoder: bool
    parameters_per_unit: int
    bytes_per_unit: int

    @property
    def is_attention(self) -> bool:
        """Whether the units are attention heads."""
        return self.kind != "ffn"

    def columns(self, units: Iterable[int]) -> list[int]:
        """Returns the columns of the output projection that belong to units, which are the rows of the input modules.

        Args:
            units: In the order wanted.
        """
        width = self.unit_width
        return [column for unit in units for column in range(unit * width, (unit + 1) * width)]


@dataclass(frozen=True)
class Anatomy:
    """Every site of a live model, and the totals that `cost` starts from.

    Attributes:
        model_type: Family, without the prefix of pruned models.
        sites: Sites in the order of the forward pass; the order of all score vectors over heads.
        num_parameters: Parameters of the whole model, tied ones counted once.
        num_bytes: Bytes of all tensors that `save_pretrained` writes, tied ones counted once.
    """

    model_type: str
    sites: tuple[Site, ...]
    num_parameters: int
    num_bytes: int

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
    base = base_model(model)
    sites = tuple(_sites(family, base, model.config))
    if not sites:
        raise UnsupportedModelError(
            f"{type(model).__name__}: none of the stacks {[stack.layers for stack in family.stacks]} exists in "
            f"{type(base).__name__}. Pass the Transformers model itself, not a wrapper around it."
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
    )


def dense_head_dim(config: Any, num_heads_field: str, hidden_field: str) -> int:
    """Returns the width of one head: `config.head_dim` where a pruned configuration states it."""
    stated = getattr(config, "head_dim", None)
    return stated or getattr(config, hidden_field) // getattr(config, num_heads_field)


def _sites(family: Family, base: nn.Module, config: Any) -> Iterator[Site]:
    present = dict(base.named_modules())
    hidden_size = getattr(config, family.hidden_size)
    is_decoder = bool(getattr(config, "is_decoder", False)) and not getattr(config, "is_encoder_decoder", False)
    for stack in family.stacks:
        layers: Any = present.get(stack.layers, ())
        in_decoder = is_decoder or any(names.kind == "decoder" for names in stack.attentions)
        for index in range(len(layers)):
            prefix = f"{stack.layers}.{index}"
            for names in stack.attentions:
                if f"{prefix}.{names.site}" not in present and names.optional:
                    continue
                yield _site(
                    present,
                    prefix,
                    names,
                    layer=index,
                    unit_width=dense_head_dim(config, names.num_heads, family.hidden_size),
                    hidden_size=hidden_size,
                    in_decoder=in_decoder,
                )
            yield _site(
                present, prefix, stack.ffn, layer=index, unit_width=1, hidden_size=hidden_size, in_decoder=in_decoder
            )


def _site(  # noqa: PLR0913 - what its stack knows of a site
    present: dict[str, nn.Module],
    prefix: str,
    names: AttentionNames | FFNNames,
    *,
    layer: int,
    unit_width: int,
    hidden_size: int,
    in_decoder: bool,
) -> Site:
    output_path = f"{prefix}.{names.output}"
    if output_path not in present:
        raise UnsupportedModelError(
            f"{prefix}.{names.site}: the declaration names {output_path!r}, which this model does not have. "
            "Its layers differ from the family's; prune a model of the family's original layout."
        )
    output: Any = present[output_path]
    units = output.in_features // unit_width
    input_paths = tuple(f"{prefix}.{path}" for path in names.inputs)
    tensors = _tensors_per_unit(present, input_paths, output) if units else []
    return Site(
        name=f"{prefix}.{names.site}",
        kind="decoder" if names.kind == "encoder" and in_decoder else names.kind,
        layer=layer,
        units=units,
        unit_width=unit_width,
        inputs=input_paths,
        output=output_path,
        core=f"{prefix}.{names.core}",
        field=names.field,
        dense_field=names.dense_field,
        hidden_size=hidden_size,
        in_decoder=in_decoder,
        parameters_per_unit=sum(tensor.numel() for tensor in tensors) // max(units, 1),
        bytes_per_unit=sum(tensor.numel() * tensor.element_size() for tensor in tensors) // max(units, 1),
    )


def _tensors_per_unit(present: dict[str, nn.Module], inputs: tuple[str, ...], output: Any) -> list[Any]:
    missing = [path for path in inputs if path not in present]
    if missing:
        raise UnsupportedModelError(
            f"The declaration names {missing}, which this model does not have although its output projection has "
            "units. Prune a model of the family's original layout."
        )
    linears: list[Any] = [present[path] for path in inputs]
    packed = [path for path in inputs if not hasattr(present[path].weight, "numel")]
    if packed:
        raise UnsupportedModelError(
            f"{packed[0]}: its weight is no tensor, as in models that torch has quantized. Prune the model first, and "
            "quantize what is left."
        )
    tensors = [linear.weight for linear in linears] + [linear.bias for linear in linears if linear.bias is not None]
    return [*tensors, output.weight]
