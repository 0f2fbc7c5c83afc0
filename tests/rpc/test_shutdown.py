"""Shutdown: streams end with UNAVAILABLE, creations finish or are rolled back, sandboxes keep running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.drivers.fake import FakeDriver
from opensandboxd_server.store.memory import MemoryStore
from opensandboxd_server.store.sqlite import SqliteStore
from tests.harness import Server, serving
from tests.refusal import drained, refused

CREATE = rpc.CreateSandboxRequest(spec=pb.SandboxSpec(image=pb.ImageSource(uri="img:1")))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(server={"graceful_shutdown_seconds": 2}) as server:
        yield server


async def begun(server: Server, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while True:
            request = rpc.ListSandboxesRequest(states=[pb.SANDBOX_STATE_PENDING])
            if len((await server.sandboxes.ListSandboxes(request)).sandboxes) == count:
                return
            await asyncio.sleep(0.01)


async def test_long_calls_end_with_unavailable_and_sandboxes_keep_running(server: Server) -> None:
    id = (await server.sandboxes.CreateSandbox(CREATE)).sandbox.id
    calls = [
        drained(server.sandboxes.WatchSandboxes(rpc.WatchSandboxesRequest())),
        drained(server.sandboxes.StreamLogs(rpc.StreamLogsRequest(id=id, follow=True))),
        server.sandboxes.WaitSandbox(rpc.WaitSandboxRequest(id=id, states=[pb.SANDBOX_STATE_PAUSED])),
    ]
    waiting = [asyncio.create_task(refused(call)) for call in calls]
    await asyncio.sleep(0.05)

    began = time.monotonic()
    await server.app.stop()

    assert time.monotonic() - began < 1, "long calls were waited for"
    for refusal in await asyncio.gather(*waiting):
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert "RetryInfo" in refusal.details
    assert [*server.driver.backend.sandboxes] == [id]


async def test_a_creation_that_finishes_in_time_is_answered(server: Server) -> None:
    gate = server.driver.hold("start")
    creation = server.sandboxes.CreateSandbox(CREATE)
    await begun(server)

    stopping = asyncio.create_task(server.app.stop())
    await asyncio.sleep(0.2)
    gate.set()

    sandbox = (await creation).sandbox
    await stopping
    assert sandbox.status.state == pb.SANDBOX_STATE_RUNNING
    assert [*server.driver.backend.sandboxes] == [sandbox.id]


async def test_a_creation_that_does_not_finish_in_time_is_rolled_back() -> None:
    store = MemoryStore()
    async with serving(store=store, server={"graceful_shutdown_seconds": 1}) as server:
        server.driver.hold("start")
        request = rpc.CreateSandboxRequest(request_id="r")
        request.MergeFrom(CREATE)
        creation = asyncio.create_task(refused(server.sandboxes.CreateSandbox(request)))
        await begun(server)

        began = time.monotonic()
        await server.app.stop()

        assert time.monotonic() - began < 2
        refusal = await creation
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert server.driver.backend.sandboxes == {}
        assert (await store.load_records(), await store.load_requests(), await store.load_failures()) == ([], [], [])


async def test_an_accepted_creation_that_shutdown_interrupts_is_told_after_the_restart(tmp_path: Path) -> None:
    driver = FakeDriver()
    path = tmp_path / "store.db"
    async with serving(driver, SqliteStore(path), server={"graceful_shutdown_seconds": 0}) as server:
        driver.hold("start")
        request = rpc.CreateSandboxRequest(return_when=rpc.RETURN_WHEN_ACCEPTED)
        request.MergeFrom(CREATE)
        accepted = (await server.sandboxes.CreateSandbox(request)).sandbox
    assert driver.backend.sandboxes == {}

    async with serving(FakeDriver(driver.backend), SqliteStore(path)) as server:
        found = (await server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id=accepted.id))).sandbox
    assert (found.status.state, found.status.reason) == (pb.SANDBOX_STATE_FAILED, "CREATE_INTERRUPTED")


async def test_new_calls_during_shutdown_are_unavailable(server: Server) -> None:
    gate = server.driver.hold("start")
    creation = server.sandboxes.CreateSandbox(CREATE)
    await begun(server)
    stopping = asyncio.create_task(server.app.stop())
    await asyncio.sleep(0.3)

    for call in (
        server.sandboxes.CreateSandbox(CREATE),
        server.sandboxes.WaitSandbox(rpc.WaitSandboxRequest(id="x")),
        server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest()),
    ):
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
    gate.set()
    await creation
    await stopping


async def test_a_verb_at_work_is_finished(server: Server) -> None:
    id = (await server.sandboxes.CreateSandbox(CREATE)).sandbox.id
    gate = server.driver.hold("delete")
    deletion = server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=id))
    await asyncio.sleep(0.05)

    stopping = asyncio.create_task(server.app.stop())
    await asyncio.sleep(0.05)
    gate.set()

    await deletion
    await stopping
    assert server.driver.backend.sandboxes == {}


async def test_stop_is_idempotent(server: Server) -> None:
    await asyncio.gather(server.app.stop(), server.app.stop())
    await server.app.stop()
