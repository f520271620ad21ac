"""Declarations: where the attention heads and FFN units of each model family are. Add a model family here.

The only file with module paths. A further family is one more entry in `FAMILIES`; no other file changes.

A declaration says in the notation of the field which entries of which matrices belong to a unit. `u` is the unit (a
head or an FFN unit), `d` the width of a head, a number is itself, and `+` joins sections: `{"q_proj": "u d"}`,
`{"Wqkv": "3 u d"}`. Where query heads share keys and values by groups, `u` is the group and `r` the query heads of one:
`{"qkv_proj": "u r d + u d + u d"}`. `hf_headprune.anatomy` checks each layout against its matrix when it reads a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SiteKind = Literal["encoder", "decoder", "cross", "ffn"]
Probe = Literal["tokens", "pixels", "tokens and pixels", "spectrogram", "waveform"]
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
        units: Field of the configuration that holds the number of units of the dense model, or what computes it: one
            number, or one for each layer.
        own_field: Field of the pruned configuration, where `units` is no field or another block uses it, too.
        groups: Field of the configuration that holds the number of groups of heads that share a key and a value.
        columns: Layout of the columns of `output`, unit by unit.
        core: Module that computes the heads; of an FFN, nothing.
        sizes: Attribute of `core` for each letter of the layouts but `u`.
        optional: Modules among `inputs` that a model of the family may lack.
        enabled_by: Field of the configuration without which a model of the family lacks the block; with "not " before
            it, a field with which it lacks it.
        transposed: Whether the weights are stored as `(in, out)`.
        attributes: Attributes of `core` that its forward pass reads, as products of sizes.
        own_numbers: Fields of the configuration that the forward pass of `core` reads, as products of sizes.
        tables: Parameters beside the linear modules with a dimension of units: its place, and its layout.
        shared_bias: Argument of the forward pass with a bias of all heads of the dense model, which the first layer
            makes for all.
        runs_empty: Whether the forward pass of `core` does more than attention, and so has to run without heads, too.
        tokens: Where the configuration says it, and not the length of the input: how many tokens the block sees in a
            layer, by the configuration and the layer's index, and how many of them each attends to.
        said: Which smaller numbers of units, one for all layers, the dense model's configuration can say, so that a
            model with equal layers is one of the dense class: "any", "divisors" (numbers of heads that divide the
            hidden size), or None.
    """

    site: str
    kind: SiteKind
    inputs: Mapping[str, str]
    output: str
    units: str | Callable[[Any], int | Sequence[int]]
    own_field: str | None = None
    groups: str | None = None
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
    tokens: Callable[[Any, int], tuple[int, int]] | None = None
    said: Literal["any", "divisors"] | None = None

    @property
    def is_attention(self) -> bool:
        """Whether the units are attention heads."""
        return self.kind != "ffn"

    @property
    def field(self) -> str:
        """Field of a layer's entry in `per_layer_config` that holds the number of units kept."""
        return self.own_field or str(self.units)

    @property
    def dense_field(self) -> str:
        """Field of the configuration that holds the number of units of the dense model."""
        return self.units if isinstance(self.units, str) else self.field

    def is_enabled(self, config: Any) -> bool:
        """Tells whether a model of this configuration has the block."""
        if self.enabled_by is None:
            return True
        word, _, name = self.enabled_by.rpartition(" ")
        return bool(getattr(config, name, False)) != (word == "not")

    def dense_units(self, config: Any, layer: int) -> int:
        """Returns the number of units of a layer of the dense model by its configuration."""
        found = self._dense_numbers(config)
        return found[layer] if isinstance(found, Sequence) else found

    def dense_number(self, config: Any) -> int | None:
        """Returns the number of units of every layer of the dense model, or None where the layers differ."""
        found = self._dense_numbers(config)
        return None if isinstance(found, Sequence) else found

    def _dense_numbers(self, config: Any) -> int | Sequence[int]:
        return getattr(config, self.units) if isinstance(self.units, str) else self.units(config)


@dataclass(frozen=True)
class Stack:
    """Layers with the same blocks.

    Attributes:
        layers: Path below the base model of the list of layers. A `*` stands for each index of a list above it.
        blocks: Of each layer, in the order of the forward pass.
        depth: Field of the configuration that holds the number of layers, or what computes it.
        uses: How often a forward pass runs a layer, by the configuration and the layer's index.
        config: Field of the configuration with the configuration of these layers, where a model is made of towers.
    """

    layers: str
    blocks: tuple[Block, ...]
    depth: str | Callable[[Any], int] = "num_hidden_layers"
    uses: Callable[[Any, int], int] | None = None
    config: str | None = None

    @property
    def tower(self) -> str:
        """Path of the tower that the layers belong to; empty where the base model itself is all there is."""
        return self.layers.partition(".")[0] if self.config else ""

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
        since: The first version of Transformers whose models fit the declaration, where it is not the oldest supported.
        body: Class of its models, where no Auto class makes it.
    """

    model_type: str
    stacks: tuple[Stack, ...]
    hidden_size: str = "hidden_size"
    head_dim: str | None = None
    probe: Probe = "tokens"
    left_out: str | None = None
    since: str | None = None
    body: str | None = None

    @property
    def towers(self) -> tuple[str, ...]:
        """Fields of the configuration with the configurations of towers, in the order of the forward pass."""
        return tuple(dict.fromkeys(stack.config for stack in self.stacks if stack.config))

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
    more = {"said": "any" if isinstance(units, str) else None} | more
    return Block(site, "ffn", dict.fromkeys(inputs.split(), "u"), output, units, columns="u", **more)


_BERT_FFN = _ffn("intermediate", "intermediate.dense", "output.dense", "intermediate_size")


def _bert(model_type: str) -> Family:
    def attention(name: str, kind: SiteKind, **more: Any) -> Block:
        qkv = f"{name}.self.query key value"
        return _attention(name, kind, qkv, f"{name}.output.dense", "num_attention_heads", **more)

    crossed = {"own_field": "num_cross_attention_heads", "enabled_by": "add_cross_attention"}
    blocks = (attention("attention", "encoder"), attention("crossattention", "cross", **crossed), _BERT_FFN)
    return Family(model_type, (Stack("encoder.layer", blocks),))


def _bart(model_type: str, *, probe: Probe = "tokens", **more: Any) -> Family:
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

    return Family(model_type, (stack("encoder"), stack("decoder")), hidden_size="d_model", probe=probe)


def _self_attention(name: str, kind: SiteKind, names: str, **more: Any) -> Block:
    """Returns attention whose four matrices are in one module, named in one text."""
    *qkv, output = names.split()
    settings = {"core": name, "sizes": {"d": "head_dim"}} | more
    return _attention(
        name,
        kind,
        f"{name}.{' '.join(qkv)}",
        f"{name}.{output}",
        settings.pop("units", "num_attention_heads"),
        **settings,
    )


_GATED_FFN = _ffn("mlp", "mlp.gate_proj mlp.up_proj", "mlp.down_proj", "intermediate_size")
_IMAGE_FFN = _ffn("mlp", "mlp.fc1", "mlp.fc2", "intermediate_size")


def _patches(more: int) -> Callable[[Any, int], tuple[int, int]]:
    """Returns what counts the patches of an image of the configuration's size, and so many tokens more."""

    def count(config: Any, layer: int) -> tuple[int, int]:
        image, patch = (_pair_of(size) for size in (config.image_size, config.patch_size))
        tokens = (image[0] // patch[0]) * (image[1] // patch[1]) + more
        return tokens, tokens

    return count


def _pair_of(size: Any) -> tuple[int, int]:
    """Returns height and width of an image or patch."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _seeing(tokens: Callable[[Any, int], tuple[int, int]], *blocks: Block) -> tuple[Block, ...]:
    """Returns blocks whose configuration says how many tokens they see."""
    return tuple(dataclasses.replace(block, tokens=tokens) for block in blocks)


def _grouped(kind: SiteKind, **more: Any) -> Block:
    """Returns attention in which query heads share keys and values by groups."""
    projections = {"self_attn.q_proj": "u r d", "self_attn.k_proj": "u d", "self_attn.v_proj": "u d"}
    settings: dict[str, Any] = {"core": "self_attn", "sizes": {"d": "head_dim", "r": "num_key_value_groups"}}
    settings |= {"groups": "num_key_value_heads", "said": "any"} | more
    inputs = settings.pop("inputs", projections)
    return Block("self_attn", kind, inputs, "self_attn.o_proj", "num_attention_heads", columns="u r d", **settings)


def _llama(model_type: str, kind: SiteKind = "decoder", **more: Any) -> Family:
    return Family(model_type, (Stack("layers", (_grouped(kind, **more), _GATED_FFN)),), head_dim="head_dim")


def _image(model_type: str, more_tokens: int) -> Family:
    attention = _self_attention("attention", "encoder", "q_proj k_proj v_proj o_proj", said="any")
    blocks = _seeing(_patches(more_tokens), attention, _IMAGE_FFN)
    return Family(model_type, (Stack("layers", blocks),), probe="pixels")


def _tower(model_type: str, more_tokens: int | None = None, *, pools: bool = False, **more: Any) -> Family:
    """Returns a tower of images, which have so many tokens beside their patches, or of texts.

    The width of an attention pooling at its end is that of its FFNs.
    """
    attention = _self_attention("self_attn", "encoder", "q_proj k_proj v_proj out_proj", attributes={"num_heads": "u"})
    ffn = dataclasses.replace(_IMAGE_FFN, said=None if pools else "any")
    if more_tokens is None:
        return Family(model_type, (Stack("encoder.layers", (attention, ffn)),), **more)
    blocks = _seeing(_patches(more_tokens), attention, ffn)
    return Family(model_type, (Stack("encoder.layers", blocks),), probe="pixels", **more)


def _towers(model_type: str, **towers: Family) -> Family:
    """Returns a model of towers, by their names, whose configuration holds the configuration of each."""
    stacks = (
        dataclasses.replace(stack, layers=f"{name}_model.{stack.layers}", config=f"{name}_config")
        for name, tower in towers.items()
        for stack in tower.stacks
    )
    return Family(model_type, tuple(stacks), probe="tokens and pixels", since="5.24")


def _t5(model_type: str) -> Family:
    def attention(name: str, kind: SiteKind, own_field: str | None = None) -> Block:
        settings = {"units": "num_heads", "own_field": own_field, "sizes": {"d": "key_value_proj_dim"}}
        bias = {"shared_bias": "position_bias", "attributes": {"n_heads": "u"}}
        return _self_attention(name, kind, "q k v o", **settings, **bias)

    def ffns(place: int, own_field: str | None = None) -> tuple[Block, Block]:
        path = f"layer.{place}.DenseReluDense"
        plain = _ffn(path, f"{path}.wi", f"{path}.wo", "d_ff", own_field=own_field, enabled_by="not is_gated_act")
        gated = dataclasses.replace(plain, inputs={f"{path}.wi_0": "u", f"{path}.wi_1": "u"}, enabled_by="is_gated_act")
        return plain, gated

    own = attention("layer.0.SelfAttention", "encoder"), *ffns(1)
    crossed = (
        attention("layer.0.SelfAttention", "decoder", "num_decoder_heads"),
        attention("layer.1.EncDecAttention", "cross", "num_cross_attention_heads"),
        *ffns(2, "d_decoder_ff"),
    )
    stacks = (Stack("encoder.block", own, "num_layers"), Stack("decoder.block", crossed, "num_decoder_layers"))
    return Family(model_type, stacks, hidden_size="d_model", head_dim="d_kv", since="5.24")


def _albert_uses(config: Any, layer: int) -> int:
    """Returns how often ALBERT runs one of its layers, which it shares."""
    group = layer // config.inner_group_num
    per_group = config.num_hidden_layers / config.num_hidden_groups
    return sum(int(place / per_group) == group for place in range(config.num_hidden_layers))


def _dinov2_width(config: Any) -> int:
    """Returns the width of DINOv2's FFN: two thirds, in eights, where it is gated."""
    width = int(config.hidden_size * config.mlp_ratio)
    return (int(width * 2 / 3) + 7) // 8 * 8 if config.use_swiglu_ffn else width


_HEADS = {"num_attention_heads": "u", "all_head_size": "u d"}  # attributes of older attention classes
_OF_WIDTH = {"d": "attention_head_size"}

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

_ALBERT = Family(
    "albert",
    (
        Stack(
            "encoder.albert_layer_groups.*.albert_layers",
            (
                _self_attention("attention", "encoder", "query key value dense", sizes=_OF_WIDTH, runs_empty=True),
                _ffn("ffn", "ffn", "ffn_output", "intermediate_size"),
            ),
            depth=lambda config: config.num_hidden_groups * config.inner_group_num,
            uses=_albert_uses,
        ),
    ),
)

_MPNET = Family(
    "mpnet",
    (
        Stack(
            "encoder.layer",
            (
                _self_attention(
                    "attention.attn",
                    "encoder",
                    "q k v o",
                    sizes=_OF_WIDTH,
                    attributes=_HEADS,
                    shared_bias="position_bias",
                ),
                _BERT_FFN,
            ),
        ),
    ),
)

_DEBERTA = Family(
    "deberta-v2",
    (
        Stack(
            "encoder.layer",
            (
                _attention(
                    "attention",
                    "encoder",
                    "attention.self.query_proj pos_key_proj pos_query_proj key_proj value_proj",
                    "attention.output.dense",
                    "num_attention_heads",
                    optional=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
                    attributes=_HEADS,
                ),
                _BERT_FFN,
            ),
        ),
    ),
)

_MODERNBERT = Family(
    "modernbert",
    (
        Stack(
            "layers",
            (
                Block(
                    "attn",
                    "encoder",
                    {"attn.Wqkv": "3 u d"},
                    "attn.Wo",
                    "num_attention_heads",
                    core="attn",
                    sizes={"d": "head_dim"},
                ),
                Block("mlp", "ffn", {"mlp.Wi": "2 u"}, "mlp.Wo", "intermediate_size", columns="u", said="any"),
            ),
        ),
    ),
)

_NOMIC_BERT = Family(
    "nomic_bert",
    (
        Stack(
            "layers",
            (_self_attention("self_attn", "encoder", "q_proj k_proj v_proj o_proj", said="any"), _GATED_FFN),
        ),
    ),
)

_DINOV2_WIDTH: dict[str, Any] = {"units": _dinov2_width, "own_field": "num_ffn_units"}
_DINOV2 = Family(
    "dinov2",
    (
        Stack(
            "encoder.layer",
            _seeing(
                _patches(1),
                _self_attention("attention", "encoder", "q_proj k_proj v_proj o_proj", said="any"),
                _ffn("mlp", "mlp.fc1", "mlp.fc2", enabled_by="not use_swiglu_ffn", **_DINOV2_WIDTH),
                _ffn("mlp", "mlp.gate_proj mlp.up_proj", "mlp.down_proj", enabled_by="use_swiglu_ffn", **_DINOV2_WIDTH),
            ),
        ),
    ),
    probe="pixels",
    since="5.24",
)

_PHI3 = Family(
    "phi3",
    (
        Stack(
            "layers",
            (
                _grouped(
                    "decoder",
                    inputs={"self_attn.qkv_proj": "u r d + u d + u d"},
                    attributes={"num_key_value_heads": "u"},
                    own_numbers={"num_attention_heads": "u r", "num_key_value_heads": "u"},
                ),
                dataclasses.replace(_GATED_FFN, inputs={"mlp.gate_up_proj": "2 u"}),
            ),
        ),
    ),
    head_dim="head_dim",
)

_GPT2_CROSS = Block(
    "crossattention",
    "cross",
    {"crossattention.q_attn": "u d", "crossattention.c_attn": "2 u d"},
    "crossattention.c_proj",
    "n_head",
    own_field="num_cross_attention_heads",
    core="crossattention",
    sizes={"d": "head_dim"},
    enabled_by="add_cross_attention",
    transposed=True,
    attributes={"num_heads": "u", "split_size": "u d"},
)
_GPT2 = Family(
    "gpt2",
    (
        Stack(
            "h",
            (
                dataclasses.replace(
                    _GPT2_CROSS,
                    site="attn",
                    kind="decoder",
                    inputs={"attn.c_attn": "3 u d"},
                    output="attn.c_proj",
                    own_field=None,
                    core="attn",
                    enabled_by=None,
                ),
                _GPT2_CROSS,
                _ffn(
                    "mlp",
                    "mlp.c_fc",
                    "mlp.c_proj",
                    lambda config: config.n_inner or 4 * config.n_embd,
                    own_field="num_ffn_units",
                    transposed=True,
                ),
            ),
            "n_layer",
        ),
    ),
    hidden_size="n_embd",
)

_GPT_NEOX = Family(
    "gpt_neox",
    (
        Stack(
            "layers",
            (
                Block(
                    "attention",
                    "decoder",
                    {"attention.query_key_value": "u 3 d"},
                    "attention.dense",
                    "num_attention_heads",
                    core="attention",
                    sizes={"d": "head_size"},
                ),
                _ffn("mlp", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "intermediate_size"),
            ),
        ),
    ),
)

_WAV2VEC2 = Family(
    "wav2vec2",
    (
        Stack(
            "encoder.layers",
            (
                _self_attention("attention", "encoder", "q_proj k_proj v_proj out_proj", attributes={"num_heads": "u"}),
                _ffn(
                    "feed_forward",
                    "feed_forward.intermediate_dense",
                    "feed_forward.output_dense",
                    "intermediate_size",
                ),
            ),
        ),
    ),
    probe="waveform",
    since="5.24",
)

_CLIP_TOWERS = {"vision": _tower("clip_vision_model", 1), "text": _tower("clip_text_model")}
_SIGLIP_TOWERS = {
    "vision": _tower("siglip_vision_model", 0, pools=True),
    "text": _tower("siglip_text_model", body="SiglipTextModel"),
}


def _of_stages(number: Callable[[Any, int], int]) -> Callable[[Any], list[int]]:
    """Returns what lists a number of each stage of a Swin layer by layer."""
    return lambda config: [number(config, stage) for stage, depth in enumerate(config.depths) for _ in range(depth)]


def _swin_tokens(config: Any, layer: int) -> tuple[tuple[int, int], int]:
    """Returns height and width of what a layer of a Swin sees of an image, and how wide its windows are."""
    image, patch = (_pair_of(size) for size in (config.image_size, config.patch_size))
    size = (-(-image[0] // patch[0]), -(-image[1] // patch[1]))
    for _ in range(_of_stages(lambda _, stage: stage)(config)[layer]):  # each stage merges two by two
        size = (-(-size[0] // 2), -(-size[1] // 2))
    return size, min(config.window_size, *size)


def _swin_windows(config: Any, layer: int) -> tuple[int, int]:
    """Returns the tokens that attention computes, those that fill up windows too, and those of a window."""
    size, window = _swin_tokens(config, layer)
    height, width = (-(-side // window) * window for side in size)
    return height * width, window**2


def _swin_pixels(config: Any, layer: int) -> tuple[int, int]:
    """Returns the tokens that the FFN of a layer sees, twice."""
    (height, width), _ = _swin_tokens(config, layer)
    return height * width, height * width


_SWIN = Family(
    "swin",
    (
        Stack(
            "encoder.layers.*.blocks",
            (
                _self_attention(
                    "attention",
                    "encoder",
                    "q_proj k_proj v_proj o_proj",
                    units=_of_stages(lambda config, stage: config.num_heads[stage]),
                    own_field="num_layer_heads",
                    tables={"attention.relative_position_bias.relative_position_bias_table": (1, "u")},
                    tokens=_swin_windows,
                ),
                dataclasses.replace(
                    _IMAGE_FFN,
                    units=_of_stages(lambda config, stage: int(config.mlp_ratio * config.embed_dim * 2**stage)),
                    own_field="num_ffn_units",
                    tokens=_swin_pixels,
                    said=None,
                ),
            ),
            depth=lambda config: sum(config.depths),
        ),
    ),
    probe="pixels",
    since="5.24",
)

_OLMO2 = Family(
    "olmo2",
    (Stack("layers", (_GATED_FFN,)),),
    head_dim="head_dim",
    left_out="its queries and keys are normalised over all heads, so that each head depends on all others",
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *map(_bert, ("bert", "roberta", "xlm-roberta", "electra", "camembert")),
        _DISTILBERT,
        *map(_bart, ("marian", "bart", "mbart", "m2m_100", "pegasus")),
        _ALBERT,
        _MPNET,
        _DEBERTA,
        _MODERNBERT,
        _NOMIC_BERT,
        _llama("eurobert", "encoder", said="divisors"),
        _image("vit", 1),
        _image("deit", 2),
        _DINOV2,
        _SWIN,
        *_CLIP_TOWERS.values(),
        _towers("clip", **_CLIP_TOWERS),
        *_SIGLIP_TOWERS.values(),
        _towers("siglip", **_SIGLIP_TOWERS),
        _llama("llama", said="divisors"),
        *map(_llama, ("mistral", "qwen2", "qwen3")),
        _llama("gemma3_text", said="divisors"),
        _PHI3,
        _GPT2,
        _GPT_NEOX,
        *map(_t5, ("t5", "mt5")),
        _bart("whisper", probe="spectrogram", attributes={"num_heads": "u"}),
        _WAV2VEC2,
        _OLMO2,
    )
}

# What is asked for and not declared, with the reason.
REFUSED = {
    "gemma3": "it is a text model beside an image model. Prune the text model alone: load it as a gemma3_text",
}
