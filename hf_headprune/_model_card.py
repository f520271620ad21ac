"""The model card, `README.md`: what is said there of a pruning is about certain weights, and is kept with them.

A section between two comments is ours; all else in a card is its author's. The files that the section names, report
and pictures, lie beside it and share its fate.
"""

from __future__ import annotations

import logging
import re
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from yaml import YAMLError

from hf_headprune._beside_weights import file_beside, read_text, write_text
from hf_headprune._certificate_file import weights_sha256
from hf_headprune._compat import WRITE_CARDS, wrap_card_writers_
from hf_headprune._offloaded import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
TAGS = ("hf-headprune", "pruned")
THIS_MODEL = "<this model>"  # stands for the model's name on the Hub until it has one
_BEGIN, _END = "<!-- hf_headprune: about weights", "<!-- hf_headprune: end -->"
_FILE = re.compile(r"\bheadprune_(?:report\.json|\w+\.png)")
# Of a card of sentence-transformers, and of our section: how the model is loaded.
_OF_EMBEDDER = re.compile(rf'(?P<kind>{"|".join(WRITE_CARDS)})\("(?P<name>[^"]+)"')
_BY_TRANSFORMERS = re.compile(r"from transformers import (?P<auto>\w+)\n\nmodel = (?P=auto)\.from_pretrained\(")
_BY_CODE = re.compile(r"With [\w -]+ alone, by the code in this repository:\n\n```python\n.*?\n```\n\n", re.DOTALL)
_WITHOUT_NAME = "sentence_transformers_model_id"
_OURS = re.compile(rf"{_BEGIN} (?P<weights>\w*) -->\n(?P<section>.*?){_END}\n?", re.DOTALL)


def card_of(metadata: Mapping[str, Any], title: str, section: str) -> str:
    """Returns a card that has a section of ours alone; which weights it is about is said when it is attached."""
    return _with_metadata(metadata, f"# {title}\n\n{_BEGIN} unknown -->\n{section.strip()}\n{_END}\n")


def attach_card_(model: nn.Module, text: str, files: Callable[[], Mapping[str, bytes]] = dict[str, bytes]) -> None:
    """Lets a pruned model write a card beside its weights whenever it is saved, as long as they are the same.

    Args:
        model: Pruned model.
        text: Of the card, with a section of ours.
        files: Returns what lies beside it, by name; it is called whenever the model is saved, and goes with its copies.
    """
    weights = weights_sha256(Weights(model))
    if weights is not None:
        wrap_card_writers_(_keeping_section, _keeping_no_card)
        holder: Any = model
        holder.headprune_card_files = files
        holder.headprune_card = _OURS.sub(lambda found: _section(found["section"], weights), text)


def attach_saved_card_(model: nn.Module, source: Any, options: dict[str, Any]) -> None:
    """Attaches the card that lies beside loaded weights, if it has a section of ours; see `attach_saved_plan_`."""
    file = file_beside(CARD_NAME, source, options, downloads=True)
    text = "" if file is None else read_text(file)
    if found := _OURS.search(text):
        wrap_card_writers_(_keeping_section, _keeping_no_card)
        holder: Any = model
        holder.headprune_card = text
        beside = {name: file_beside(name, source, options, downloads=True) for name in _files_of(found["section"])}
        content = {name: file.read_bytes() for name, file in beside.items() if file is not None}
        holder.headprune_card_files = partial(dict, content)


def write_card_(
    model: nn.Module,
    folder: str | Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    *,
    name: str | None = None,
) -> None:
    """Writes what the model's card says of its weights into the card that lies in a folder, or writes a new one.

    The files that it names are written, too. A section about other weights is removed, with its files.

    Args:
        model: Pruned model.
        folder: Where its weights are saved.
        state_dict: What is saved in place of the model's own weights.
        name: Of the model on the Hub, if it is known.
    """
    ours, file = getattr(model, "headprune_card", None), Path(folder, CARD_NAME)
    present = _card_in(folder)
    if present is None or (ours is None and not _OURS.search(present)):
        return
    weights = weights_sha256(Weights(model) if state_dict is None else state_dict)
    if ours is not None and _weights_of(ours) != weights:
        holder: Any = model
        ours = holder.headprune_card = None
        logger.warning("The model card is about other weights than those which are saved, and is not written.")
    if ours is not None:
        wrap_card_writers_(_keeping_section, _keeping_no_card)
        write_text(file, merged(present, ours.replace(THIS_MODEL, name or THIS_MODEL)).rstrip())
        _write_files(model, folder)
    elif (old := _OURS.search(present)) and old["weights"] != weights:
        write_text(file, _OURS.sub("", present).rstrip())
        for beside in _files_of(old["section"]):
            Path(folder, beside).unlink(missing_ok=True)


def _card_in(folder: str | Path) -> str | None:
    """Returns the card in a folder, an empty text where there is none; None, and a warning, if it is not in UTF-8."""
    file = Path(folder, CARD_NAME)
    try:
        return file.read_text(encoding="utf-8-sig") if file.exists() else ""
    except UnicodeDecodeError as error:
        logger.warning("%s is not in UTF-8 (%s); nothing is changed in it.", file, error)
        return None


def has_section(folder: str | Path) -> bool:
    """Tells whether the card in a folder has a section of ours."""
    file = Path(folder, CARD_NAME)
    return file.exists() and _OURS.search(read_text(file)) is not None


def remove_code_from_card_(folder: str | Path) -> None:
    """Lets the card in a folder that holds no code of the model no longer say how to load it by that code."""
    present = _card_in(folder)
    if present and (found := _OURS.search(present)):
        section = without_code(found.group())
        write_text(Path(folder, CARD_NAME), (present[: found.start()] + section + present[found.end() :]).rstrip())


def without_code(section: str) -> str:
    """Returns our section without how to load the model by code that lies beside it."""
    return _BY_CODE.sub("", section)


def card_on_hub(repo_id: str, *, token: Any = None, revision: str | None = None) -> str:
    """Returns the card of a repository; an empty text where there is none."""
    try:
        file = hf_hub_download(repo_id, CARD_NAME, token=token, revision=revision)
    except EntryNotFoundError:
        return ""
    return read_text(Path(file))


def tag_card_(folder: str | Path, tags: list[str]) -> None:
    """Adds tags to the card in a folder, which is made where there is none."""
    file, present = Path(folder, CARD_NAME), _card_in(folder)
    if present is None:
        return
    if not present.strip():
        present = _with_metadata({"library_name": "transformers", "tags": list(TAGS)}, "")
    card = ModelCard(present, ignore_metadata_errors=True)
    wanted = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    if wanted != (card.data.tags or []) or not file.exists():
        write_text(file, _with_metadata({**card.data.to_dict(), "tags": wanted}, card.text.strip()))


def merged(card: str, ours: str) -> str:
    """Returns a card with our section, in place of an earlier one, and with our metadata where it has none.

    Args:
        card: Any card; an empty one becomes ours.
        ours: Card with a section of ours.
    """
    found = _OURS.search(ours)
    if not card.strip() or found is None:
        return ours
    try:
        theirs, own = ModelCard(card, ignore_metadata_errors=True), ModelCard(ours)
    except (ValueError, YAMLError) as error:
        logger.warning("%s has metadata that can't be read (%s); nothing is added to it.", CARD_NAME, error)
        return card
    metadata = {**own.data.to_dict(), **theirs.data.to_dict()}
    tags = [*(theirs.data.tags or []), *(own.data.tags or [])]
    body = _OURS.sub("", theirs.text).strip()
    section = _as_loaded_in(body, found.group().strip())
    return _with_metadata({**metadata, "tags": list(dict.fromkeys(tags))}, f"{body}\n\n{section}\n")


def _as_loaded_in(body: str, section: str) -> str:
    """Returns our section as it is true in a card of sentence-transformers, which loads the model by its own class."""
    known = _OF_EMBEDDER.search(body)
    if known is None:
        return section
    loads = rf"from sentence_transformers import {known['kind']}\n\nmodel = {known['kind']}("
    section = _BY_TRANSFORMERS.sub(loads, section).replace(
        "torch and Transformers alone", "sentence-transformers alone"
    )
    return section if known["name"] == _WITHOUT_NAME else section.replace(THIS_MODEL, known["name"])


def _keeping_section(create: Callable[..., None]) -> Callable[..., None]:
    """Wraps what writes a card of its own into a folder, over the one that was saved there with a pruned model."""

    @wraps(create)
    def create_with_section(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        file = Path(path, CARD_NAME)
        before = _card_in(path) or ""
        create(self, path, *args, **kwargs)
        if file.exists():
            written = _OURS.sub("", read_text(file))  # it may repeat what was loaded once
            write_text(file, (merged(written, before) if _OURS.search(before) else written).rstrip())

    return create_with_section


def _keeping_no_card(save: Callable[..., None]) -> Callable[..., None]:
    """Wraps what saves a model of several modules, perhaps without a card: then the module inside leaves none."""

    @wraps(save)
    def save_as_asked(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        file = Path(path, CARD_NAME)
        is_new = not file.exists()
        save(self, path, *args, **kwargs)
        asked = signature(save).bind(self, path, *args, **kwargs).arguments
        if is_new and not asked.get("create_model_card", True):
            file.unlink(missing_ok=True)

    return save_as_asked


def _section(text: str, weights: str) -> str:
    return f"{_BEGIN} {weights} -->\n{text}{_END}\n"


def _write_files(model: nn.Module, folder: str | Path) -> None:
    """Writes what lies beside a model's card; pictures are drawn once, not for each checkpoint."""
    holder: Any = model
    content = getattr(model, "headprune_card_files", dict[str, bytes])()
    holder.headprune_card_files = partial(dict, content)
    for name, file in content.items():
        Path(folder, name).write_bytes(file)


def _files_of(section: str) -> list[str]:
    """Returns the names of the files of ours that a section names, each once."""
    return list(dict.fromkeys(_FILE.findall(section)))


def _weights_of(card: str) -> str | None:
    found = _OURS.search(card)
    return None if found is None else found["weights"]


def _with_metadata(metadata: Mapping[str, Any], body: str) -> str:
    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{body}"
