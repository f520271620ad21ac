"""Shares work among the processes of a run that all ask for it, and gives each of them all results.

Tensors that FSDP has split over the processes are read whole, and written, here; every process calls these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


def number_of_processes() -> int:
    """Returns how many processes run together, one where none was started for that."""
    is_running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_running else 1


def from_first(content: Any) -> Any:
    """Returns in every process what the first one passes; it can be pickled, and all call it."""
    if number_of_processes() == 1:
        return content
    box = [content]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def is_part(tensor: Any) -> bool:
    """Tells whether a tensor is split over the processes by FSDP2, and this process holds a part of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> torch.Tensor:
    """Returns all of a tensor that may be split."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def own(tensor: Any) -> torch.Tensor:
    """Returns what this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part_like(values: torch.Tensor, like: Any) -> Any:
    """Splits values as another tensor is split, if it is; the first process's values count."""
    return _split(values, like, source=0)


def own_part(values: torch.Tensor, like: Any) -> Any:
    """Splits values that are the same in every process as another tensor is split; nothing is sent."""
    return _split(values, like, source=None)


def _split(values: torch.Tensor, like: Any, source: int | None) -> Any:
    if not is_part(like):
        return values
    moved = values.to(like.device, like.dtype).contiguous()
    split = torch.distributed.tensor.distribute_tensor
    return split(moved, like.device_mesh, like.placements, src_data_rank=source)


def reshard_(model: Any) -> None:
    """Frees, in place, what FSDP2 has gathered of a model for a pass that is over: its parameters are parts again."""
    for module in model.modules():
        free = getattr(module, "reshard", None)
        if callable(free):
            free()


def sharing(share: bool) -> int:  # noqa: FBT001 - the question itself
    """Returns how many processes share work, where they are to."""
    return number_of_processes() if share else 1


def over_processes(compute: Callable[[Item], Result], items: Sequence[Item], *, share: bool) -> list[Result]:
    """Computes something of each item, each on one process, and returns all results in every process.

    All processes must call it with the same items; that they are as many is checked. What `compute` raises in one
    process, all raise, so that none waits for another.

    Args:
        compute: Its results can be pickled.
        items: In the same order everywhere.
        share: Whether to do so; else each process computes all.

    Raises:
        RuntimeError: Another process raised an error, or has other items.
    """
    world = sharing(share)
    if world == 1:
        return [compute(item) for item in items]
    rank = torch.distributed.get_rank()
    found: dict[int, Any] = {}
    error: Exception | None = None
    try:
        found = {place: compute(items[place]) for place in range(rank, len(items), world)}
    except Exception as raised:  # noqa: BLE001 - the others must hear of any
        error = raised
    gathered: list[Any] = [None] * world
    keys = [item if isinstance(item, int) else None for item in items]
    torch.distributed.all_gather_object(gathered, (found, keys, None if error is None else repr(error)))
    if error is not None:
        raise error
    failed = [f"process {number}: {reason}" for number, (_, _, reason) in enumerate(gathered) if reason is not None]
    differing = [number for number, (_, theirs, _) in enumerate(gathered) if theirs != keys]
    failed += [f"process {number} has other examples" for number in differing]
    if failed:
        raise RuntimeError(f"Another process failed while the processes shared an evaluation: {'; '.join(failed)}")
    results = {place: result for part, _, _ in gathered for place, result in part.items()}
    return [results[place] for place in range(len(items))]


def is_first() -> bool:
    """Tells whether this process is the first of those that run together."""
    return number_of_processes() == 1 or torch.distributed.get_rank() == 0


def by_first(compute: Callable[[], Result]) -> Result:
    """Computes something in the first process alone and returns it in every process.

    What it raises, all raise, so that none waits for the first one.

    Args:
        compute: Its result can be pickled.

    Raises:
        RuntimeError: The first process failed.
    """
    if number_of_processes() == 1:
        return compute()
    result: Any = None
    error: Exception | None = None
    if is_first():
        try:
            result = compute()
        except Exception as raised:  # noqa: BLE001 - the others must hear of any
            error = raised
    result, reason = from_first((result, None if error is None else repr(error)))
    if error is not None:
        raise error
    if reason is not None:
        raise RuntimeError(f"The first process failed: {reason}")
    return result
