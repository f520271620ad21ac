"""Nearest neighbours of texts in a collection: what an embedding model answers to a search."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_headprune.errors import InvalidSettingError, shown

BATCH = 1024  # texts


class Neighbours(tuple[int, ...]):
    """Index of the nearest neighbour of each text; answers that `certify` compares by "agreement"."""

    __slots__ = ()


def nearest_neighbours(embeddings: Any, collection: Any) -> Neighbours:
    """Returns the nearest neighbour of each text in a collection, by cosine similarity.

    Those of the dense and of the pruned model are what `certify(dense, pruned, texts, "agreement")` takes: it bounds
    the share of texts whose nearest neighbour changes. No labels are needed.

    Args:
        embeddings: Of the texts, by one model, `(n, width)`; an array or a tensor.
        collection: Of what is searched, by the same model, `(size, width)`; the same for both models, in one order.

    Returns:
        Indices into the collection, `(n,)`; the first of equally near ones.

    Raises:
        InvalidSettingError: They are no such arrays of finite numbers, a row is zero, or less than two can be found.
    """
    texts, found = _unit_rows(embeddings, "embeddings"), _unit_rows(collection, "collection")
    if texts.shape[1] != found.shape[1] or len(found) < 2:  # noqa: PLR2004
        raise InvalidSettingError(
            "nearest_neighbours: embeddings and collection must be of one width, with at least two in the collection, "
            f"received shapes {texts.shape} and {found.shape}. Embed both with the same model."
        )
    parts = [(texts[first : first + BATCH] @ found.T).argmax(axis=1) for first in range(0, len(texts), BATCH)]
    return Neighbours(np.concatenate(parts).tolist())


def _unit_rows(given: Any, name: str) -> np.ndarray:
    """Returns rows of length 1, in double precision, so that few are equally near.

    Raises:
        InvalidSettingError: See `nearest_neighbours`.
    """
    try:
        rows = np.asarray(given.tolist() if hasattr(given, "tolist") else given, dtype=np.float64)
    except (OverflowError, TypeError, ValueError):
        rows = np.zeros(0)
    lengths = np.linalg.norm(rows, axis=1) if rows.ndim == 2 else np.zeros(0)  # noqa: PLR2004
    if not len(lengths) or not np.isfinite(lengths).all() or not lengths.all():
        raise InvalidSettingError(
            f"nearest_neighbours: {name} must hold a row of finite numbers, not all zero, for each text, received "
            f"{shown(given)}. Pass what the model embeds, (n, width)."
        )
    return rows / lengths[:, None]
