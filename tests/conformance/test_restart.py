"""State: "Restart at any moment loses nothing", and what happens behind the server's back is seen."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.store.sqlite import SqliteStore
from tests.conformance.conftest import Opener
from tests.conformance.house import FAILED, PAUSED, RUNNING, TERMINATED, House, JumpingClock, Work
from tests.conformance.site import Site, best_of_three, eventually
from tests.refusal import drained, refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECOND = 1.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def test_a_new_server_finds_everything_as_it_was(opened: Opener, path: Path) -> None:
    async with opened(store=SqliteStore(path), keep=True) as site:
        plain = await site.create(
            metadata={"a": "1"}, ttl=Duration(seconds=600), spec={"env": {"A": "b c"}, "ports": [8080]}
        )
        patched = await site.create()
        patched = await site.update(patched.id, metadata={"b": "2"})
        renewed = await site.create(ttl=Duration(seconds=60))
        renewed = await site.renew(renewed.id, ttl=Duration(seconds=900))
        paused = await site.create()
        paused = await site.pause(paused.id)
        exited = await site.create(Work(exit=3))
        exited = await site.ended(exited.id)
        failed = await site.accept(entrypoint=["/no/such/program"])
        failed = (await site.wait(failed.id)).sandbox
        before = await site.list()

    async with opened(store=SqliteStore(path)) as site:
        after = await site.list()

    def facts(sandbox: object) -> str:
        """All but when the state changed: the engine does not remember that of a pause."""
        copy = type(sandbox)()
        copy.CopyFrom(sandbox)  # type: ignore[attr-defined]
        copy.status.ClearField("last_transition_time")  # type: ignore[attr-defined]
        return str(copy)

    assert [s.id for s in before] == [s.id for s in after]
    assert [facts(s) for s in after] == [facts(s) for s in before]
    assert {s.id for s in after} == {plain.id, patched.id, renewed.id, paused.id, exited.id, failed.id}


async def test_a_request_id_is_remembered_across_a_restart(opened: Opener, path: Path) -> None:
    async with opened(store=SqliteStore(path), keep=True) as site:
        first = await site.create(request_id="across")
        await site.accept(request_id="failed", entrypoint=["/no/such/program"])
        gone = await site.create(request_id="gone")
        await site.delete(gone.id)

    async with opened(store=SqliteStore(path)) as site:
        assert (await site.create(request_id="across")).id == first.id
        assert (await refused(site.create(request_id="across", image="another/image:1"))).reason == "REQUEST_ID_REUSED"
        again = await site.accept(request_id="failed", entrypoint=["/no/such/program"])
        assert again.status.state == FAILED
        assert (await site.create(request_id="gone")).id != gone.id


async def test_an_expiry_that_struck_while_no_server_ran_is_enforced_at_the_start(
    opened: Opener, path: Path, clock: JumpingClock
) -> None:
    async with opened(store=SqliteStore(path), keep=True) as site:
        sandbox = await site.create(ttl=Duration(seconds=60))
        kept = await site.create(ttl=Duration(seconds=60))
        kept = await site.renew(kept.id, ttl=Duration(seconds=3600))
    clock.jump_to(sandbox.expire_time.ToDatetime(UTC))

    async with opened(store=SqliteStore(path), clock=clock) as site:
        await eventually(lambda: only(site, kept.id))


async def test_what_was_removed_while_no_server_ran_is_forgotten(opened: Opener, path: Path, house: House) -> None:
    async with opened(store=SqliteStore(path), keep=True) as site:
        removed = await site.create(request_id="r")
        await site.update(removed.id, metadata={"a": "1"})
        await house.remove(site.server, removed.id)

    async with opened(store=SqliteStore(path), keep=True) as site:
        assert await site.list() == []
        created = await site.create(request_id="r")
        assert created.id != removed.id
        await site.delete(created.id)
    store = SqliteStore(path)
    await store.open()
    assert (await store.load_records(), await store.load_requests(), await store.load_failures()) == ([], [], [])
    await store.close()


async def test_a_restarted_server_goes_on_with_every_verb(opened: Opener, path: Path) -> None:
    async with opened(store=SqliteStore(path), keep=True) as site:
        sandbox = await site.create()
        sandbox = await site.update(sandbox.id, metadata={"a": "1"})
        await site.pause(sandbox.id)

    async with opened(store=SqliteStore(path)) as site:
        assert (await site.resume(sandbox.id)).status.state == RUNNING
        assert (await site.pause(sandbox.id)).status.state == PAUSED
        updated = await site.update(sandbox.id, metadata={"b": "2"}, etag=sandbox.etag)
        assert updated.metadata == {**site.mine, "a": "1", "b": "2"}
        await site.delete(sandbox.id)
        await site.nothing_remains()


async def test_a_resource_version_of_before_the_restart_is_expired(opened: Opener, path: Path) -> None:
    async with opened(store=SqliteStore(path)) as site, site.watch() as watch:
        version = watch.resource_version
    async with opened(store=SqliteStore(path)) as site, site.watch(resource_version=version) as watch:
        assert (await refused(watch.next())).reason == "RESOURCE_VERSION_EXPIRED"


# Behind the server's back


async def test_a_kill_behind_the_servers_back_is_seen_within_a_second(site: Site, house: House) -> None:
    async def seconds_until_seen() -> float:
        sandbox = await site.create()
        async with site.watch() as watch:
            await house.kill(site.server, sandbox.id)
            done = time.monotonic()
            ended = await watch.until("updated", state=FAILED)
            took = time.monotonic() - done
        assert (ended.status.reason, ended.status.exit_code) == ("KILLED", 137)
        assert await site.get(sandbox.id) == ended
        return took

    assert await best_of_three(seconds_until_seen) < SECOND


async def test_a_removal_behind_the_servers_back_is_seen_within_a_second(site: Site, house: House) -> None:
    async def seconds_until_seen() -> float:
        sandbox = await site.create(request_id=f"removed-{site.label}")
        async with site.watch() as watch:
            await house.remove(site.server, sandbox.id)
            done = time.monotonic()
            removed = await watch.until("removed")
            took = time.monotonic() - done
        assert (removed.status.state, removed.status.reason) == (TERMINATED, "REMOVED_EXTERNALLY")
        assert (await refused(site.get(sandbox.id))).reason == "SANDBOX_NOT_FOUND"
        return took

    assert await best_of_three(seconds_until_seen) < SECOND
    assert (await site.create(request_id=f"removed-{site.label}")).status.state == RUNNING


async def test_a_removal_behind_the_servers_back_ends_waits_and_logs(site: Site, house: House) -> None:
    sandbox = await site.create()
    waiting = asyncio.ensure_future(site.wait(sandbox.id, PAUSED))
    following = asyncio.ensure_future(
        drained(site.stub.StreamLogs(rpc.StreamLogsRequest(id=sandbox.id, follow=True), timeout=5))
    )
    await asyncio.sleep(0.1)

    await house.remove(site.server, sandbox.id)

    reply = await waiting
    assert (reply.reached, reply.sandbox.status.reason) == (False, "REMOVED_EXTERNALLY")
    await following


async def test_servers_of_different_instances_never_see_each_others_sandboxes(opened: Opener) -> None:
    async with opened(instance="one") as one, opened(instance="other") as other, other.watch() as watch:
        mine = await one.create()
        await asyncio.sleep(0.2)

        assert await other.list() == []
        assert (await refused(other.get(mine.id))).reason == "SANDBOX_NOT_FOUND"
        assert (await refused(other.delete(mine.id))).reason == "SANDBOX_NOT_FOUND"
        await other.delete(mine.id, allow_missing=True)
        theirs = await other.create()
        assert (await watch.until("added")).id == theirs.id
        assert [s.id for s in await one.list()] == [mine.id]
        assert await one.state(mine.id) == RUNNING


async def test_a_new_server_sweeps_nothing_of_another_instance(opened: Opener) -> None:
    async with opened(instance="one") as one:
        mine = await one.create()
        async with opened(instance="other") as other:
            assert await other.list() == []
            await asyncio.sleep(0.3)
        assert await one.state(mine.id) == RUNNING


async def only(site: Site, id: str) -> bool:
    return [s.id for s in await site.list()] == [id]
