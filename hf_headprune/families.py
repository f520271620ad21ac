"""Declarations: where the attention heads and FFN units of each model family are. Add a model family here.

The only file with module paths. A further family is one more entry in `FAMILIES`; no other file changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

SiteKind = Literal["encoder", "decoder", "cross", "ffn"]
PRUNABLE_PREFIX = "prunable_"


@dataclass(frozen=True)
class AttentionNames:
    """Names of one attention block below its layer.

    Attributes:
        site: Path of the block; it is the site's name.
        core: Module that computes the heads. It is replaced when no head stays.
        query, key, value: Linear modules whose rows belong to the heads.
        output: Linear module whose columns belong to the heads.
        num_heads: Field of the configuration that holds the number of heads.
        kind: Role of the block.
        own_field: Field of the pruned configuration, where `num_heads` names a field that another block uses too.
        enabled_by: Field of the configuration without which a model of the family lacks the block.
    """

    site: str
    core: str
    query: str
    key: str
    value: str
    output: str
    num_heads: str
    kind: SiteKind
    own_field: str | None = None
    enabled_by: str | None = None

    @property
    def optional(self) -> bool:
        """Whether a model of the family may lack the block."""
        return self.enabled_by is not None

    @property
    def field(self) -> str:
        """Field of a layer's entry in `per_layer_config` that holds the number of heads kept."""
        return self.own_field or self.num_heads

    @property
    def inputs(self) -> tuple[str, ...]:
        """Linear modules whose rows belong to the heads."""
        return (self.query, self.key, self.value)

    @property
    def dense_field(self) -> str:
        """Field of the dense configuration that holds the number of heads."""
        return self.num_heads


@dataclass(frozen=True)
class FFNNames:
    """Names of one feed-forward block below its layer: `down(activation(up(x)))`.

    Attributes:
        site: Path that names the site.
        up: Linear module whose rows are the units.
        down: Linear module whose columns are the units.
        width: Field of the configuration that holds the number of units.
    """

    site: str
    up: str
    down: str
    width: str
    kind: ClassVar[SiteKind] = "ffn"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Linear modules whose rows belong to the units."""
        return (self.up,)

    @property
    def core(self) -> str:
        """Module that is replaced when no unit stays."""
        return self.up

    @property
    def output(self) -> str:
        """Linear module whose columns belong to the units."""
        return self.down

    @property
    def dense_field(self) -> str:
        """Field of the dense configuration that holds the number of units."""
        return self.width

    @property
    def field(self) -> str:
        """Field of a layer's entry in `per_layer_config` that holds the number of units kept."""
        return self.width


@dataclass(frozen=True)
class Stack:
    """A list of equal layers: its path below the base model, the blocks of each layer, and its depth's field."""

    layers: str
    attentions: tuple[AttentionNames, ...]
    ffn: FFNNames
    depth: str = "num_hidden_layers"


@dataclass(frozen=True)
class Family:
    """Declaration of a model family.

    Attributes:
        model_type: `config.model_type` of the dense model.
        stacks: The stacks of layers, in the order of the forward pass.
        hidden_size: Field of the configuration that holds the width of the residual stream.
    """

    model_type: str
    stacks: tuple[Stack, ...]
    hidden_size: str = "hidden_size"

    @property
    def prunable_type(self) -> str:
        """`config.model_type` of the pruned model."""
        return PRUNABLE_PREFIX + self.model_type


def _bert_layout(*, kind: SiteKind = "encoder") -> Stack:
    def attention(name: str, role: SiteKind, own_field: str | None = None) -> AttentionNames:
        return AttentionNames(
            site=name,
            core=f"{name}.self",
            query=f"{name}.self.query",
            key=f"{name}.self.key",
            value=f"{name}.self.value",
            output=f"{name}.output.dense",
            num_heads="num_attention_heads",
            kind=role,
            own_field=own_field,
            enabled_by="add_cross_attention" if own_field else None,
        )

    return Stack(
        layers="encoder.layer",
        attentions=(attention("attention", kind), attention("crossattention", "cross", "num_cross_attention_heads")),
        ffn=FFNNames(site="intermediate", up="intermediate.dense", down="output.dense", width="intermediate_size"),
    )


def _bart_stack(side: Literal["encoder", "decoder"]) -> Stack:
    def attention(name: str, role: SiteKind, own_field: str | None = None) -> AttentionNames:
        return AttentionNames(
            site=name,
            core=name,
            query=f"{name}.q_proj",
            key=f"{name}.k_proj",
            value=f"{name}.v_proj",
            output=f"{name}.out_proj",
            num_heads=f"{side}_attention_heads",
            kind=role,
            own_field=own_field,
        )

    attentions = [attention("self_attn", side)]
    if side == "decoder":
        attentions.append(attention("encoder_attn", "cross", "cross_attention_heads"))
    return Stack(
        layers=f"{side}.layers",
        attentions=tuple(attentions),
        ffn=FFNNames(site="fc1", up="fc1", down="fc2", width=f"{side}_ffn_dim"),
        depth=f"{side}_layers",
    )


_DISTILBERT_STACK = Stack(
    layers="transformer.layer",
    attentions=(
        AttentionNames(
            site="attention",
            core="attention",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            num_heads="n_heads",
            kind="encoder",
        ),
    ),
    ffn=FFNNames(site="ffn", up="ffn.lin1", down="ffn.lin2", width="hidden_dim"),
    depth="n_layers",
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("bert", (_bert_layout(),)),
        Family("roberta", (_bert_layout(),)),
        Family("xlm-roberta", (_bert_layout(),)),
        Family("electra", (_bert_layout(),)),
        Family("distilbert", (_DISTILBERT_STACK,), hidden_size="dim"),
        Family("marian", (_bart_stack("encoder"), _bart_stack("decoder")), hidden_size="d_model"),
        Family("bart", (_bart_stack("encoder"), _bart_stack("decoder")), hidden_size="d_model"),
    )
}
