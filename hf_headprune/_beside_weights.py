"""Files of ours that lie beside the weights of a model: found when the model is loaded, written when it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache


def file_beside(name: str, source: Any, options: dict[str, Any]) -> Path | None:
    """Returns a file that lies beside loaded weights, or None where there is none.

    Args:
        name: Of the file.
        source: What the weights were loaded from: a folder, or a name on the Hub, of which the cache is looked at.
        options: Of `from_pretrained`: where in the source.
    """
    if source is None:
        return None
    inside = Path(options.get("subfolder") or "", name)
    if Path(source).exists():  # a file of weights has no folder of its own
        file = Path(source, inside)
        return file if Path(source).is_dir() and file.is_file() else None
    cached = try_to_load_from_cache(
        str(source), inside.as_posix(), cache_dir=options.get("cache_dir"), revision=options.get("revision")
    )
    return Path(cached) if isinstance(cached, str) else None


def read_text(file: Path) -> str:
    """Returns a file's text, whatever is in it: it is checked where it is used."""
    return file.read_text(encoding="utf-8", errors="backslashreplace")


def write_text(file: Path, text: str) -> None:
    """Writes a file, and ends its last line; an interruption leaves the old file or the new one."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)
