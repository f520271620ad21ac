"""Declarations: where the attention heads and FFN units of each model family are. Add a model family here.

The only file with module paths. A further family is one more entry in `FAMILIES`; no other file changes.

A declaration says in the notation of the field which entries of which matrices belong to a unit. `u` is the unit (a
head or an FFN unit), `d` the width of a head, `r` the query heads of one group, a number is itself, and `+` joins
sections: `{"q_proj": "u d"}`, `{"Wqkv": "3 u d"}`, `{"qkv_proj": "u r d + u d + u d"}`. `hf_headprune.anatomy` checks
each layout against its matrix when it reads a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SiteKind = Literal["encoder", "decoder", "cross", "ffn"]
Probe = Literal["tokens", "pixels", "spectrogram", "waveform"]
PRUNABLE_PREFIX = "prunable_"


@dataclass(frozen=True)
class Block:
    """One block of units in each layer of a stack. All paths are below the layer.

    Attributes:
        site: Path of the block; it is the site's name.
        kind: Role of the block; "ffn" for a feed-forward block.
        inputs: Layout of the rows of each linear module that makes the units, those that read queries first. Two
            modules of a gated FFN are two entries; what carries the values comes last.
        output: Linear module whose columns belong to the units.
        units: Field of the configuration that holds the number of units of the dense model, or what computes it.
        own_field: Field of the pruned configuration, where `units` is no field or another block uses it, too.
        columns: Layout of the columns of `output`, unit by unit.
        core: Module that computes the heads; of an FFN, nothing.
        sizes: Attribute of `core` for each letter of the layouts but `u`.
        optional: Modules among `inputs` that a model of the family may lack.
        enabled_by: Field of the configuration without which a model of the family lacks the block.
        transposed: Whether the weights are stored as `(in, out)`.
        attributes: Attributes of `core` that its forward pass reads, as products of sizes.
        own_numbers: Fields of the configuration that the forward pass of `core` reads, as products of sizes.
        tables: Parameters beside the linear modules with a dimension of units: its place, and its layout.
        shared_bias: Argument of the forward pass with a bias of all heads of the dense model, which the first layer
            makes for all.
        runs_empty: Whether the forward pass of `core` does more than attention, and so has to run without heads, too.
    """

    site: str
    kind: SiteKind
    inputs: Mapping[str, str]
    output: str
    units: str | Callable[[Any], int]
    own_field: str | None = None
    columns: str = "u d"
    core: str = ""
    sizes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    enabled_by: str | None = None
    transposed: bool = False
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own_numbers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    shared_bias: str | None = None
    runs_empty: bool = False

    @property
    def is_attention(self) -> bool:
        """Whether the units are attention heads, or groups of them."""
        return self.kind != "ffn"

    @property
    def field(self) -> str:
        """Field of a layer's entry in `per_layer_config` that holds the number of units kept."""
        return self.own_field or str(self.units)

    @property
    def dense_field(self) -> str:
        """Field of the configuration that holds the number of units of the dense model."""
        return self.units if isinstance(self.units, str) else self.field

    def dense_units(self, config: Any) -> int:
        """Returns the number of units of the dense model by its configuration."""
        return getattr(config, self.units) if isinstance(self.units, str) else self.units(config)


@dataclass(frozen=True)
class Stack:
    """Layers with the same blocks.

    Attributes:
        layers: Path below the base model of the list of layers. A `*` stands for each index of a list above it.
        blocks: Of each layer, in the order of the forward pass.
        depth: Field of the configuration that holds the number of layers, or what computes it.
        uses: How often a forward pass runs a layer, by the configuration and the layer's index.
    """

    layers: str
    blocks: tuple[Block, ...]
    depth: str | Callable[[Any], int] = "num_hidden_layers"
    uses: Callable[[Any, int], int] | None = None

    @property
    def runner(self) -> str:
        """Path of the module that runs the layers; the base model itself is empty."""
        return self.layers.partition(".*")[0].rpartition(".")[0]

    @property
    def attentions(self) -> tuple[Block, ...]:
        """Blocks of heads."""
        return tuple(block for block in self.blocks if block.is_attention)

    def number_of_layers(self, config: Any) -> int:
        """Returns the number of layers by the configuration."""
        return getattr(config, self.depth) if isinstance(self.depth, str) else self.depth(config)


@dataclass(frozen=True)
class Family:
    """Declaration of a model family.

    Attributes:
        model_type: `config.model_type` of the dense model.
        stacks: The stacks of layers, in the order of the forward pass.
        hidden_size: Field of the configuration that holds the width of the residual stream.
        head_dim: Field of the configuration that holds the width of a head; None where it follows from the number of
            heads.
        probe: What a forward pass is given.
        left_out: Why units that the family has are not pruned, if so.
    """

    model_type: str
    stacks: tuple[Stack, ...]
    hidden_size: str = "hidden_size"
    head_dim: str | None = None
    probe: Probe = "tokens"
    left_out: str | None = None

    @property
    def prunable_type(self) -> str:
        """`config.model_type` of the pruned model."""
        return PRUNABLE_PREFIX + self.model_type

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all stacks."""
        return tuple(block for stack in self.stacks for block in stack.blocks)

    @property
    def attentions(self) -> tuple[Block, ...]:
        """Blocks of heads of all stacks."""
        return tuple(block for block in self.blocks if block.is_attention)


def _attention(site: str, kind: SiteKind, qkv: str, output: str, units: str, **more: Any) -> Block:
    """Returns attention with three matrices of equal layout, named in one text with their shared path once."""
    path, _, names = qkv.rpartition(".")
    prefix = f"{path}." if path else ""
    more = {"core": path or site, "sizes": {"d": "attention_head_size"}} | more
    return Block(site, kind, {f"{prefix}{name}": "u d" for name in names.split()}, output, units, **more)


def _ffn(site: str, inputs: str, output: str, units: str | Callable[[Any], int], **more: Any) -> Block:
    """Returns an FFN; two modules make it a gated one."""
    return Block(site, "ffn", dict.fromkeys(inputs.split(), "u"), output, units, columns="u", **more)


_BERT_FFN = _ffn("intermediate", "intermediate.dense", "output.dense", "intermediate_size")


def _bert(model_type: str) -> Family:
    def attention(name: str, kind: SiteKind, **more: Any) -> Block:
        qkv = f"{name}.self.query key value"
        return _attention(name, kind, qkv, f"{name}.output.dense", "num_attention_heads", **more)

    crossed = {"own_field": "num_cross_attention_heads", "enabled_by": "add_cross_attention"}
    blocks = (attention("attention", "encoder"), attention("crossattention", "cross", **crossed), _BERT_FFN)
    return Family(model_type, (Stack("encoder.layer", blocks),))


def _bart(model_type: str, **more: Any) -> Family:
    def stack(side: Literal["encoder", "decoder"]) -> Stack:
        def attention(name: str, kind: SiteKind, own_field: str | None = None) -> Block:
            settings = {"core": name, "sizes": {"d": "head_dim"}, "own_field": own_field} | more
            units = f"{side}_attention_heads"
            return _attention(name, kind, f"{name}.q_proj k_proj v_proj", f"{name}.out_proj", units, **settings)

        blocks = [attention("self_attn", side)]
        if side == "decoder":
            blocks.append(attention("encoder_attn", "cross", "cross_attention_heads"))
        blocks.append(_ffn("fc1", "fc1", "fc2", f"{side}_ffn_dim"))
        return Stack(f"{side}.layers", tuple(blocks), f"{side}_layers")

    probe: Probe = "spectrogram" if more else "tokens"
    return Family(model_type, (stack("encoder"), stack("decoder")), hidden_size="d_model", probe=probe)


_DISTILBERT = Family(
    "distilbert",
    (
        Stack(
            "transformer.layer",
            (
                _attention(
                    "attention",
                    "encoder",
                    "attention.q_lin k_lin v_lin",
                    "attention.out_lin",
                    "n_heads",
                    sizes={"d": "attention_head_size"},
                ),
                _ffn("ffn", "ffn.lin1", "ffn.lin2", "hidden_dim"),
            ),
            "n_layers",
        ),
    ),
    hidden_size="dim",
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *map(_bert, ("bert", "roberta", "xlm-roberta", "electra")),
        _DISTILBERT,
        *map(_bart, ("marian", "bart")),
    )
}
