"""Runs forward passes side by side: each waits at the same linear module until all have come that far.

So a module can be changed by what all batches give it, before any of them goes on, in a single pass over the data.
Every forward pass has a thread of its own, but only one of them runs at a time, when it is asked to.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from torch import nn

_SUMS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)


@dataclass(eq=False)
class Stop:
    """Where a forward pass waits.

    Attributes:
        path: Of the linear module.
        given: Its inputs, `(batch, ..., in_features)`.
        outputs: What it makes of them; None where the pass waits before it does.
        stream: What the outputs are about to be added to, of their shape; None where the pass waits before.
        is_outdated: Whether the module was changed meanwhile, so that the pass makes the outputs anew.
    """

    path: str
    given: torch.Tensor
    outputs: torch.Tensor | None = None
    stream: torch.Tensor | None = None
    is_outdated: bool = False


class ForwardPass:
    """A forward pass in a thread of its own, which stops at linear modules. It has to be closed, or run to its end.

    Attributes:
        awaited: A module, and the stop that is reached when its outputs are added to the stream.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        """Does not start it yet.

        Args:
            run: Makes the pass.
        """
        self.awaited: tuple[Stop, nn.Module] | None = None
        self._run = run
        self._thread = threading.Thread(target=self._work, daemon=True, name="headprune-forward-pass")
        self._may_go, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._reached: Stop | None = None
        self._error: BaseException | None = None
        self._is_closed = False

    def advance(self) -> Stop | None:
        """Runs on to the next stop, and returns it; None at the end.

        Raises:
            BaseException: What the pass has raised.
        """
        if self._thread.ident is None:
            self._thread.start()
        elif not self._thread.is_alive():
            return None
        self._may_go.release()
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error
        return self._reached

    def stop_at(self, stop: Stop) -> None:
        """Waits, in the thread, until it is advanced."""
        self._reached = stop
        self._has_stopped.release()
        self._may_go.acquire()
        self._reached = None
        if self._is_closed:
            raise _Closed

    def close(self) -> None:
        """Ends it where it is."""
        self._is_closed = True
        if self._thread.is_alive():
            self._may_go.release()
            self._thread.join()

    def _work(self) -> None:
        self._may_go.acquire()
        if self._is_closed:
            return
        _OF_THREAD.forward_pass = self
        try:
            with torch.no_grad(), _Sums(self):
                self._run()
        except _Closed:
            pass
        except BaseException as error:  # noqa: BLE001 - handed on to whoever advances it
            self._error = error
        self._reached = None
        self._has_stopped.release()


_OF_THREAD = threading.local()


class _Closed(BaseException):
    """Ends a forward pass that is no longer needed; no `except Exception` of a model takes it."""


class _Sums(TorchFunctionMode):
    """Stops a pass where the outputs that it awaits are added to the stream, which then is the sum."""

    def __init__(self, forward_pass: ForwardPass) -> None:
        super().__init__()
        self._pass = forward_pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._pass.awaited is not None and func in _SUMS and len(args) == 2 and not kwargs:  # noqa: PLR2004
            stop, module = self._pass.awaited
            stream = next((other for mine, other in (args, args[::-1]) if _is_same(mine, stop.outputs)), None)
            if isinstance(stream, torch.Tensor) and stream.shape == args[0].shape == args[1].shape:
                self._pass.awaited, stop.stream = None, stream
                self._pass.stop_at(stop)
                if stop.is_outdated:
                    return stream + module.forward(stop.given)
        return func(*args, **(kwargs or {}))


def _is_same(value: Any, outputs: torch.Tensor | None) -> bool:
    """Tells whether a value is the outputs themselves, also where a dropout that is off has passed them on."""
    if outputs is None or not isinstance(value, torch.Tensor) or value.shape != outputs.shape:
        return False
    return value.data_ptr() == outputs.data_ptr()


class SideBySide:
    """Forward passes of one model, for the length of a `with` block."""

    def __init__(self, model: nn.Module, runs: Iterable[Callable[[nn.Module], Any]]) -> None:
        """Prepares them.

        Args:
            model: In evaluation mode.
            runs: Each makes one forward pass of the model that it is given.
        """
        self._model = model
        self._passes = [ForwardPass(partial(run, model)) for run in runs]
        self._open = ExitStack()

    def stop_at(self, *, before: Iterable[str] = (), after: Iterable[str] = (), sums: Iterable[str] = ()) -> None:
        """Says where the passes stop.

        Args:
            before: Paths of modules: before they run.
            after: Paths of modules: once they have run.
            sums: Paths of modules: where their outputs are added to something.
        """
        for path in before:
            handle = self._model.get_submodule(path).register_forward_pre_hook(partial(_stop_before, path))
            self._open.callback(handle.remove)
        for hook, paths in ((_stop_after, after), (_await_sum, sums)):
            for path in paths:
                handle = self._model.get_submodule(path).register_forward_hook(partial(hook, path))
                self._open.callback(handle.remove)

    def __enter__(self) -> SideBySide:
        """Nothing runs yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all passes."""
        try:
            for forward_pass in self._passes:
                forward_pass.close()
        finally:  # a second interruption, too, leaves no hooks behind
            self._open.close()

    def advance(self, path: str) -> list[Stop]:
        """Runs all passes on to a module, one after the other, and returns where each waits.

        Raises:
            RuntimeError: One ends before.
        """
        found = []
        for forward_pass in self._passes:
            stop = forward_pass.advance()
            while stop is not None and stop.path != path:
                stop = forward_pass.advance()
            if stop is None:
                raise RuntimeError(f"A forward pass has not come to {path}.")
            found.append(stop)
        return found

    def order(self) -> list[str]:
        """Returns the paths of all stops of the first pass, in order; it ends then."""
        found = []
        stop = self._passes[0].advance()
        while stop is not None:
            found.append(stop.path)
            stop = self._passes[0].advance()
        return found


def _stop_before(path: str, module: nn.Module, args: Any) -> None:
    if (here := _of_this_thread()) is not None:
        here.stop_at(Stop(path, args[0]))


def _stop_after(path: str, module: nn.Module, args: Any, outputs: Any) -> None:
    if (here := _of_this_thread()) is not None:
        here.stop_at(Stop(path, args[0], outputs))


def _await_sum(path: str, module: nn.Module, args: Any, outputs: Any) -> None:
    if (here := _of_this_thread()) is not None:
        here.awaited = Stop(path, args[0], outputs), module


def _of_this_thread() -> ForwardPass | None:
    """Returns the forward pass that runs in this thread; None in a thread of the user's."""
    return getattr(_OF_THREAD, "forward_pass", None)
