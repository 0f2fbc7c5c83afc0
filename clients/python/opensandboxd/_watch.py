"""A watch that outlives its connection: resumed where it stopped, or told anew as changes when the server cannot."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from opensandboxd.errors import FailedPreconditionError, ResourceExhaustedError, SandboxError, UnavailableError
from opensandboxd.v1.sandbox_pb2 import Sandbox
from opensandboxd.v1.sandbox_service_pb2 import Bookmark, WatchSandboxesResponse

_log = logging.getLogger("opensandboxd")
_MAX_BACKOFF = 5.0

Connect = Callable[[str], AsyncGenerator[WatchSandboxesResponse, None]]
"""Opens the stream at a resource version; "" is from a snapshot."""


async def resuming_watch(
    connect: Connect, resource_version: str, reconnect_timeout: float
) -> AsyncGenerator[WatchSandboxesResponse, None]:
    """Yields what `connect` streams, across its failures. Raises when the first connection fails, when the server has
    been away for `reconnect_timeout` seconds, and on every error that trying again cannot heal."""
    view = _View(complete=not resource_version)
    version = resource_version
    connected = False
    backoff = 0.1
    give_up = 0.0
    while True:
        lost: SandboxError | None = None
        try:
            async with aclosing(connect(version)) as events:
                async for event in events:
                    connected, backoff, give_up = True, 0.1, 0.0
                    version = event.resource_version or version
                    for told in view.tell(event):
                        yield told
        except (UnavailableError, ResourceExhaustedError) as error:
            if not connected or (isinstance(error, ResourceExhaustedError) and error.reason != "WATCH_TOO_SLOW"):
                raise
            lost = error
        except FailedPreconditionError as error:
            if error.reason != "RESOURCE_VERSION_EXPIRED" or not view.complete:
                raise
            version = ""
        give_up = give_up or time.monotonic() + reconnect_timeout
        if lost and time.monotonic() >= give_up:
            raise lost
        if not version:
            view.relist()
        _log.info("the watch was interrupted (%s); resuming", lost or "the stream ended")
        await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311 (jitter)
        backoff = min(backoff * 2, _MAX_BACKOFF)


class _View:
    """What the caller has been told. Turns a second snapshot into the changes since. `complete`: it began with one."""

    def __init__(self, *, complete: bool) -> None:
        self.complete = complete
        self._known: dict[str, Sandbox] = {}
        self._missing: set[str] | None = None
        self._snapshot_told = False

    def relist(self) -> None:
        """What follows is a snapshot again."""
        self._missing = set(self._known)

    def tell(self, event: WatchSandboxesResponse) -> Iterator[WatchSandboxesResponse]:
        match event.WhichOneof("event"):
            case "added":
                yield from self._added(event)
            case "updated":
                self._known[event.updated.id] = event.updated
                yield event
            case "removed":
                self._known.pop(event.removed.id, None)
                yield event
            case "bookmark" if event.bookmark.snapshot_end:
                yield from self._snapshot_end(event)
            case _:
                yield event

    def _added(self, event: WatchSandboxesResponse) -> Iterator[WatchSandboxesResponse]:
        before = self._known.get(event.added.id)
        self._known[event.added.id] = event.added
        if self._missing is not None:
            self._missing.discard(event.added.id)
        if before is None:
            yield event
        elif before != event.added:
            yield WatchSandboxesResponse(updated=event.added, resource_version=event.resource_version)

    def _snapshot_end(self, event: WatchSandboxesResponse) -> Iterator[WatchSandboxesResponse]:
        for id in self._missing or ():
            yield WatchSandboxesResponse(removed=self._known.pop(id), resource_version=event.resource_version)
        bookmark = Bookmark(snapshot_end=not self._snapshot_told)
        self._missing, self._snapshot_told = None, True
        yield WatchSandboxesResponse(bookmark=bookmark, resource_version=event.resource_version)
