"""Files of ours that lie beside the weights of a model: found when the model is loaded, written when it is saved."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


CONFIG_NAME = "config.json"
# Of weights in one file, and of those in several. A loader takes the first that is there.
WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
OF_DOWNLOAD = ("token", "cache_dir", "local_files_only", "force_download")  # options that `from_pretrained` shares


def folder_at(path: Any, *, where: str) -> Path:
    """Returns the path of a folder that is there, or can be made as far as its name goes.

    Raises:
        InvalidSettingError: It, or a folder that it would be in, is a file.
    """
    found = Path(path)
    nearest = next((it for it in (found, *found.parents) if it.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise InvalidSettingError(
            f"{where}: the path must be that of a folder, and {nearest} is a file. Choose another name."
        )
    return found


def file_beside(name: str, source: Any, options: dict[str, Any], *, downloads: bool = False) -> Path | None:
    """Returns a file that lies beside loaded weights, or None where there is none.

    Args:
        name: Of the file.
        source: What the weights were loaded from: a folder, or a name on the Hub, of which the cache is looked at.
        options: Of `from_pretrained`: where in the source.
        downloads: Whether a file that the cache lacks is downloaded, from the commit that the weights came from.
    """
    if source is None:
        return None
    inside = Path(options.get("subfolder") or "", name)
    if Path(source).exists():  # a file of weights has no folder of its own
        file = Path(source, inside)
        return file if Path(source).is_dir() and file.is_file() else None
    place = {"cache_dir": options.get("cache_dir"), "revision": options.get("revision")}
    config = try_to_load_from_cache(str(source), inside.with_name(CONFIG_NAME).as_posix(), **place)
    if downloads and isinstance(config, str):
        place["revision"] = Path(config).parents[len(inside.parts) - 1].name  # the cache has a folder for each commit
    cached = try_to_load_from_cache(str(source), inside.as_posix(), **place)
    if cached is None and downloads and isinstance(config, str):
        cached = _downloaded(str(source), inside.as_posix(), place["revision"], options)
    return Path(cached) if isinstance(cached, str) else None


def _downloaded(source: str, name: str, commit: str | None, options: dict[str, Any]) -> str | None:
    """Returns where a file of the Hub is now, or None where there is none, or no network."""
    given = {key: options[key] for key in OF_DOWNLOAD if options.get(key) is not None}
    try:
        return hf_hub_download(source, name, revision=commit, **given)
    except (EntryNotFoundError, OfflineModeIsEnabled):
        return None
    except (HfHubHTTPError, OSError) as error:
        logger.warning("%s of %s could not be downloaded (%s), so it is not with the model.", name, source, error)
        return None


def read_text(file: Path) -> str:
    """Returns a file's text, whatever is in it: it is checked where it is used."""
    return file.read_text(encoding="utf-8-sig", errors="backslashreplace")


def write_text(file: Path, text: str) -> None:
    """Writes a file, and ends its last line; an interruption leaves the old file or the new one."""
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def older_weights_removed(folder: Any, variant: str | None = None) -> Iterator[None]:
    """Lets weights that are saved inside of the block be those that will be loaded, whatever the folder held before.

    Weights in several files leave an older single file where it is, which a loader prefers, and the other way round.

    Args:
        folder: Where they are saved.
        variant: As in `save_pretrained`.
    """
    names = (
        WEIGHTS
        if variant is None
        else (f"model.{variant}.safetensors", f"{SAFE_WEIGHTS_INDEX_NAME[:-5]}.{variant}.json")
    )
    before = {file: written_at(file) for file in (Path(folder, name) for name in names)}
    yield
    new = [file for file, time in before.items() if written_at(file) != time]
    for file in before:
        if new and file not in new:
            file.unlink(missing_ok=True)


def written_at(file: Path) -> int | None:
    """Returns when a file was written, in ns, or None where there is none."""
    return file.stat().st_mtime_ns if file.is_file() else None
