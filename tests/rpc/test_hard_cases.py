"""What goes wrong at the worst moment: each test is named after the promise that must hold all the same."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain.errors import BackendUnavailable, StartupError
from opensandboxd_server.domain.model import SandboxState
from opensandboxd_server.domain.ports import Gone, SandboxRecord, Seen
from opensandboxd_server.drivers.fake import FakeDriver
from opensandboxd_server.store.memory import MemoryStore
from opensandboxd_server.store.sqlite import SqliteStore
from tests.harness import Server, serving


def create(**fields: object) -> rpc.CreateSandboxRequest:
    return rpc.CreateSandboxRequest(spec=pb.SandboxSpec(image=pb.ImageSource(uri="x")), **fields)  # type: ignore[arg-type]


async def made(server: Server, **fields: object) -> str:
    return str((await server.sandboxes.CreateSandbox(create(**fields))).sandbox.id)


async def state_of(server: Server, id: str) -> pb.SandboxState.ValueType:
    found = await server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id=id))
    state: pb.SandboxState.ValueType = found.sandbox.status.state
    return state


class LostReply(FakeDriver):
    """Removes, and loses the reply."""

    async def delete(self, id: str) -> bool:
        await super().delete(id)
        await asyncio.sleep(0.05)
        raise BackendUnavailable("the reply was lost")


class FullDisk(MemoryStore):
    async def compare_and_set(self, record: SandboxRecord, expected_revision: int) -> bool:
        raise BackendUnavailable("disk full", reason="STORE_UNAVAILABLE")


class JumpingClock:
    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def test_a_removal_whose_reply_is_lost_leaves_no_ghost() -> None:
    async with serving(LostReply()) as server:
        id = await made(server)
        await server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=id))
        with pytest.raises(grpc.aio.AioRpcError, match="there is no sandbox"):
            await state_of(server, id)


async def test_a_sandbox_removed_while_it_is_being_created_leaves_no_ghost() -> None:
    async with serving() as server:
        gate = server.driver.hold("start")
        creation = server.sandboxes.CreateSandbox(create())
        while not server.driver.backend.sandboxes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (id,) = server.driver.backend.sandboxes
        server.driver._tell(Gone(id))
        await asyncio.sleep(0.05)
        gate.set()
        await creation
        listed = await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest())
        assert list(listed.sandboxes) == []


async def test_what_was_seen_before_a_verb_ended_does_not_undo_the_verb() -> None:
    async with serving() as server:
        id = await made(server)
        began = time.monotonic()
        await server.sandboxes.PauseSandbox(rpc.PauseSandboxRequest(id=id))
        stale = replace(server.driver.backend.sandboxes[id], state=SandboxState.RUNNING)
        server.driver._tell(Seen(stale, began))
        await asyncio.sleep(0.05)
        assert await state_of(server, id) == pb.SANDBOX_STATE_PAUSED


async def test_the_last_time_there_is_can_be_read_back(tmp_path: Path) -> None:
    driver, path = FakeDriver(), tmp_path / "store.db"
    renewal = rpc.RenewSandboxRequest()
    renewal.expire_time.FromDatetime(datetime.max)
    async with serving(driver, SqliteStore(path)) as server:
        renewal.id = await made(server)
        await server.sandboxes.RenewSandbox(renewal)
    async with serving(FakeDriver(driver.backend), SqliteStore(path)) as server:
        found = (await server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id=renewal.id))).sandbox
        assert found.expire_time.ToDatetime() == datetime.max


async def test_two_servers_do_not_share_a_store(tmp_path: Path) -> None:
    async with serving(store=SqliteStore(tmp_path / "store.db")):
        with pytest.raises(StartupError, match="another opensandboxd uses the store"):
            async with serving(store=SqliteStore(tmp_path / "store.db")):
                pass


async def test_expiry_does_not_wait_for_a_store_that_fails() -> None:
    clock = JumpingClock()
    async with serving(store=FullDisk(), clock=clock) as server:
        request = create()
        request.ttl.FromSeconds(60)
        id = (await server.sandboxes.CreateSandbox(request)).sandbox.id
        clock.ahead = timedelta(seconds=61)
        result = await server.sandboxes.WaitSandbox(
            rpc.WaitSandboxRequest(id=id, states=[pb.SANDBOX_STATE_TERMINATED]), timeout=5
        )
        assert (result.reached, result.sandbox.status.reason) == (True, "EXPIRED")


async def test_an_expired_sandbox_is_not_renewed_while_it_waits_for_its_removal() -> None:
    clock = JumpingClock()
    async with serving(clock=clock) as server:
        gate = server.driver.hold("delete")
        request = create()
        request.ttl.FromSeconds(60)
        ids = [(await server.sandboxes.CreateSandbox(request)).sandbox.id for _ in range(40)]
        clock.ahead = timedelta(seconds=61)
        await asyncio.sleep(0.6)
        states = [await state_of(server, id) for id in ids]
        assert set(states) == {pb.SANDBOX_STATE_STOPPING}
        renewal = rpc.RenewSandboxRequest(id=ids[-1])
        renewal.ttl.FromSeconds(600)
        with pytest.raises(grpc.aio.AioRpcError, match="has struck"):
            await server.sandboxes.RenewSandbox(renewal)
        gate.set()


async def test_a_page_of_large_sandboxes_fits_in_a_message() -> None:
    env = {f"V{i}": "🦊" * 7 for i in range(1000)}
    async with serving() as server:
        request = create()
        request.spec.env.update(env)
        for _ in range(120):
            await server.sandboxes.CreateSandbox(request)
        listed, token = 0, ""
        while True:
            page = await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest(page_token=token, page_size=1000))
            listed, token = listed + len(page.sandboxes), page.next_page_token
            if not token:
                break
        assert listed == 120


async def test_failed_creations_do_not_count_towards_the_limit_and_outlive_their_ttl() -> None:
    clock = JumpingClock()
    async with serving(server={"max_sandboxes": 1}, clock=clock) as server:
        server.driver.inject_error("pull", BackendUnavailable("no"))
        request = create(return_when=rpc.RETURN_WHEN_ACCEPTED)
        request.ttl.FromSeconds(60)
        failed = (await server.sandboxes.CreateSandbox(request)).sandbox.id
        await server.sandboxes.WaitSandbox(rpc.WaitSandboxRequest(id=failed))
        await made(server)
        clock.ahead = timedelta(seconds=120)
        await asyncio.sleep(0.6)
        assert await state_of(server, failed) == pb.SANDBOX_STATE_FAILED


async def test_an_accepted_creation_is_given_the_grace_of_a_shutdown() -> None:
    driver = FakeDriver()
    async with serving(driver) as server:
        gate = driver.hold("start")
        await server.sandboxes.CreateSandbox(create(return_when=rpc.RETURN_WHEN_ACCEPTED))
        stopping = asyncio.create_task(server.app.stop())
        await asyncio.sleep(0.3)
        gate.set()
        await stopping
    assert [sandbox.state for sandbox in driver.backend.sandboxes.values()] == [SandboxState.RUNNING]


async def test_a_watch_of_the_health_does_not_hold_up_the_end(tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with serving() as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        serving_now = await watch.read()
        began = time.monotonic()
        await server.app.stop()
        assert time.monotonic() - began < 10, "the grace is 30 s"
        told = await watch.read()
        assert (serving_now.status, told.status) == (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )


async def test_a_stale_etag_deletes_nothing_though_the_change_came_while_it_waited() -> None:
    async with serving() as server:
        id = await made(server)
        etag = (await server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id=id))).sandbox.etag
        gate = server.driver.hold("pause")
        pausing = server.sandboxes.PauseSandbox(rpc.PauseSandboxRequest(id=id))
        await asyncio.sleep(0.05)
        deletion = server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=id, etag=etag))
        await asyncio.sleep(0.05)
        await server.sandboxes.UpdateSandbox(rpc.UpdateSandboxRequest(id=id, metadata={"a": "b"}))
        gate.set()
        await pausing
        assert await deletion.code() is grpc.StatusCode.ABORTED
        assert await state_of(server, id) == pb.SANDBOX_STATE_PAUSED
