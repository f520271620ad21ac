"""A model that reads and writes, begun from one that only reads."""

import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from benchmarks.bart_of_bert import save_bart_of_bert
from tests.support.texts import TEXTS, save_text_model


def test_the_encoder_reads_as_the_given_model_does(tmp_path):
    given = save_text_model(tmp_path / "given", "BertModel", type_vocab_size=2)
    bert = AutoModel.from_pretrained(given).eval()
    layers = bert.config.num_hidden_layers
    save_bart_of_bert(given, tmp_path / "new", layers=layers, max_length=6)
    model, tokenizer = (it.from_pretrained(tmp_path / "new") for it in (AutoModelForSeq2SeqLM, AutoTokenizer))
    inputs = {name: torch.tensor([ids]) for name, ids in tokenizer(TEXTS[1]).items() if name != "token_type_ids"}
    with torch.no_grad():
        read, expected = (it(**inputs).last_hidden_state for it in (model.eval().model.encoder, bert))
    assert torch.allclose(read, expected, atol=1e-2)  # the epsilon of the norms is another
    assert 1 < model.generate(**inputs).shape[1] <= 6


def test_the_decoder_begins_as_the_last_layers(tmp_path):
    given = save_text_model(tmp_path / "given", "BertModel", num_hidden_layers=3)
    save_bart_of_bert(given, tmp_path / "new", layers=1, max_length=6)
    model, last = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "new"),
        AutoModel.from_pretrained(given).encoder.layer[2],
    )
    (layer,) = model.model.decoder.layers
    for attention in (layer.self_attn, layer.encoder_attn):
        assert torch.equal(attention.k_proj.weight, last.attention.self.key.weight)
    assert torch.equal(layer.fc2.weight, last.output.dense.weight)
