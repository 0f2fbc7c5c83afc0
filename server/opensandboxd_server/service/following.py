"""Listing sandboxes a page at a time, waiting for one, and watching them all: reads of the index."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from opensandboxd_server.domain.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from opensandboxd_server.domain.model import Sandbox, SandboxState
from opensandboxd_server.domain.validate import check_id
from opensandboxd_server.service.index import Change, SandboxIndex

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_PAGE_BYTES = 2 * 1024 * 1024
"""Of the sandboxes on one page: half of what a gRPC client receives by default."""

_MAX_TOKEN = 512
"""Characters: more than any token of ours has. What reads them has limits that are not for callers to find."""

BOOKMARK_INTERVAL = 30.0
"""Seconds of silence after which a watch is sent a bookmark."""

_SETTLED = frozenset({SandboxState.RUNNING, SandboxState.TERMINATED, SandboxState.FAILED})


@dataclass(frozen=True, slots=True)
class Filter:
    """Which sandboxes: in one of `states`, carrying all of `metadata`, one of `ids`; empty is any."""

    states: frozenset[SandboxState] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()

    def matches(self, sandbox: Sandbox | None) -> bool:
        return (
            sandbox is not None
            and (not self.states or sandbox.status.state in self.states)
            and (not self.ids or sandbox.id in self.ids)
            and all(sandbox.metadata.get(key) == value for key, value in self.metadata.items())
        )

    def digest(self) -> str:
        plain = [sorted(s.value for s in self.states), sorted(self.metadata.items()), sorted(self.ids)]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Page:
    sandboxes: tuple[Sandbox, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class WaitResult:
    sandbox: Sandbox
    reached: bool


class WatchKind(Enum):
    ADDED = "added"
    UPDATED = "updated"
    REMOVED = "removed"
    BOOKMARK = "bookmark"
    SNAPSHOT_END = "snapshot end"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`sandbox` is None for the two bookmarks."""

    kind: WatchKind
    sandbox: Sandbox | None
    resource_version: str


class Following:
    def __init__(self, index: SandboxIndex) -> None:
        self._index = index

    def list(self, filter: Filter, page_size: int, page_token: str, size_of: Callable[[Sandbox], int]) -> Page:
        """One page, oldest first; `size_of` tells how many bytes of it a sandbox takes. InvalidArgument for a negative
        `page_size`, or a token that is not of this listing."""
        if page_size < 0:
            raise InvalidArgument.of("page_size", "must not be negative; 0 is the default of 100")
        size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
        page: list[Sandbox] = []
        room = MAX_PAGE_BYTES
        for sandbox in self._index.sandboxes(_decode_token(page_token, filter) if page_token else None):
            if not filter.matches(sandbox):
                continue
            room -= size_of(sandbox)
            if len(page) == size or (page and room < 0):
                return Page(tuple(page), _encode_token(page[-1], filter))
            page.append(sandbox)
        return Page(tuple(page), "")

    async def wait(self, id: str, states: frozenset[SandboxState], timeout: timedelta | None) -> WaitResult:
        """Returns when the sandbox is in one of `states` (empty: RUNNING or over), when that has become hopeless, or
        after `timeout`. NotFound when it is not there at the beginning."""
        check_id(id)
        wanted = states or _SETTLED
        sandbox = self._index.get(id)
        if not sandbox:
            raise NotFound(id)
        deadline = asyncio.get_running_loop().time() + timeout.total_seconds() if timeout is not None else None
        version = self._index.version
        while sandbox.status.state not in wanted and (not sandbox.status.state.final or self._may_end(sandbox, wanted)):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._index.changed()
            except TimeoutError:
                break
            sandbox = self._latest(sandbox, version)
            version = self._index.version
        return WaitResult(sandbox, sandbox.status.state in wanted)

    def _may_end(self, sandbox: Sandbox, wanted: frozenset[SandboxState]) -> bool:
        """A FAILED sandbox is still there, and becomes TERMINATED when it is deleted."""
        return SandboxState.TERMINATED in wanted and sandbox.id in self._index

    def _latest(self, sandbox: Sandbox, version: int) -> Sandbox:
        """The sandbox as it is, or as it was last if it went since `version`."""
        now = self._index.get(sandbox.id)
        if now:
            return now
        changes = self._index.changes(max(version, self._index.oldest_version))
        return next((c.last for c in reversed(changes) if c.last.id == sandbox.id), sandbox)

    async def watch(self, filter: Filter, resource_version: str) -> AsyncIterator[WatchEvent]:
        """Every change that concerns `filter`, for ever; see WatchSandboxes in the contract."""
        if resource_version:
            position = self._parse_version(resource_version)
        else:
            position = self._index.version
            version = self._version(position)
            for sandbox in [s for s in self._index.sandboxes() if filter.matches(s)]:
                yield WatchEvent(WatchKind.ADDED, sandbox, "")
            yield WatchEvent(WatchKind.SNAPSHOT_END, None, version)
        clock = asyncio.get_running_loop().time
        bookmark_due = clock() + BOOKMARK_INTERVAL
        while True:
            if position < self._index.oldest_version:
                raise ResourceExhausted(
                    "WATCH_TOO_SLOW",
                    "changes came faster than this watch was read; watch again from a fresh snapshot",
                    subject="watch",
                    retry_after=0.0,
                )
            for change in self._index.changes(position):
                position = change.version
                if event := _event(change, filter):
                    yield WatchEvent(*event, self._version(position))
                    bookmark_due = clock() + BOOKMARK_INTERVAL
            if clock() >= bookmark_due:
                yield WatchEvent(WatchKind.BOOKMARK, None, self._version(position))
                bookmark_due = clock() + BOOKMARK_INTERVAL
            if position == self._index.version:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(bookmark_due):
                        await self._index.changed()

    def _version(self, position: int) -> str:
        return f"{self._index.epoch}-{position}"

    def _parse_version(self, text: str) -> int:
        epoch, _, position = text.partition("-")
        if not (len(position) < _MAX_TOKEN and position.isascii() and position.isdecimal()):
            raise InvalidArgument.of(
                "resource_version", "is not one that WatchSandboxes gave; leave it empty to begin anew"
            )
        if epoch != self._index.epoch or not self._index.oldest_version <= int(position) <= self._index.version:
            raise FailedPrecondition(
                "RESOURCE_VERSION_EXPIRED",
                "the server does not remember changes since that resource_version; leave it empty to begin anew",
                subject="resource_version",
            )
        return int(position)


def _event(change: Change, filter: Filter) -> tuple[WatchKind, Sandbox] | None:
    """What a change is to a watch with this filter: what comes to match is added, what ceases to is removed."""
    before, after = filter.matches(change.before), filter.matches(change.after)
    if after:
        return (WatchKind.UPDATED if before else WatchKind.ADDED), change.last
    return (WatchKind.REMOVED, change.last) if before else None


def _encode_token(last: Sandbox, filter: Filter) -> str:
    plain = json.dumps([last.create_time.isoformat(), last.id, filter.digest()])
    return base64.urlsafe_b64encode(plain.encode()).decode()


def _decode_token(token: str, filter: Filter) -> tuple[datetime, str]:
    try:
        if len(token) > _MAX_TOKEN:
            raise ValueError("too long")
        time, id, digest = json.loads(base64.urlsafe_b64decode(token.encode()))
        key = (datetime.fromisoformat(time), str(id))
        if key[0].tzinfo is None:
            raise ValueError("naive time")
    except (ValueError, TypeError):
        raise InvalidArgument.of(
            "page_token", "is not one that ListSandboxes gave; leave it empty for the first page"
        ) from None
    if digest != filter.digest():
        raise InvalidArgument.of("page_token", "belongs to a listing with other filters; keep them from page to page")
    return key
