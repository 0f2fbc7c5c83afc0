"""One test's place on a server: makes sandboxes that are its own, calls verbs on them, and leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from tests.conformance.house import STAY, House, Work
from tests.harness import Server

PATIENCE = 15.0
"""Seconds after which something that must come about has not."""


class Site:
    """`label` is metadata that every sandbox of this site carries, so that lists and watches see no other's."""

    def __init__(self, house: House, server: Server, label: str, instance: str) -> None:
        self.house = house
        self._instance = instance
        self.server = server
        self.stub = server.sandboxes
        self.label = label
        self._work: set[asyncio.Task[None]] = set()

    @property
    def mine(self) -> dict[str, str]:
        return {"site": self.label}

    def body(
        self,
        work: Work = STAY,
        *,
        metadata: dict[str, str] | None = None,
        image: str = "",
        entrypoint: list[str] | None = None,
        spec: dict[str, Any] | None = None,
        **request: Any,
    ) -> rpc.CreateSandboxRequest:
        """A CreateSandboxRequest for a sandbox of this site."""
        return rpc.CreateSandboxRequest(
            spec=pb.SandboxSpec(
                image=pb.ImageSource(uri=image or self.house.image),
                entrypoint=self.house.entrypoint(work) if entrypoint is None else entrypoint,
                **(spec or {}),
            ),
            metadata={**self.mine, **(metadata or {})},
            **request,
        )

    async def create(self, work: Work = STAY, **how: Any) -> pb.Sandbox:
        sandbox: pb.Sandbox = (await self.stub.CreateSandbox(self.body(work, **how))).sandbox
        task = asyncio.create_task(self.house.perform(self.server, sandbox.id, work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return sandbox

    async def accept(self, **how: Any) -> pb.Sandbox:
        return await self.create(return_when=rpc.RETURN_WHEN_ACCEPTED, **how)

    async def get(self, id: str) -> pb.Sandbox:
        sandbox: pb.Sandbox = (await self.stub.GetSandbox(rpc.GetSandboxRequest(id=id))).sandbox
        return sandbox

    async def state(self, id: str) -> pb.SandboxState.ValueType:
        return (await self.get(id)).status.state

    async def list(self, **filters: Any) -> list[pb.Sandbox]:
        request = rpc.ListSandboxesRequest(metadata=self.mine, **filters)
        return list((await self.stub.ListSandboxes(request)).sandboxes)

    async def delete(self, id: str, **how: Any) -> None:
        await self.stub.DeleteSandbox(rpc.DeleteSandboxRequest(id=id, **how))

    async def pause(self, id: str) -> pb.Sandbox:
        sandbox: pb.Sandbox = (await self.stub.PauseSandbox(rpc.PauseSandboxRequest(id=id))).sandbox
        return sandbox

    async def resume(self, id: str) -> pb.Sandbox:
        sandbox: pb.Sandbox = (await self.stub.ResumeSandbox(rpc.ResumeSandboxRequest(id=id))).sandbox
        return sandbox

    async def renew(self, id: str, **how: Any) -> pb.Sandbox:
        sandbox: pb.Sandbox = (await self.stub.RenewSandbox(rpc.RenewSandboxRequest(id=id, **how))).sandbox
        return sandbox

    async def update(self, id: str, **how: Any) -> pb.Sandbox:
        sandbox: pb.Sandbox = (await self.stub.UpdateSandbox(rpc.UpdateSandboxRequest(id=id, **how))).sandbox
        return sandbox

    async def wait(self, id: str, *states: pb.SandboxState.ValueType, **how: Any) -> rpc.WaitSandboxResponse:
        request = rpc.WaitSandboxRequest(id=id, states=states, **how)
        reply: rpc.WaitSandboxResponse = await self.stub.WaitSandbox(request, timeout=PATIENCE)
        return reply

    async def ended(self, id: str) -> pb.Sandbox:
        """The sandbox once its entry point has exited."""
        reply = await self.wait(id, pb.SANDBOX_STATE_TERMINATED, pb.SANDBOX_STATE_FAILED)
        assert reply.reached
        return reply.sandbox

    @contextlib.asynccontextmanager
    async def watch(self, **filters: Any) -> AsyncIterator[Watch]:
        """A watch of this site's sandboxes, past its snapshot unless it resumes."""
        filters.setdefault("metadata", self.mine)
        call = self.stub.WatchSandboxes(rpc.WatchSandboxesRequest(**filters))
        try:
            watch = Watch(call)
            if "resource_version" not in filters:
                await watch.snapshot()
            yield watch
        finally:
            call.cancel()

    async def nothing_remains(self) -> None:
        """Neither a listing nor the backend has anything of this site's sandboxes, and soon so."""
        assert await self.list() == []
        await eventually(lambda: self._only_others_remain())

    async def _only_others_remain(self) -> bool:
        known = {s.id for s in (await self.stub.ListSandboxes(rpc.ListSandboxesRequest())).sandboxes}
        return not set(await self.house.remains(self.server, self._instance)) - known

    async def clean(self) -> None:
        for task in self._work:
            task.cancel()
        await asyncio.gather(*(self.delete(s.id, allow_missing=True) for s in await self.list()))


class Watch:
    """`seen` is all that it gave after the snapshot, bookmarks left out; `at_snapshot` what the snapshot held."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.at_snapshot: list[pb.Sandbox] = []
        self.seen: list[rpc.WatchSandboxesResponse] = []
        self.resource_version = ""

    async def snapshot(self) -> None:
        while not (event := await self._read()).bookmark.snapshot_end:
            assert event.WhichOneof("event") == "added"
            assert event.resource_version == ""
            self.at_snapshot.append(event.added)

    async def next(self, patience: float = PATIENCE) -> rpc.WatchSandboxesResponse:
        async with asyncio.timeout(patience):
            while True:
                event = await self._read()
                if event.WhichOneof("event") != "bookmark":
                    self.seen.append(event)
                    return event

    async def until(self, kind: str, patience: float = PATIENCE, **status: Any) -> pb.Sandbox:
        """The sandbox of the next event of this kind whose status is so."""
        async with asyncio.timeout(patience):
            while True:
                event = await self.next()
                sandbox: pb.Sandbox = getattr(event, kind)
                if event.WhichOneof("event") == kind and all(
                    getattr(sandbox.status, name) == value for name, value in status.items()
                ):
                    return sandbox

    async def _read(self) -> rpc.WatchSandboxesResponse:
        event: rpc.WatchSandboxesResponse = await self._call.read()
        self.resource_version = event.resource_version or self.resource_version
        return event


async def eventually(check: Callable[[], Awaitable[bool]], patience: float = PATIENCE) -> float:
    """Returns when `check` holds, and after how many seconds; fails when it never does."""
    began = time.monotonic()
    while not await check():
        assert time.monotonic() - began < patience, "it never came about"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def best_of_three(measure: Callable[[], Awaitable[float]], enough: float = 1.0) -> float:
    """The least of up to three measurements, the first below `enough`: other work on the machine is not ours."""
    for _ in range(2):
        if (took := await measure()) < enough:
            return took
    return await measure()
