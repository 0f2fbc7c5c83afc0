"""grpc.health.v1: NOT_SERVING while the backend is unreachable and during shutdown; reads go on being answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.ports import DriverEvent
from opensandboxd_server.drivers.fake import FakeDriver
from tests.harness import Server, serving
from tests.refusal import refused

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", "opensandboxd.v1.SandboxService", "opensandboxd.v1.RuntimeService")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


def stub(server: Server) -> Any:
    return health_pb2_grpc.HealthStub(server.channel)


async def check(server: Server, service: str) -> int:
    return int((await stub(server).Check(health_pb2.HealthCheckRequest(service=service))).status)


async def becomes(watch: Any, status: int) -> None:
    async with asyncio.timeout(5):
        while (await watch.read()).status != status:
            pass


@pytest.mark.parametrize("service", SERVICES)
async def test_a_server_with_its_backend_is_serving(server: Server, service: str) -> None:
    assert await check(server, service) == SERVING


async def test_the_health_of_an_unknown_service_is_not_found(server: Server) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(server, "no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", SERVICES)
async def test_health_follows_the_backend(server: Server, service: str) -> None:
    watch = stub(server).Watch(health_pb2.HealthCheckRequest(service=service))
    await becomes(watch, SERVING)

    for _ in range(2):
        server.driver.lose()
        await becomes(watch, NOT_SERVING)
        assert await check(server, service) == NOT_SERVING
        server.driver.recover()
        await becomes(watch, SERVING)
        assert await check(server, service) == SERVING
    watch.cancel()


@pytest.mark.parametrize("service", SERVICES)
async def test_health_watches_hear_of_shutdown(server: Server, service: str) -> None:
    watch = stub(server).Watch(health_pb2.HealthCheckRequest(service=service))
    await becomes(watch, SERVING)
    stopping = asyncio.create_task(server.app.stop())

    await becomes(watch, NOT_SERVING)
    watch.cancel()
    await stopping


async def test_while_the_backend_is_away_reads_are_answered_and_changes_are_unavailable(server: Server) -> None:
    request = rpc.CreateSandboxRequest(spec=pb.SandboxSpec(image=pb.ImageSource(uri="img:1")))
    sandbox = (await server.sandboxes.CreateSandbox(request)).sandbox
    watch = stub(server).Watch(health_pb2.HealthCheckRequest())
    server.driver.lose()
    await becomes(watch, NOT_SERVING)

    assert (await server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id=sandbox.id))).sandbox == sandbox
    assert list((await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest())).sandboxes) == [sandbox]
    for call in (
        server.sandboxes.CreateSandbox(request),
        server.sandboxes.PauseSandbox(rpc.PauseSandboxRequest(id=sandbox.id)),
        server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=sandbox.id)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")
        assert "RetryInfo" in refusal.details
    assert list((await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest())).sandboxes) == [sandbox]

    server.driver.recover()
    await becomes(watch, SERVING)
    await server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=sandbox.id))
    watch.cancel()


async def test_what_happened_while_the_backend_was_away_is_found_when_it_is_back(server: Server) -> None:
    request = rpc.CreateSandboxRequest(spec=pb.SandboxSpec(image=pb.ImageSource(uri="img:1")))
    gone, exited, stays = [(await server.sandboxes.CreateSandbox(request)).sandbox for _ in range(3)]
    watch = server.sandboxes.WatchSandboxes(rpc.WatchSandboxesRequest())
    while not (await watch.read()).bookmark.snapshot_end:
        pass
    server.driver.lose()
    server.driver.vanish(gone.id)
    server.driver.exit(exited.id, 3)
    server.driver.recover()

    seen = {}
    async with asyncio.timeout(5):
        for _ in range(2):
            event = await watch.read()
            kind = event.WhichOneof("event")
            seen[getattr(event, kind).id] = (kind, getattr(event, kind).status.reason)
    watch.cancel()
    assert seen == {gone.id: ("removed", "REMOVED_EXTERNALLY"), exited.id: ("updated", "ENTRYPOINT_EXITED")}
    assert {s.id for s in (await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest())).sandboxes} == {
        exited.id,
        stays.id,
    }


async def test_a_driver_whose_events_break_is_not_serving() -> None:
    class Broken(FakeDriver):
        async def events(self) -> AsyncIterator[DriverEvent]:
            yield self._listing()
            await self.hold("events").wait()
            raise RuntimeError("injected")

    driver = Broken()
    async with serving(driver) as server:
        watch = stub(server).Watch(health_pb2.HealthCheckRequest())
        await becomes(watch, SERVING)
        driver._gates["events"].set()
        await becomes(watch, NOT_SERVING)
        watch.cancel()


async def test_a_backend_that_is_away_at_the_start_is_a_failed_start() -> None:
    driver = FakeDriver()
    driver.inject_error("start_driver", StartupError("no engine answers"))
    with pytest.raises(StartupError, match="no engine answers"):
        async with serving(driver):
            pass
