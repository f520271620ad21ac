"""The vocabulary of a corpus: same pieces and same outputs on its texts, any other text still encodes, plain reload."""

from __future__ import annotations

import random

import pytest
import torch
from accelerate import cpu_offload
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_headprune import PruningPlan, anatomy_of, prune_model_, prune_vocabulary_
from hf_headprune.errors import InvalidSettingError, UnsupportedModelError
from tests.support.models import TINY_FAMILIES, tiny_bart, tiny_bert, tiny_marian, tiny_roberta

SYLLABLES = ("ba", "ke", "lo", "mi", "nu", "po", "ra", "si", "tu", "ve")


def words(count, seed):
    rng = random.Random(seed)
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(count)]


def texts(count, seed, vocabulary):
    rng = random.Random(seed)
    return [" ".join(rng.choices(vocabulary, k=6)) for _ in range(count)]


WORDS = words(300, 0)
CORPUS = texts(400, 1, WORDS)
OWN = texts(30, 2, WORDS[:40])  # of the corpus that the vocabulary is cut to
NEW = texts(30, 3, WORDS[40:])
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tokenizer_of(kind):
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    if kind == "word_piece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.pre_tokenizer, trainer = pre_tokenizers.Whitespace(), trainers.WordPieceTrainer
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer, trainer = pre_tokenizers.Metaspace(), trainers.UnigramTrainer
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
        backend.pre_tokenizer, trainer = pre_tokenizers.ByteLevel(add_prefix_space=False), trainers.BpeTrainer
        backend.decoder = decoders.ByteLevel()
    backend.normalizer = normalizers.NFC()
    more = {"unk_token": "<unk>"} if kind == "unigram" else {}
    if kind == "bytes":
        more["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, **more))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


KINDS = ("word_piece", "bytes", "unigram")


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def logits(model, tokenizer, text, **more):
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = ids
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_the_corpus_keep_pieces_and_outputs(kind, tmp_path):
    tokenizer = tokenizer_of(kind)
    model = tiny_roberta(vocab_size=len(tokenizer), pad_token_id=1)
    before = {text: (pieces(tokenizer, text), logits(model, tokenizer, text)) for text in OWN}
    smaller = prune_vocabulary_(model, tokenizer, OWN)
    assert model.config.vocab_size == len(smaller) == model.get_input_embeddings().num_embeddings
    assert len(smaller) < 0.8 * len(tokenizer)
    model.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    reread, again = AutoTokenizer.from_pretrained(tmp_path), type(model).from_pretrained(tmp_path)
    for text, (parts, expected) in before.items():
        assert pieces(smaller, text) == pieces(reread, text) == parts
        torch.testing.assert_close(logits(again, reread, text), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_text_is_split_further_and_never_unknown(kind):
    tokenizer = tokenizer_of(kind)
    smaller = prune_vocabulary_(tiny_bert(vocab_size=len(tokenizer)), tokenizer, OWN)
    assert any(pieces(tokenizer, text) != pieces(smaller, text) for text in NEW)
    for text in NEW:
        parts = pieces(smaller, text)
        assert "<unk>" not in parts
        assert {*parts} <= {*tokenizer.get_vocab()}
    for name in ("pad_token", "cls_token", "sep_token", "mask_token", "unk_token"):
        assert getattr(smaller, name) == getattr(tokenizer, name)
        assert smaller.convert_ids_to_tokens(getattr(smaller, f"{name}_id")) == getattr(tokenizer, name)


def decoder(size):
    return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=2))


def t5(size):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    own = T5Config(vocab_size=size, **sizes, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    return T5ForConditionalGeneration(own)


ROWS_OF_OUTPUT = {
    "tied": lambda size: tiny_bert("MaskedLM", vocab_size=size, pad_token_id=1),
    "own": lambda size: tiny_bert("MaskedLM", vocab_size=size, pad_token_id=1, tie_word_embeddings=False),
    "bias of a translator": lambda size: tiny_marian(vocab_size=size, pad_token_id=1, eos_token_id=2),
    "bart": lambda size: tiny_bart(vocab_size=size, pad_token_id=1, eos_token_id=2),
    "decoder": decoder,
    "t5": t5,
}


@pytest.mark.parametrize("made", ROWS_OF_OUTPUT.values(), ids=ROWS_OF_OUTPUT)
def test_an_output_layer_keeps_the_rows_of_the_pieces_that_stay(made):
    torch.manual_seed(0)
    tokenizer = tokenizer_of("bytes")
    model = made(len(tokenizer)).eval()
    if "final_logits_bias" in dict(model.named_buffers()):
        model.final_logits_bias.normal_()
    before = {text: logits(model, tokenizer, text) for text in OWN[:5]}
    smaller = prune_vocabulary_(model, tokenizer, OWN)
    stay = [tokenizer.get_vocab()[piece] for piece, _ in sorted(smaller.get_vocab().items(), key=lambda item: item[1])]
    for text, expected in before.items():
        torch.testing.assert_close(logits(model, smaller, text), expected[..., stay])
    assert model.config.eos_token_id in (None, smaller.eos_token_id)


def test_a_pruned_model_loses_its_pieces_too_and_is_read_again(tmp_path):
    tokenizer = tokenizer_of("word_piece")
    model = tiny_bert("MaskedLM", vocab_size=len(tokenizer), pad_token_id=1)
    full = PruningPlan.full(anatomy_of(model))
    prune_model_(model, full.replace(kept_heads={next(iter(full.kept_heads)): [1, 3]}))
    smaller = prune_vocabulary_(model, tokenizer, OWN)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    torch.testing.assert_close(logits(again, smaller, OWN[0]), logits(model, smaller, OWN[0]))


def test_what_can_not_be_cut_is_refused_before_anything_changes():
    tokenizer = tokenizer_of("bytes")
    size = len(tokenizer)
    model = tiny_bert(vocab_size=size)
    for wrong, words_ in (
        (OWN[0], "received one"),
        ([], "there is no text"),
        ([OWN[0], 3], "received 3"),
        ([None], "received None"),
    ):
        with pytest.raises(InvalidSettingError, match=words_):
            prune_vocabulary_(model, tokenizer, wrong)
    with pytest.raises(InvalidSettingError, match="the model's own tokenizer"):
        prune_vocabulary_(tiny_bert(), tokenizer, OWN)
    with pytest.raises(UnsupportedModelError, match="library tokenizers"):
        prune_vocabulary_(model, object(), OWN)
    apart = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}
    for written, words_ in ((size, "its decoder has a table of its own"), (size - 9, f"and it predicts {size - 9:,}")):
        translator = tiny_marian(vocab_size=size, decoder_vocab_size=written, **apart)
        weights = {name: value.clone() for name, value in translator.state_dict().items()}
        with pytest.raises(UnsupportedModelError, match=f"has two vocabularies: it reads {size:,} pieces, .*{words_}"):
            prune_vocabulary_(translator, tokenizer, OWN)
        assert all(torch.equal(value, weights[name]) for name, value in translator.state_dict().items())
    spread = cpu_offload(tiny_bert(vocab_size=size), execution_device="cpu")
    with pytest.raises(UnsupportedModelError, match="prune_vocabulary_: the BertForSequenceClassification is spread"):
        prune_vocabulary_(spread, tokenizer, OWN)
    counting = tiny_roberta(vocab_size=size, pad_token_id=size - 1, max_position_embeddings=size + 100)
    with pytest.raises(UnsupportedModelError, match=f"counts positions from the padding token, number {size - 1}"):
        prune_vocabulary_(counting, tokenizer, OWN)
    with pytest.raises(UnsupportedModelError, match=r"must be an nn\.Embedding, received"):
        prune_vocabulary_(TINY_FAMILIES["vit"].make(), tokenizer, OWN)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(tiny_bert(None).config, tiny_bert(None).config)
    with pytest.raises(UnsupportedModelError, match="two models with a vocabulary each"):
        prune_vocabulary_(EncoderDecoderModel(config), tokenizer, OWN)
    speaker = decoder(size)
    speaker.generation_config.bad_words_ids = [[5]]
    with pytest.raises(UnsupportedModelError, match="bad_words_ids"):
        prune_vocabulary_(speaker, tokenizer, OWN)
    assert model.get_input_embeddings().num_embeddings == size


@pytest.mark.parametrize("template", ["{{ messages }}", {"default": "{{ messages }}", "rag": "{{ messages[0] }}"}])
def test_the_tokenizer_keeps_templates_and_what_was_set_since_it_was_read(template):
    tokenizer = tokenizer_of("bytes")
    model = decoder(len(tokenizer))
    tokenizer.chat_template = template
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.model_max_length = 17
    found = prune_vocabulary_(model, tokenizer, texts(20, 0, words(30, 0)))
    assert len(found) < len(tokenizer)
    assert found.chat_template == template
    assert (found.padding_side, found.truncation_side, found.model_max_length) == ("left", "left", 17)
