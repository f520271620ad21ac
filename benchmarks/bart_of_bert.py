"""A model that reads and writes, begun from one that only reads: BART's shape with the layers of a BERT.

The published recipe for generation without a pretrained decoder (Rothe, Narayan and Severyn, "Leveraging Pre-trained
Checkpoints for Sequence Generation Tasks", 2020). A layer of BART's encoder computes what a layer of BERT does, so the
encoder begins as the first layers of the given model, and the decoder as its last ones, which attend to the source as
they do to the text itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, BartConfig, BartForConditionalGeneration

ATTENTION = {"q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value", "out_proj": "output.dense"}
LAYER = {
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}


def save_bart_of_bert(source: Path, target: Path, *, layers: int, max_length: int) -> None:
    """Writes model and tokenizer to a folder, once.

    Args:
        source: Folder of a BERT.
        target: Where the new model goes.
        layers: Of the encoder, the first ones, and of the decoder, the last ones.
        max_length: Tokens of a text that it writes.
    """
    if (target / "tokenizer_config.json").exists():  # written last
        return
    bert: Any = AutoModel.from_pretrained(source)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    given = bert.config
    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {"attention_heads": given.num_attention_heads, "ffn_dim": given.intermediate_size}.items()
    }
    config = BartConfig(
        vocab_size=given.vocab_size,
        d_model=given.hidden_size,
        encoder_layers=layers,
        decoder_layers=layers,
        activation_function=given.hidden_act,
        max_position_embeddings=given.max_position_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.sep_token_id,
        forced_eos_token_id=tokenizer.sep_token_id,
        **sizes,
    )
    torch.manual_seed(0)
    model = BartForConditionalGeneration(config)
    model.generation_config.update(max_length=max_length, num_beams=1)
    with torch.no_grad():
        model.model.shared.weight.copy_(bert.embeddings.word_embeddings.weight)
        of_bert = list(bert.encoder.layer)
        for stack, begun in ((model.model.encoder, of_bert[:layers]), (model.model.decoder, of_bert[-layers:])):
            _fill_embeddings_(stack, bert.embeddings)
            for layer, given_layer in zip(stack.layers, begun, strict=True):
                _fill_(layer, given_layer, LAYER)
                _fill_(layer.self_attn, given_layer.attention, ATTENTION)
                if stack is model.model.decoder:
                    _fill_(layer.encoder_attn, given_layer.attention, ATTENTION)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _fill_embeddings_(stack: nn.Module, embeddings: Any) -> None:
    """Gives positions, to which those of BERT's first kind of token are added, and the norm after them."""
    first_kind = embeddings.token_type_embeddings.weight[0]
    positions = stack.embed_positions
    positions.weight[positions.offset :] = embeddings.position_embeddings.weight + first_kind
    stack.layernorm_embedding.load_state_dict(embeddings.LayerNorm.state_dict())


def _fill_(module: nn.Module, given: nn.Module, names: dict[str, str]) -> None:
    for name, its in names.items():
        module.get_submodule(name).load_state_dict(given.get_submodule(its).state_dict())
