"""A backend in memory: for tests of what is above it, for trying a client out, and for faults on demand.

It keeps the promises of domain.ports.SandboxDriver; what no engine would do by itself is asked of it with
`inject_error`, `hold`, `exit`, `vanish`, `lose` and `recover`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

from opensandboxd_server.domain.errors import BackendUnavailable, FailedPrecondition, NotFound
from opensandboxd_server.domain.model import Endpoint, LogChunk, LogOptions, LogStream, SandboxState
from opensandboxd_server.domain.policy import SandboxPlan
from opensandboxd_server.domain.ports import DriverEvent, DriverInfo, Gone, Lost, Observation, Progress, Relisted, Seen
from opensandboxd_server.domain.runtimes import RUNTIMES, RuntimeAvailability

_STEPS = ("pull", "create", "start")


class FakeDriver:
    """`backend` lets a second driver find what a first one made, as after a restart of the server."""

    def __init__(self, backend: FakeBackend | None = None) -> None:
        self.backend = backend or FakeBackend()
        self._events: asyncio.Queue[DriverEvent] = asyncio.Queue()
        self._errors: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._lost = False

    # Faults on demand

    def inject_error(self, method: str, error: Exception) -> None:
        """The next call of `method` fails with `error`; queued. A creation's steps are "pull", "create", "start"."""
        self._errors[method].append(error)

    def hold(self, method: str) -> asyncio.Event:
        """Calls of `method` wait until the event returned is set."""
        self._gates[method] = asyncio.Event()
        return self._gates[method]

    def exit(self, id: str, code: int, reason: str = "ENTRYPOINT_EXITED") -> None:
        """The sandbox's entry point exits."""
        state = SandboxState.FAILED if code else SandboxState.TERMINATED
        self._change(id, state=state, reason=reason, exit_code=code)

    def vanish(self, id: str) -> None:
        """Somebody removes the sandbox behind the server's back."""
        del self.backend.sandboxes[id]
        self._tell(Gone(id))

    def lose(self, message: str = "injected") -> None:
        """The backend cannot be reached until `recover`; what happens meanwhile is not told."""
        self._lost = True
        self._events.put_nowait(Lost(message))

    def recover(self) -> None:
        self._lost = False
        self._events.put_nowait(self._listing())

    # The port

    async def start(self) -> DriverInfo:
        await self._step("start_driver")
        available = {name: RuntimeAvailability(True) for name in RUNTIMES}
        return DriverInfo("fake", "1", available, None, {"gpu": "the fake driver has no GPUs"}, cpus=64)

    async def close(self) -> None:
        pass

    async def create(self, plan: SandboxPlan, progress: Progress) -> Observation:
        observation = Observation.planned(plan)
        try:
            for step in _STEPS:
                if step == "pull":
                    progress("IMAGE_PULLING", f"pulling {plan.image.uri}: 1 of 2 layers")
                if step == "start":
                    self.backend.sandboxes[plan.id] = observation
                    self._tell(Seen(observation, time.monotonic()))
                await self._step(step)
        except BaseException:
            if self.backend.sandboxes.pop(plan.id, None):
                self._tell(Gone(plan.id))
            raise
        self._change(plan.id, state=SandboxState.RUNNING, reason="")
        self.backend.logs[plan.id].append(LogChunk(LogStream.STDOUT, b"started\n", _now()))
        return self.backend.sandboxes[plan.id]

    async def delete(self, id: str) -> bool:
        await self._step("delete")
        known = self.backend.sandboxes.pop(id, None)
        if known:
            self._tell(Gone(id))
        return known is not None

    async def pause(self, id: str) -> None:
        await self._step("pause")
        self._switch(id, SandboxState.PAUSED)

    async def resume(self, id: str) -> None:
        await self._step("resume")
        self._switch(id, SandboxState.RUNNING)

    async def events(self) -> AsyncIterator[DriverEvent]:
        yield self._listing()
        while True:
            yield await self._events.get()

    async def endpoint(self, id: str, port: int, *, internal: bool) -> Endpoint:
        await self._step("endpoint")
        sandbox = self._find(id)
        if internal:
            return Endpoint("10.0.0.2", port)
        if port not in sandbox.spec.ports:
            raise FailedPrecondition(
                "PORT_NOT_PUBLISHED",
                f"port {port} of {id} is not published; add it to spec.ports at creation",
                subject=id,
            )
        return Endpoint("127.0.0.1", 40000 + port % 10000)

    async def logs(self, id: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        await self._step("logs")
        self._find(id)
        kept = list(self.backend.logs[id])
        for chunk in kept if options.tail_lines is None else kept[max(0, len(kept) - options.tail_lines) :]:
            if _is_asked_for(chunk, options):
                yield chunk
        told = len(kept)
        alive = options.follow
        while alive:
            alive = self._is_alive(id)  # looked at first: what it wrote before it ended is told
            for chunk in self.backend.logs[id][told:]:
                told += 1
                if _is_asked_for(chunk, options):
                    yield chunk
            await asyncio.sleep(0.01)

    # How

    async def _step(self, name: str) -> None:
        await asyncio.sleep(0)
        if gate := self._gates.get(name):
            await gate.wait()
        if self._errors[name]:
            raise self._errors[name].popleft()
        if self._lost:
            raise BackendUnavailable("the fake backend is away")

    def _is_alive(self, id: str) -> bool:
        return id in self.backend.sandboxes and not self.backend.sandboxes[id].state.final

    def _find(self, id: str) -> Observation:
        if id not in self.backend.sandboxes:
            raise NotFound(id)
        return self.backend.sandboxes[id]

    def _switch(self, id: str, to: SandboxState) -> None:
        state = self._find(id).state
        if state.final:
            raise FailedPrecondition("INVALID_STATE", f"sandbox {id} is {state.value}", subject=id)
        self._change(id, state=to, reason="")

    def _change(self, id: str, *, state: SandboxState, reason: str, exit_code: int | None = None) -> None:
        observation = replace(self._find(id), state=state, reason=reason, exit_code=exit_code, state_time=_now())
        self.backend.sandboxes[id] = observation
        self._tell(Seen(observation, time.monotonic()))

    def _tell(self, event: DriverEvent) -> None:
        if not self._lost:
            self._events.put_nowait(event)

    def _listing(self) -> Relisted:
        return Relisted(tuple(self.backend.sandboxes.values()), time.monotonic())


class FakeBackend:
    """What outlives a FakeDriver: its sandboxes and their logs."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Observation] = {}
        self.logs: defaultdict[str, list[LogChunk]] = defaultdict(list)


def _is_asked_for(chunk: LogChunk, options: LogOptions) -> bool:
    return (not options.streams or chunk.stream in options.streams) and (
        not options.since or chunk.time >= options.since
    )


def _now() -> datetime:
    return datetime.now(UTC)
