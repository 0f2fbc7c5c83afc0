"""Faults: every step of a creation and every call of the store fails in turn, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain.errors import BackendError, BackendUnavailable, FailedPrecondition, ResourceExhausted
from opensandboxd_server.domain.model import SandboxState
from opensandboxd_server.drivers.fake import FakeDriver
from opensandboxd_server.store.memory import MemoryStore
from tests.conformance.house import JumpingClock
from tests.conformance.site import eventually
from tests.harness import Server, serving
from tests.refusal import refused

STEPS = ("pull", "create", "start")
ERRORS: list[Exception] = [
    FailedPrecondition("IMAGE_PULL_FAILED", "injected"),
    BackendError("injected"),
    BackendUnavailable("injected"),
    ResourceExhausted("BACKEND_EXHAUSTED", "injected", subject="disk"),
    RuntimeError("injected"),
    TimeoutError("injected"),
]
CHANGES = ("put_request", "put_failure", "drop_failure", "forget", "compare_and_set")


class FaultyStore(MemoryStore):
    """Its `failing`-th change from now fails, before or after it took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.failing = -1
        self.after = False

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        return self._faulty(name, method) if name in CHANGES else method

    def _faulty(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any) -> Any:
            self.calls.append(name)
            fails = len(self.calls) - 1 == self.failing
            if fails and not self.after:
                raise OSError("injected: disk full")
            result = await method(*args)
            if fails:
                raise OSError("injected: it was written, though")
            return result

        return call

    def fail(self, n: int, *, after: bool) -> None:
        self.calls.clear()
        self.failing, self.after = n, after


def body(when: rpc.ReturnWhen.ValueType = rpc.RETURN_WHEN_RUNNING, request_id: str = "r") -> rpc.CreateSandboxRequest:
    spec = pb.SandboxSpec(image=pb.ImageSource(uri="img:1"))
    return rpc.CreateSandboxRequest(spec=spec, request_id=request_id, return_when=when)


async def listed(server: Server) -> list[pb.Sandbox]:
    return list((await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest())).sandboxes)


async def rows(store: MemoryStore) -> set[str]:
    """The ids of the sandboxes that the store has rows about."""
    return (
        {record.id for record in await store.load_records()}
        | {record.sandbox_id for record in await store.load_requests()}
        | {record.observation.id for record in await store.load_failures()}
    )


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", STEPS)
async def test_a_creation_that_fails_at_any_step_leaves_nothing(step: str, error: Exception) -> None:
    store = MemoryStore()
    async with serving(store=store) as server:
        server.driver.inject_error(step, error)

        await refused(server.sandboxes.CreateSandbox(body()))

        assert (await listed(server), server.driver.backend.sandboxes, await rows(store)) == ([], {}, set())
        assert (await server.sandboxes.CreateSandbox(body())).sandbox.status.state == pb.SANDBOX_STATE_RUNNING


@pytest.mark.parametrize("step", STEPS)
async def test_a_caller_who_gives_up_at_any_step_leaves_nothing(step: str) -> None:
    store = MemoryStore()
    async with serving(store=store) as server:
        gate = server.driver.hold(step)
        with pytest.raises(grpc.aio.AioRpcError):
            await server.sandboxes.CreateSandbox(body(), timeout=0.1)
        await settled(server)

        assert (server.driver.backend.sandboxes, await rows(store)) == ({}, set())
        gate.set()
        assert (await server.sandboxes.CreateSandbox(body())).sandbox.id


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("when", [rpc.RETURN_WHEN_RUNNING, rpc.RETURN_WHEN_ACCEPTED], ids=["running", "accepted"])
@pytest.mark.parametrize("driver_fails", [False, True], ids=["driver-works", "driver-fails"])
async def test_a_creation_during_which_the_store_fails_leaves_nothing(
    when: rpc.ReturnWhen.ValueType, driver_fails: bool, after: bool
) -> None:
    for n in range(await calls_of_creation(when, driver_fails)):
        store, driver = FaultyStore(), FakeDriver()
        async with serving(driver, store) as server:
            store.fail(n, after=after)
            if driver_fails:
                driver.inject_error("start", BackendError("injected"))
            reply = await asyncio.gather(server.sandboxes.CreateSandbox(body(when)), return_exceptions=True)
            await settled(server)

            found = await listed(server)
            alive = [s.id for s in found if s.status.state == pb.SANDBOX_STATE_RUNNING]
            failed = [s.id for s in found if s.status.state == pb.SANDBOX_STATE_FAILED]
            assert alive == [*driver.backend.sandboxes]
            assert len(alive) + len(failed) == len(found)
            assert not failed or when == rpc.RETURN_WHEN_ACCEPTED
            if not isinstance(reply[0], BaseException):
                assert [s.id for s in found] == [reply[0].sandbox.id]
        await whole_after_a_restart(driver, store)


async def calls_of_creation(when: rpc.ReturnWhen.ValueType, driver_fails: bool) -> int:
    store = FaultyStore()
    async with serving(store=store) as server:
        store.fail(-1, after=False)
        if driver_fails:
            server.driver.inject_error("start", BackendError("injected"))
        await asyncio.gather(server.sandboxes.CreateSandbox(body(when)), return_exceptions=True)
        await settled(server)
        calls = len(store.calls)
    assert calls >= 1
    return calls


async def test_a_failed_creation_tells_its_own_error_also_when_the_store_fails() -> None:
    store = FaultyStore()
    async with serving(store=store) as server:
        server.driver.inject_error("pull", FailedPrecondition("IMAGE_PULL_FAILED", "injected"))
        store.fail(1, after=False)

        refusal = await refused(server.sandboxes.CreateSandbox(body()))

        assert store.calls == ["put_request", "forget"]
        assert refusal.reason == "IMAGE_PULL_FAILED"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_deletion_succeeds_also_when_its_rows_cannot_be_dropped(after: bool) -> None:
    store, driver = FaultyStore(), FakeDriver()
    async with serving(driver, store) as server:
        id = (await server.sandboxes.CreateSandbox(body())).sandbox.id
        store.fail(0, after=after)

        await server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=id))

        assert (await listed(server), driver.backend.sandboxes) == ([], {})
        assert (await server.sandboxes.CreateSandbox(body())).sandbox.id != id
    await whole_after_a_restart(driver, store)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_an_update_during_which_the_store_fails_is_an_error_and_may_be_retried(after: bool) -> None:
    store, driver = FaultyStore(), FakeDriver()
    async with serving(driver, store) as server:
        id = (await server.sandboxes.CreateSandbox(body())).sandbox.id
        store.fail(0, after=after)
        update = rpc.UpdateSandboxRequest(id=id, metadata={"a": "1"})

        refusal = await refused(server.sandboxes.UpdateSandbox(update))
        retried = await server.sandboxes.UpdateSandbox(update)

        assert refusal.code is grpc.StatusCode.INTERNAL
        assert retried.sandbox.metadata == {"a": "1"}
    await whole_after_a_restart(driver, store)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_sandbox_expires_in_the_end_also_when_the_store_fails(after: bool) -> None:
    store, driver, clock = FaultyStore(), FakeDriver(), JumpingClock()
    async with serving(driver, store, clock) as server:
        request = body()
        request.ttl.seconds = 60
        await server.sandboxes.CreateSandbox(request)
        store.fail(0, after=after)
        clock.jump_to(clock.now() + timedelta(seconds=60))

        await eventually(lambda: is_empty(server))
        assert driver.backend.sandboxes == {}
        assert store.calls[0] == "compare_and_set"


async def test_a_listing_from_before_a_creation_finished_does_not_sweep_its_sandbox() -> None:
    """The event stream of an engine is behind: a listing that saw the container made but not started comes late."""

    class SlowStore(MemoryStore):
        gate: asyncio.Event | None = None

        async def forget(self, ids: list[str]) -> None:
            if self.gate:
                await self.gate.wait()
            await super().forget(ids)

    store = SlowStore()
    async with serving(store=store) as server:
        driver = server.driver
        other = (await server.sandboxes.CreateSandbox(body(request_id=""))).sandbox.id
        start = driver.hold("start")
        creation = server.sandboxes.CreateSandbox(body(request_id=""))

        async def is_made() -> bool:
            return len(driver.backend.sandboxes) == 2

        await eventually(is_made)
        store.gate = asyncio.Event()
        driver.vanish(other)  # what the feed is busy with
        driver.recover()  # lists the creation as PENDING
        start.set()
        id = (await creation).sandbox.id
        store.gate.set()
        await asyncio.sleep(0.1)

        assert [*driver.backend.sandboxes] == [id]
        assert [s.id for s in await listed(server)] == [id]


async def test_what_an_interrupted_creation_left_is_swept_at_the_start_and_after_a_gap() -> None:
    driver = FakeDriver()
    async with serving(driver) as server:
        id = (await server.sandboxes.CreateSandbox(body())).sandbox.id
        [observation] = driver.backend.sandboxes.values()
    left_over = FakeDriver(driver.backend)
    for name in ("sbx-00000000000000000001", "sbx-00000000000000000002"):
        driver.backend.sandboxes[name] = replace(observation, id=name, state=SandboxState.PENDING)
    async with serving(left_over) as server:
        await eventually(has(driver, id))
        name = "sbx-00000000000000000003"
        driver.backend.sandboxes[name] = replace(observation, id=name, state=SandboxState.PENDING)
        left_over.lose()
        left_over.recover()
        await eventually(has(driver, id))
        assert [s.id for s in await listed(server)] == [id]


async def whole_after_a_restart(driver: FakeDriver, store: FaultyStore) -> None:
    """A new server over what is left: what it lists is what the backend has, and every row is of something listed."""
    store.fail(-1, after=False)
    async with serving(FakeDriver(driver.backend), store) as server:
        found = await listed(server)
        running = {s.id for s in found if s.status.state != pb.SANDBOX_STATE_FAILED}
        assert running == set(driver.backend.sandboxes)
        assert await rows(store) <= {s.id for s in found}


async def settled(server: Server) -> None:
    """Returns when nothing is PENDING, and what goes on behind replies has been done."""

    async def nothing_is_pending() -> bool:
        return all(s.status.state != pb.SANDBOX_STATE_PENDING for s in await listed(server))

    await eventually(nothing_is_pending)
    await asyncio.sleep(0.02)


async def is_empty(server: Server) -> bool:
    return await listed(server) == []


def has(driver: FakeDriver, *ids: str) -> Callable[[], Awaitable[bool]]:
    """Whether these sandboxes, and no others, are on the backend."""

    async def check() -> bool:
        return [*driver.backend.sandboxes] == [*ids]

    return check
