"""Takes containers away, and goes on until they are gone."""

from __future__ import annotations

import asyncio

import structlog

from opensandboxd_server.domain.errors import SandboxError
from opensandboxd_server.drivers.docker.api import DockerApi, EngineError
from opensandboxd_server.drivers.docker.streams import settled

_CONFLICT = 409
_RETRIES = (0.1, 0.3, 1.0)
_PERSISTENCE = 5.0
"""Seconds between attempts in the background."""
_LAST_PATIENCE = 2.0
"""Seconds that the engine has to answer when the server ends."""

log = structlog.get_logger()


class Removals:
    """`timeout`, in seconds, is how long the engine may take over one removal, or over a creation it did not answer."""

    def __init__(self, api: DockerApi, timeout: int) -> None:
        self._api = api
        self._timeout = timeout
        self._doomed: dict[str, asyncio.Task[None]] = {}

    def is_doomed(self, id: str) -> bool:
        """Whether it is what a failed creation left, and is about to be removed."""
        return id in self._doomed

    async def remove(self, id: str) -> bool:
        """Returns when the container is gone, and whether there was one."""
        try:
            return await self._api.remove_container(id)
        except EngineError as exc:
            if exc.status != _CONFLICT:
                raise
        await self._api.wait_container(id, self._timeout, until="removed")  # another removal is at work
        return True

    async def leave_nothing(self, id: str, *, may_appear: bool = False) -> None:
        """Removes what a failed creation left, whatever else fails, and though the caller is cancelled meanwhile.

        Tries a few times; then goes on in the background. With `may_appear` the engine has not answered the creation,
        and may yet finish it: the container's absence proves nothing until it has lasted for the time-out.
        """
        task = self._doomed[id] = asyncio.create_task(self._persist(id, may_appear))
        task.add_done_callback(lambda _: self._doomed.pop(id, None))
        patience = asyncio.create_task(asyncio.wait([task], timeout=sum(_RETRIES) + 1))
        await settled(patience)

    async def close(self) -> None:
        """Ends what goes on in the background; waits a little for the engine's answers to what is under way."""
        tasks = list(self._doomed.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_PATIENCE)

    async def _persist(self, id: str, may_appear: bool) -> None:
        loop = asyncio.get_running_loop()
        patience = self._timeout if may_appear else 0
        absent_since = None
        delays = iter(_RETRIES)
        while True:
            try:
                if await self.remove(id):
                    return
                absent_since = absent_since or loop.time()
                if loop.time() - absent_since >= patience:
                    return
            except SandboxError as exc:
                log.warning("failed creation not removed yet", sandbox_id=id, error=exc.message)
            await asyncio.sleep(next(delays, _PERSISTENCE))
