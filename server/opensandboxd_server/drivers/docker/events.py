"""The engine's events as the driver's. Each event only says which sandbox to look at: what is told of it is what an
inspection finds, so that late, repeated or replayed events never take a sandbox back in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import structlog

from opensandboxd_server.domain.errors import BackendUnavailable, SandboxError
from opensandboxd_server.domain.model import SandboxState
from opensandboxd_server.domain.ports import DriverEvent, Gone, Lost, Observation, Relisted, Seen
from opensandboxd_server.drivers.docker.api import DockerApi
from opensandboxd_server.drivers.docker.container import ID, INSTANCE, observation
from opensandboxd_server.drivers.docker.state import ContainerState, of_inspected

FIRST_RETRY, LAST_RETRY = 0.2, 5.0
HEARTBEAT = 5.0
"""Seconds of silence after which the engine is asked whether it lives."""
PING_TIMEOUT = 4.0
"""Seconds that the engine has to say so."""
_OVERLAP = 2.0
"""Seconds of events from before the subscription that are asked for, since the engine subscribes after it answers."""
_SWITCHES = ("pause", "unpause")
_ACTIONS = ["start", "die", "oom", "destroy", *_SWITCHES]

log = structlog.get_logger()


class EngineEvents:
    """`hidden` says of a sandbox that nothing is to be told of it but that it is gone."""

    def __init__(self, api: DockerApi, instance: str, hidden: Callable[[str], bool]) -> None:
        self._api = api
        self._label = f"{INSTANCE}={instance}"
        self._hidden = hidden

    async def follow(self) -> AsyncGenerator[DriverEvent, None]:
        """For ever. One Lost for each time that the engine is away."""
        delay, lost = FIRST_RETRY, False
        while True:
            try:
                async with aclosing(self._connected()) as events:
                    async for event in events:
                        delay, lost = FIRST_RETRY, False
                        yield event
            except Exception as exc:  # an engine's odd answer must not be the last that is heard of it
                if not isinstance(exc, SandboxError):
                    log.exception("the Docker engine's events cannot be understood")
                if not lost:
                    yield Lost(str(exc))
                lost = True
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY)

    async def _connected(self) -> AsyncGenerator[DriverEvent, None]:
        filters = {"type": ["container"], "label": [self._label], "event": _ACTIONS}
        async with self._api.events(filters, since=time.time() - _OVERLAP) as stream:
            await stream.opened()
            yield await self._list()
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        batch = await stream.next_batch()
                except TimeoutError:
                    await self._api.ping(PING_TIMEOUT)
                    continue
                if not batch:
                    raise BackendUnavailable("the Docker engine ended its stream of events")
                for event in await self._look(batch):
                    yield event

    async def _list(self) -> Relisted:
        began = time.monotonic()
        containers = await self._api.list_containers(self._label)
        seen = await asyncio.gather(*(self._observe_listed(container) for container in containers))
        return Relisted(tuple(sandbox for sandbox in seen if sandbox), began)

    async def _observe_listed(self, container: dict[str, Any]) -> Observation | None:
        """A listing tells enough of what runs; it does not say how what ended did."""
        if container["State"] == "running":
            created = datetime.fromtimestamp(container["Created"], UTC)
            name = container["Names"][0] if container["Names"] else ""
            return self._observe(name, container["Labels"], ContainerState(SandboxState.RUNNING, created))
        return await self._inspect(container["Id"])

    async def _look(self, batch: list[dict[str, Any]]) -> list[DriverEvent]:
        """One event for each container in the batch, in the order of their first."""
        last = {event["Actor"]["ID"]: event for event in batch}
        found = await asyncio.gather(*(self._look_at(event) for event in last.values()))
        return [event for event in found if event]

    async def _look_at(self, event: dict[str, Any]) -> DriverEvent | None:
        if event["Action"] == "destroy":
            attributes = event["Actor"]["Attributes"]
            id = attributes.get(ID)
            return Gone(id) if id and attributes.get("name") == id else None
        at = datetime.fromtimestamp(event["timeNano"] / 1e9, UTC) if event["Action"] in _SWITCHES else None
        began = time.monotonic()
        sandbox = await self._inspect(event["Actor"]["ID"], at)
        return Seen(sandbox, began) if sandbox else None

    async def _inspect(self, container_id: str, switched_at: datetime | None = None) -> Observation | None:
        """None when it is gone, or going: a destroy event follows."""
        container = await self._api.inspect_container(container_id)
        state = of_inspected(container, switched_at) if container else None
        if not container or not state:
            return None
        return self._observe(container["Name"], container["Config"]["Labels"], state)

    def _observe(self, name: str, labels: dict[str, str], state: ContainerState) -> Observation | None:
        """None for what is not one of this server's sandboxes: labels can be copied (`docker commit`), names not."""
        try:
            if name.removeprefix("/") != labels.get(ID):
                raise ValueError(f"its name is {name}, which is not its {ID}")
            sandbox = observation(labels, state)
        except ValueError as exc:
            log.warning(
                "container carries this server's label, and is no sandbox", labels=sorted(labels), error=str(exc)
            )
            return None
        return None if self._hidden(sandbox.id) else sandbox
