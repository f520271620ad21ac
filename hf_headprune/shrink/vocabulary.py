"""Cut the vocabulary: tokenizer and embeddings keep the pieces that a corpus uses, and what any other text needs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_headprune._compat import is_dispatched
from hf_headprune._ownership import owned
from hf_headprune.errors import HeadPruneError, InvalidSettingError, UnsupportedModelError, shown
from hf_headprune.masking import evaluating
from hf_headprune.shrink.undo import undone_after_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1000  # texts that are encoded at a time
PROBED = 8  # texts on which the model must compute what it did
KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
# Settings of generation that hold tokens in other forms than a number or a list of numbers.
_NESTED = ("bad_words_ids", "force_words_ids", "forced_decoder_ids", "sequence_bias", "constraints")
_MAX_ERROR = 1e-4  # of the logits' largest


def prune_vocabulary_(model: nn.Module, tokenizer: Any, texts: Iterable[str]) -> Any:
    """Removes, in place, the rows of a model's embeddings for pieces that texts don't use; returns the tokenizer.

    Kept are the pieces of the texts, all special and added tokens, and every single character or byte, so that any
    text can be encoded. A text whose pieces all stayed is split as before and gets the same output; others are split
    into smaller pieces, so let examples that were not looked at tell what that costs: `certify` takes each model with
    the examples as its own tokenizer encodes them. The ids are new: tokenize again, and save the tokenizer with the
    model.

    Args:
        model: Transformers model with one table of embeddings, tied to its output layer or not; also a pruned one.
        tokenizer: Its tokenizer, of the library `tokenizers`: WordPiece, BPE, Unigram or whole words.
        texts: What the model will read, such as its training texts, and pairs of them one after the other.

    Returns:
        A tokenizer of the same class.

    Raises:
        InvalidSettingError: There is no text, or one is no string; or the tokenizer is not the model's; or it is called
            inside of `torch.inference_mode()`.
        UnsupportedModelError: The tokenizer is of another kind; or the model has two vocabularies, holds tokens in
            further places, counts positions from a padding token that would get another number, or is spread over
            devices.
        HeadPruneError: The model computes something else afterwards.

    After an error, or Ctrl-C, the model is what it was.
    """
    backend = _backend_of(tokenizer)
    content = json.loads(backend.to_str())
    _check_table(model, len(tokenizer))
    kept, probed = _kept(tokenizer, content, texts, _ids_of_configs(model))
    _check_model(model, kept)
    smaller = _tokenizer_of(tokenizer, _renumbered(content, kept))
    for text in probed:
        before, after = (it.convert_ids_to_tokens(it(text)["input_ids"]) for it in (tokenizer, smaller))
        if before != after:
            raise UnsupportedModelError(
                f"prune_vocabulary_: a {type(tokenizer).__name__} splits {shown(text)} into {shown(after)} with the "
                f"smaller vocabulary, and into {shown(before)} with its own. The model is unchanged."
            )
    with owned(model, "prune_vocabulary_", alone=True), undone_after_errors([model]):
        expected = [_of_pieces(output, model, kept) for output in _outputs(model, tokenizer, probed)]
        _keep_rows_(model, kept)
        received = _outputs(model, smaller, probed)
        error = max(
            float((one - other).abs().max() / one.abs().max()) for one, other in zip(expected, received, strict=True)
        )
        if not error <= _MAX_ERROR:
            raise HeadPruneError(
                f"prune_vocabulary_: a {type(model).__name__} computes something else with the smaller vocabulary, by "
                f"{error:.2g} of its largest output. It makes use of the numbers of tokens elsewhere."
            )
    return smaller


def _backend_of(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(getattr(backend, "model", None)).__name__
    if kind not in KINDS:
        raise UnsupportedModelError(
            f"prune_vocabulary_: the tokenizer must be one of the library tokenizers ({', '.join(KINDS)}), received "
            f"{type(tokenizer).__name__}. Convert it with AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    return backend


def _kept(
    tokenizer: Any, content: dict[str, Any], texts: Iterable[str], named: set[int]
) -> tuple[list[int], list[str]]:
    """Returns the ids that stay, ascending, and some of the texts."""
    model = content["model"]
    pieces = [piece for piece, _ in model["vocab"]] if model["type"] == "Unigram" else list(model["vocab"])
    ids = {piece: index for index, piece in enumerate(pieces)} if model["type"] == "Unigram" else model["vocab"]
    used: set[int] = set()
    probed: list[str] = []
    for chunk in _chunks(texts):
        probed += chunk[: PROBED - len(probed)]
        used.update(*tokenizer(chunk, truncation=False, padding=False)["input_ids"])
    if not probed:
        raise InvalidSettingError("prune_vocabulary_: there is no text. Pass those that the model will read.")
    always = {token["id"] for token in content["added_tokens"]} | set(tokenizer.all_special_ids) | named
    always |= {ids[piece] for piece in pieces if _is_single(piece, model)}
    always |= {ids[piece] for piece in (model.get("unk_token"),) if piece in ids}
    if isinstance(model.get("unk_id"), int):
        always.add(model["unk_id"])
    kept = used | always
    if model["type"] == "BPE":
        kept |= _parts_of(kept, ids, model["merges"])
    return sorted(kept), probed


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        received = "one" if isinstance(texts, str) else shown(texts)
        raise InvalidSettingError(
            f"prune_vocabulary_: texts must be several texts, received {received}. Pass a list of them."
        )
    source = iter(texts)
    while chunk := list(islice(source, CHUNK)):
        if wrong := [text for text in chunk if not isinstance(text, str)]:
            raise InvalidSettingError(f"prune_vocabulary_: texts must be strings, received {shown(wrong[0])}.")
        yield chunk


def _is_single(piece: str, model: dict[str, Any]) -> bool:
    """Tells whether a piece is a single character or byte, at whatever place in a word."""
    bare = piece.removeprefix(model.get("continuing_subword_prefix") or "")
    bare = bare.removesuffix(model.get("end_of_word_suffix") or "")
    is_byte = bool(model.get("byte_fallback")) and piece.startswith("<0x") and piece.endswith(">")
    return len(bare) <= 1 or is_byte


def _parts_of(kept: set[int], ids: dict[str, int], merges: list[Any]) -> set[int]:
    """Returns all pieces that the kept ones are merged from, step by step."""
    made_of: dict[int, list[tuple[int, int]]] = {}
    for left, right, whole in _merged(merges, ids):
        made_of.setdefault(whole, []).append((left, right))
    found: set[int] = set()
    waiting = list(kept)
    while waiting:
        for parts in made_of.get(waiting.pop(), ()):
            new = [part for part in parts if part not in found and part not in kept]
            found.update(new)
            waiting += new
    return found


def _merged(merges: list[Any], ids: dict[str, int]) -> Iterator[tuple[int, int, int]]:
    """Yields left, right and what they become, for every merge."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        whole = next((it for it in (left + right, left + right.removeprefix("##")) if it in ids), None)
        if whole is None:
            raise UnsupportedModelError(
                f"prune_vocabulary_: the merge {shown(merge)} of the tokenizer gives no piece of its vocabulary."
            )
        yield ids[left], ids[right], ids[whole]


def _renumbered(content: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    """Returns what a tokenizer is made of, with the pieces that stay and their new ids."""
    new = {old: index for index, old in enumerate(kept)}
    model = dict(content["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = new[model["unk_id"]]
    else:
        if model["type"] == "BPE":
            stays = [all(part in new for part in parts) for parts in _merged(model["merges"], model["vocab"])]
            model["merges"] = [merge for merge, holds in zip(model["merges"], stays, strict=True) if holds]
        model["vocab"] = {piece: new[old] for piece, old in model["vocab"].items() if old in new}
    added = [{**token, "id": new[token["id"]]} for token in content["added_tokens"]]
    return {
        **content,
        "model": model,
        "added_tokens": added,
        "post_processor": _with_new_ids(content.get("post_processor"), new),
        "padding": None,
        "truncation": None,
    }


def _with_new_ids(entry: Any, new: dict[int, int]) -> Any:
    """Returns the settings of a post-processor with new ids: "ids" of a template, and pairs of a token and its id."""
    if isinstance(entry, dict):
        return {
            key: [new[old] for old in value] if key == "ids" else _with_new_ids(value, new)
            for key, value in entry.items()
        }
    if isinstance(entry, list):
        is_pair = len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], int)  # noqa: PLR2004
        return [entry[0], new[entry[1]]] if is_pair else [_with_new_ids(each, new) for each in entry]
    return entry


def _tokenizer_of(tokenizer: Any, content: dict[str, Any]) -> Any:
    """Returns a tokenizer of the same class with the same settings, read as it is read from a folder."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in (*tokenizer.vocab_files_names.values(), "added_tokens.json"):
            Path(folder, name).unlink(missing_ok=True)  # vocabularies in other forms are those of before
        settings = json.loads(Path(folder, "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        Path(folder, "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        found = type(tokenizer).from_pretrained(folder)
    for name, value in vars(tokenizer).items():  # what was set since it was read, such as the side of the padding
        if name in vars(found) and not name.startswith("_") and isinstance(value, str | int | float):
            setattr(found, name, value)
    return found


def _configs_of(model: Any) -> list[Any]:
    """Returns the configurations of a model that may name tokens, each once."""
    found = [getattr(model, "config", None), getattr(model, "generation_config", None)]
    found += [getattr(module, "config", None) for module in model.modules()]
    found += [value for config in found if config is not None for value in vars(config).values()]
    configs = {id(each): each for each in found if hasattr(each, "to_dict") and hasattr(each, "__dict__")}
    return list(configs.values())


def _named_tokens(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        is_token = name.endswith(("token_id", "_tokens"))
        values = value if isinstance(value, list) else [value]
        if is_token and values and all(isinstance(each, int) and not isinstance(each, bool) for each in values):
            yield name, value


def _ids_of_configs(model: Any) -> set[int]:
    """Returns the tokens that configurations name."""
    size = model.get_input_embeddings().num_embeddings
    found: set[int] = set()
    for config in _configs_of(model):
        nested = [name for name in _NESTED if getattr(config, name, None)]
        if nested:
            raise UnsupportedModelError(
                f"prune_vocabulary_: {type(config).__name__}.{nested[0]} holds tokens in a form that is not "
                "renumbered. Set it to None, and set it anew afterwards."
            )
        for name, value in _named_tokens(config):
            if not name.endswith("_tokens"):  # such as max_new_tokens; lists of tokens to suppress may lose some
                found.update(each for each in (value if isinstance(value, list) else [value]) if 0 <= each < size)
    return found


def _check_table(model: Any, pieces: int) -> None:
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise UnsupportedModelError(
            f"prune_vocabulary_: the embeddings must be an nn.Embedding, received {type(table).__name__}."
        )
    if getattr(model.config, "encoder", None) is not None and getattr(model.config, "decoder", None) is not None:
        raise UnsupportedModelError(
            f"prune_vocabulary_: a {type(model).__name__} is made of two models with a vocabulary each. Prune that of "
            "each part, before they are put together."
        )
    output = model.get_output_embeddings()
    rows = None if output is None else len(output.weight)
    if rows not in (None, table.num_embeddings) or _has_other_table(model, table):
        other = (
            "its decoder has a table of its own" if rows in (None, table.num_embeddings) else f"it predicts {rows:,}"
        )
        raise UnsupportedModelError(
            f"prune_vocabulary_: a {type(model).__name__} has two vocabularies: it reads {table.num_embeddings:,} "
            f"pieces, and {other}. Models with one vocabulary, read and written, are supported. The model is unchanged."
        )
    if is_dispatched(model):
        raise UnsupportedModelError(
            f"prune_vocabulary_: the {type(model).__name__} is spread over devices (device_map, or offloading). Load "
            "it without device_map: that takes no more memory than the model itself."
        )
    if pieces > table.num_embeddings:
        raise InvalidSettingError(
            f"prune_vocabulary_: the tokenizer has {pieces:,} pieces, and the model embeds {table.num_embeddings:,}. "
            "Pass the model's own tokenizer."
        )


def _has_other_table(model: Any, table: nn.Embedding) -> bool:
    """Tells whether the decoder of an encoder-decoder reads other embeddings than its encoder."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return False
    own = [part().get_input_embeddings() for part in (model.get_encoder, model.get_decoder)]
    return any(it is not None and it.weight is not table.weight for it in own)


def _check_model(model: Any, kept: list[int]) -> None:
    table = model.get_input_embeddings()
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and module.num_embeddings == table.num_embeddings
        and module.weight is not table.weight
    ]
    if others:
        raise UnsupportedModelError(
            f"prune_vocabulary_: {others[0]} is a second table of {table.num_embeddings:,} embeddings, and not tied to "
            "the first. Models with one vocabulary are supported."
        )
    if kept[-1] >= table.num_embeddings:
        raise InvalidSettingError(
            f"prune_vocabulary_: token {kept[-1]} has no embedding among {table.num_embeddings:,}."
        )
    _check_padding(model, kept)


def _check_padding(model: Any, kept: list[int]) -> None:
    """Refuses another number of the padding token where a module, such as RoBERTa's, counts positions from it."""
    table = model.get_input_embeddings()
    for name, module in model.named_modules():
        padding: int | None = getattr(module, "padding_idx", None)
        if padding is None:
            continue
        positions = [it for it in module.children() if isinstance(it, nn.Embedding) and it.weight is not table.weight]
        counts = any(it.padding_idx == padding for it in positions)
        if counts and kept[padding : padding + 1] != [padding]:
            raise UnsupportedModelError(
                f"prune_vocabulary_: {name} counts positions from the padding token, number {padding}, which would get "
                "another number. It is supported where the padding token is among the first."
            )


@torch.no_grad()
def _keep_rows_(model: Any, kept: list[int]) -> None:
    """Moves the rows that stay to the front, and lets the model's own method drop the others."""
    rows = torch.tensor(kept)
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    tensors = [table.weight, *(() if output is None else (output.weight, getattr(output, "bias", None)))]
    for tensor in {id(it): it for it in tensors if it is not None}.values():
        tensor.data = torch.cat([tensor[rows.to(tensor.device)], tensor[len(kept) :]])
    for name, buffer in model.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.data = torch.cat([buffer[..., rows.to(buffer.device)], buffer[..., len(kept) :]], dim=-1)
    padding = table.padding_idx
    model.resize_token_embeddings(len(kept))
    new = {old: index for index, old in enumerate(kept)}
    model.get_input_embeddings().padding_idx = None if padding is None else new.get(padding)
    for config in _configs_of(model):
        for name, value in list(_named_tokens(config)):
            if isinstance(value, list):
                setattr(config, name, [new[old] for old in value if old in new])
            elif name.endswith("token_id") and value in new:
                setattr(config, name, new[value])


def _outputs(model: Any, tokenizer: Any, texts: list[str]) -> list[torch.Tensor]:
    """Returns the first output of a model for each text."""
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt").to(device)
            given = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
            if model.config.is_encoder_decoder:
                given["decoder_input_ids"] = given["input_ids"]
            found.append(model(**given)[0].float())
    return found


def _of_pieces(output: torch.Tensor, model: Any, kept: list[int]) -> torch.Tensor:
    """Returns an output without the entries of pieces that go, where it has one for each piece."""
    return output[..., kept] if output.shape[-1] == model.get_input_embeddings().num_embeddings else output
