"""Blocking calls on a bounded number of threads that a stalled engine cannot make the process wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from opensandboxd_server.domain.errors import BackendUnavailable

T = TypeVar("T")


class Workers:
    """As a ThreadPoolExecutor, whose threads the interpreter would join at exit: these are daemons. Used from the event
    loop's thread only."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._unfinished: set[Future[Any]] = set()
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """BackendUnavailable once closed."""
        if self._closed:
            raise _closed()
        future: Future[T] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        self._jobs.put((future, work))
        if not self._idle.acquire(blocking=False) and self._started < self._size:
            self._started += 1
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return future

    def close(self) -> None:
        """What waits is cancelled; what is at work fails with BackendUnavailable, and its thread is left behind."""
        self._closed = True
        for future in list(self._unfinished):
            if not future.cancel():
                with suppress(InvalidStateError):  # it has ended meanwhile
                    future.set_exception(_closed())
        for _ in range(self._started):
            self._jobs.put(None)

    def _run(self) -> None:
        while job := self._jobs.get():
            future, work = job
            if future.set_running_or_notify_cancel():
                _fulfil(future, work)
            del job, future, work  # else they live until the next comes
            self._idle.release()


def _fulfil(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        tell = partial(future.set_result, work())
    except BaseException as exc:  # noqa: BLE001 # it is the caller's, and raised there
        tell = partial(future.set_exception, exc)
    with suppress(InvalidStateError):  # it was given up at close
        tell()


def _closed() -> BackendUnavailable:
    return BackendUnavailable("the server is shutting down, and speaks to the Docker engine no more")
