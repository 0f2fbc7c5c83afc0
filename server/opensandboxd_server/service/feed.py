"""Keeps the index true to the backend: takes in the driver's events, and sweeps what no one owns any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from opensandboxd_server.domain.errors import SandboxError, StartupError
from opensandboxd_server.domain.model import SandboxState
from opensandboxd_server.domain.ports import (
    DriverEvent,
    Gone,
    Lost,
    Relisted,
    SandboxDriver,
    SandboxStore,
    Seen,
)
from opensandboxd_server.service.creation import Creations
from opensandboxd_server.service.index import SandboxIndex
from opensandboxd_server.service.tasks import Tasks

log = structlog.get_logger()


class Feed:
    """`on_health` is told whether the backend can be reached, whenever that changes."""

    def __init__(
        self,
        driver: SandboxDriver,
        store: SandboxStore,
        index: SandboxIndex,
        creations: Creations,
        on_health: Callable[[bool], None],
    ) -> None:
        self._driver = driver
        self._store = store
        self._index = index
        self._creations = creations
        self._on_health = on_health
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Returns when the index holds all that the backend and the store have."""
        self._task = asyncio.create_task(self._run())
        await self._ready

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._tasks.drain()

    async def _run(self) -> None:
        try:
            async for event in self._driver.events():
                await self._take_safely(event)
        except Exception as exc:
            log.exception("the driver's events ended")
            self._on_health(False)
            if not self._ready.done():
                self._ready.set_exception(exc)

    async def _take_safely(self, event: DriverEvent) -> None:
        """Nothing that goes wrong with one event keeps the next from being taken in, once the server has started."""
        try:
            await self._take(event)
        except Exception:
            if not self._ready.done():
                raise
            log.exception("event not taken in", driver_event=type(event).__name__)

    async def _take(self, event: DriverEvent) -> None:
        match event:
            case Seen(sandbox, began):
                if sandbox.state is not SandboxState.PENDING:
                    self._index.observe(sandbox, began)
            case Gone(id):
                await self._take_gone(id)
            case Lost(message):
                log.warning("backend lost", error=message)
                self._on_health(False)
            case Relisted():
                await self._take_relisted(event)
                self._on_health(True)

    async def _take_gone(self, id: str) -> None:
        """A removal of our own is told by the verb that did it; a creation's own clean-up by the creation, whose
        failure is kept."""
        entry = self._index.entry(id)
        if not entry or self._creations.is_failure(id):
            return
        if entry.transition or self._creations.is_running(id):
            self._index.mark_gone(id)
            return
        await self._creations.lost(id)

    async def _take_relisted(self, relisted: Relisted) -> None:
        for observation in relisted.sandboxes:
            if observation.state is not SandboxState.PENDING:
                self._index.observe(observation, relisted.began)
            elif self._is_left_over(observation.id):
                self._tasks.begin(self._sweep(observation.id))
        alive = {o.id for o in relisted.sandboxes if o.state is not SandboxState.PENDING}
        if not self._ready.done():
            await self._restore(alive)
            self._ready.set_result(None)
            return
        for entry in self._index:
            id = entry.observation.id
            if id not in alive and entry.seen_at < relisted.began:
                await self._take_gone(id)

    def _is_left_over(self, id: str) -> bool:
        """Of a sandbox that is not started: whether no creation will start it, or has since it was listed."""
        return self._creations.is_failure(id) or (id not in self._index and not self._creations.is_running(id))

    async def _restore(self, alive: set[str]) -> None:
        """StartupError when the store cannot be read."""
        try:
            await self._take_up_store(alive)
        except Exception as exc:
            raise StartupError(f"what the store holds cannot be read: {exc}; restore it, or move it away") from exc

    async def _take_up_store(self, alive: set[str]) -> None:
        unknown = await self._creations.restore(alive)
        for record in await self._store.load_records():
            if record.id in alive or self._creations.is_failure(record.id):
                self._index.set_record(record)
            else:
                unknown.add(record.id)
        await self._store.forget(sorted(unknown))
        log.info("sandboxes found", count=len(self._index))

    async def _sweep(self, id: str) -> None:
        """Removes what an interrupted creation left."""
        try:
            await self._driver.delete(id)
            log.info("interrupted creation swept", sandbox_id=id)
        except SandboxError as exc:
            log.warning(
                "interrupted creation not swept; the next listing tries again", sandbox_id=id, error=exc.message
            )
