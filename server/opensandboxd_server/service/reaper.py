"""Deletes sandboxes when their time has come, and forgets failed creations that were kept long enough."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from opensandboxd_server.domain.ports import Clock
from opensandboxd_server.service.creation import Creations
from opensandboxd_server.service.index import SandboxIndex
from opensandboxd_server.service.sandboxes import Sandboxes
from opensandboxd_server.service.tasks import Tasks

log = structlog.get_logger()

TICK = 0.25
"""Seconds between looks at the clock: what a sandbox may outlive its expiry by, before its removal begins."""

_RETRY = timedelta(seconds=1)
_AT_ONCE = 16


class Reaper:
    def __init__(self, index: SandboxIndex, sandboxes: Sandboxes, creations: Creations, clock: Clock) -> None:
        self._index = index
        self._sandboxes = sandboxes
        self._creations = creations
        self._clock = clock
        self._tasks = Tasks()
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops looking; returns when the removals at work have ended."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._tasks.drain()

    async def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                log.exception("the reaper stumbled; it goes on")
            await asyncio.sleep(TICK)

    def _look(self) -> None:
        for sandbox in self._index.pop_expired(self._clock.now()):
            self._tasks.begin(self._reap(sandbox.id))
        for id in self._creations.due_failures():
            self._tasks.begin(self._sandboxes.forget_failure(id))

    async def _reap(self, id: str) -> None:
        """Claims at once, then waits for its turn to remove: the claim keeps renewals out meanwhile."""
        try:
            if not await self._sandboxes.claim_expired(id):
                return
            async with self._turn:
                if await self._sandboxes.remove_expired(id):
                    log.info("sandbox expired", sandbox_id=id)
        except Exception as exc:  # noqa: BLE001 - whatever it was, the sandbox must go in the end
            log.warning("expired sandbox not removed; will try again", sandbox_id=id, error=str(exc))
            self._index.push_expiry(self._clock.now() + _RETRY, id)
