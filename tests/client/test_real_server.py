"""Both clients against the real server over the fake driver: what the scripted one cannot prove."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

import opensandboxd
from opensandboxd import AsyncClient, Client, SandboxState
from opensandboxd_server.app import App
from opensandboxd_server.domain.errors import BackendUnavailable
from opensandboxd_server.drivers.fake import FakeDriver
from opensandboxd_server.store.memory import MemoryStore
from tests.harness import Server, serving, settings

KEY = "k3y"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(server={"api_key": KEY}) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, api_key=KEY) as client:
        yield client


async def test_a_sandbox_is_created_used_and_deleted(client: AsyncClient) -> None:
    async with client.sandbox("debian", ttl=60, ports=[8000], metadata={"a": "1"}) as sbx:
        assert sbx.info.status.state == SandboxState.SANDBOX_STATE_RUNNING
        assert (await sbx.pause()).status.state == SandboxState.SANDBOX_STATE_PAUSED
        assert (await sbx.resume()).status.state == SandboxState.SANDBOX_STATE_RUNNING
        before = sbx.info.expire_time.seconds
        assert (await sbx.renew(600)).expire_time.seconds > before
        assert dict((await sbx.update_metadata({"a": None, "b/c": "2"})).metadata) == {"b/c": "2"}
        assert dict((await sbx.update_metadata({"d": "3"}, replace=True)).metadata) == {"d": "3"}
        assert (await sbx.endpoint(8000)).port == 48000
        assert [chunk.data async for chunk in sbx.logs()] == [b"started\n"]
        assert [found.id async for found in client.list(metadata={"d": "3"})] == [sbx.id]
    with pytest.raises(opensandboxd.NotFoundError) as raised:
        await client.get(sbx.id)
    assert raised.value.reason == "SANDBOX_NOT_FOUND"
    assert raised.value.resource == opensandboxd.Resource("opensandboxd.v1.Sandbox", sbx.id)
    assert raised.value.request_id


async def test_the_synchronous_client_does_the_same(server: Server) -> None:
    def use() -> None:
        with Client(server.address, api_key=KEY) as client, client.sandbox("debian", ttl=60) as sbx:
            assert sbx.pause().status.state == SandboxState.SANDBOX_STATE_PAUSED
            assert [found.id for found in client.list()] == [sbx.id]
            assert client.runtime_info().driver == "fake"
            assert client.health()
            assert client.secure_runtimes()[0].type == ""

    await asyncio.to_thread(use)


async def test_a_stale_etag_is_aborted(client: AsyncClient) -> None:
    created = await client.create("debian")
    await client.update(created.id, {"a": "1"}, etag=created.etag)
    with pytest.raises(opensandboxd.AbortedError):
        await client.update(created.id, {"a": "2"}, etag=created.etag)


async def test_a_request_id_makes_create_idempotent(client: AsyncClient) -> None:
    first = await client.create("debian", request_id="r-1")
    assert (await client.create("debian", request_id="r-1")).id == first.id
    with pytest.raises(opensandboxd.AlreadyExistsError):
        await client.create("other", request_id="r-1")


async def test_a_create_survives_a_backend_that_is_away_for_a_moment(server: Server, client: AsyncClient) -> None:
    server.driver.inject_error("create", BackendUnavailable("blinked"))
    created = await client.create("debian")
    assert [found.id async for found in client.list()] == [created.id]


async def test_a_backend_that_stays_away_is_unavailable_and_says_when_to_try(
    server: Server, client: AsyncClient
) -> None:
    for _ in range(4):
        server.driver.inject_error("create", BackendUnavailable("away", retry_after=7))
    with pytest.raises(opensandboxd.UnavailableError) as raised:
        await client.create("debian")
    assert (raised.value.reason, raised.value.retry_after) == ("BACKEND_UNAVAILABLE", 7)
    assert raised.value.message == "away"


async def test_refused_fields_are_named(client: AsyncClient) -> None:
    with pytest.raises(opensandboxd.InvalidArgumentError) as raised:
        await client.create("debian", cpu="lots", env={"1": "x"})
    assert {"spec.resources.cpu", "spec.env"} <= {
        violation.path.partition("[")[0] for violation in raised.value.field_violations
    }


async def test_wait_follows_a_sandbox_to_its_state(server: Server, client: AsyncClient) -> None:
    gate = server.driver.hold("create")
    accepted = await client.create("debian", wait=False)
    with pytest.raises(opensandboxd.NotReachedError):
        await client.wait(accepted.id, timeout=0.1)
    waiting = asyncio.create_task(client.wait(accepted.id))
    await asyncio.sleep(0.1)
    gate.set()
    assert (await waiting).status.state == SandboxState.SANDBOX_STATE_RUNNING


async def test_a_watch_outlives_a_restart_of_the_server() -> None:
    driver, store = FakeDriver(), MemoryStore()
    app = await App.start(settings(), driver=driver, store=store, address="127.0.0.1:0")
    address = f"127.0.0.1:{app.port}"
    async with AsyncClient(address) as client:
        stays, goes = await client.create("debian"), await client.create("debian")
        async with aclosing(client.watch()) as events:
            told = [await anext(events) for _ in range(3)]
            assert [event.WhichOneof("event") for event in told] == ["added", "added", "bookmark"]
            await app.stop()
            driver.vanish(goes.id)
            app = await App.start(settings(), driver=FakeDriver(driver.backend), store=store, address=address)
            try:
                assert (await asyncio.wait_for(anext(events), 10)).removed.id == goes.id
                await client.pause(stays.id)
                async for event in events:
                    if event.updated.status.state == SandboxState.SANDBOX_STATE_PAUSED:
                        assert event.updated.id == stays.id
                        break
            finally:
                await app.stop()
