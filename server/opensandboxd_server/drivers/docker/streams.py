"""Blocking iterators on the event loop: each is read on a thread of its own, and taken in batches.

The thread stays at most DEPTH items ahead of the reader. Nothing here knows of Docker.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

DEPTH = 256

T = TypeVar("T")


async def settled(future: asyncio.Future[Any]) -> None:
    """Waits until the future is done, however it ends and however often the caller is cancelled meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()


@dataclass(frozen=True, slots=True)
class Source(Generic[T]):
    """An open stream. `interrupt`, called from any thread, makes `items` end; `close` releases what it holds."""

    items: Iterator[T]
    interrupt: Callable[[], None]
    close: Callable[[], None]


class Stream(Generic[T]):
    """Reads what `open` returns. An async context manager: leaving it ends the thread.

    A thread still inside `open` cannot be interrupted: it is left behind, and closes what it opens. `release` is
    called, on the thread, when it is done.
    """

    def __init__(self, open: Callable[[], Source[T]], release: Callable[[], None] = lambda: None) -> None:
        self._open = open
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._items: deque[T] = deque()
        self._room = threading.Semaphore(DEPTH)
        self._lock = threading.Lock()
        self._source: Source[T] | None = None
        self._error: Exception | None = None
        self._ended = False
        self._closing = threading.Event()

    async def __aenter__(self) -> Self:
        threading.Thread(target=self._run, name="engine-stream", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._lock:
            self._closing.set()
            source = self._source
        self._room.release()
        if source:
            source.interrupt()
            await self._until(lambda: self._ended)

    async def opened(self) -> None:
        """Returns when the stream is open; raises what kept it from opening."""
        await self._until(lambda: self._source is not None or self._ended)
        if self._error and not self._source:
            raise self._error

    async def next_batch(self) -> list[T]:
        """What has come since the last time, at least one item; empty at the stream's end. Raises what broke it."""
        await self._until(lambda: bool(self._items) or self._ended)
        batch = [self._items.popleft() for _ in range(len(self._items))]
        if batch:
            self._room.release(len(batch))
        elif self._error:
            raise self._error
        return batch

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            self._wake.clear()
            if condition():
                return
            await self._wake.wait()

    def _run(self) -> None:
        try:
            self._read()
        except Exception as exc:  # noqa: BLE001 # it is the reader's, and raised there
            self._error = exc
        finally:
            self._ended = True
            self._release()
            self._notify()

    def _read(self) -> None:
        source = self._open()
        try:
            with self._lock:
                if self._closing.is_set():
                    return
                self._source = source
            self._notify()
            for item in source.items:
                self._room.acquire()
                if self._closing.is_set():
                    return
                self._items.append(item)
                self._notify()
        finally:
            source.close()

    def _notify(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._wake.set)
