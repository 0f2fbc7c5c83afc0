"""An event loop in a thread of its own, and the way in from any other thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """Runs coroutines on its own event loop for callers of any thread, also one whose own loop is running.

    `finish` is the last that runs on that loop.
    """

    def __init__(self, finish: Callable[[], Awaitable[None]]) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._closed = False
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started, finish)), name="opensandboxd-client", daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    async def _serve(self, started: Future[asyncio.AbstractEventLoop], finish: Callable[[], Awaitable[None]]) -> None:
        self._stop = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(_handle_exception)
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        await finish()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it to its end and returns its result. A KeyboardInterrupt here cancels it there."""
        if self._closed:
            coroutine.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the thread, cancelling what still runs. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:  # a garbage collection can happen there
            self._thread.join()


def _handle_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # All loops of a process share grpc.aio's queue of events; before grpcio 1.80 the one that comes too late complains.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
