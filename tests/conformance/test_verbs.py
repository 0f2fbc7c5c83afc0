"""Get, Delete, Pause, Resume, Update, Renew and Wait: what each does, and that a failure leaves things as they were."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain.errors import BackendError
from tests.conformance.house import FAILED, PAUSED, PENDING, RUNNING, TERMINATED, Work
from tests.conformance.site import Site
from tests.refusal import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNKNOWN = "sbx-00000000000000000000"


# Get


@pytest.mark.parametrize("id", [UNKNOWN, "anything", "../../etc", "sbx-ÜÜ"])
async def test_what_does_not_exist_is_not_found(site: Site, id: str) -> None:
    refusal = await refused(site.get(id))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND")
    assert refusal.details["ResourceInfo"].resource_name == id


# Delete


async def test_a_deleted_sandbox_is_gone_everywhere_when_the_reply_comes(site: Site) -> None:
    sandbox = await site.create()
    async with site.watch() as watch:
        await site.delete(sandbox.id)

        assert sandbox.id not in await site.house.remains(site.server, "shared")
        assert (await refused(site.get(sandbox.id))).reason == "SANDBOX_NOT_FOUND"
        assert await site.list() == []
        removed = await watch.until("removed")
    assert (removed.id, removed.status.state, removed.status.reason) == (sandbox.id, TERMINATED, "DELETED")


async def test_delete_of_what_does_not_exist_is_not_found_unless_missing_is_allowed(site: Site) -> None:
    assert (await refused(site.delete(UNKNOWN))).code is grpc.StatusCode.NOT_FOUND
    await site.delete(UNKNOWN, allow_missing=True)


async def test_deletes_that_allow_missing_all_succeed_at_the_same_time_and_afterwards(site: Site) -> None:
    sandbox = await site.create()

    await asyncio.gather(*(site.delete(sandbox.id, allow_missing=True) for _ in range(4)))
    await site.delete(sandbox.id, allow_missing=True)

    await site.nothing_remains()


async def test_a_paused_sandbox_can_be_deleted(site: Site) -> None:
    sandbox = await site.create()
    await site.pause(sandbox.id)

    await site.delete(sandbox.id)

    await site.nothing_remains()


@pytest.mark.parametrize("code", [0, 3])
async def test_a_sandbox_that_has_ended_can_be_deleted(site: Site, code: int) -> None:
    sandbox = await site.create(Work(exit=code))
    await site.ended(sandbox.id)

    await site.delete(sandbox.id)

    await site.nothing_remains()


async def test_a_pending_sandbox_can_be_deleted_and_its_creation_ends_aborted(site: Site) -> None:
    async with site.house.slowly(site.server), site.watch() as watch:
        creation = asyncio.ensure_future(refused(site.create()))
        pending = await watch.until("added")
        assert pending.status.state == PENDING
        await site.delete(pending.id)
        removed = await watch.until("removed")

    refusal = await creation
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "SANDBOX_DELETED")
    assert (removed.status.state, removed.status.reason) == (TERMINATED, "DELETED")
    await site.nothing_remains()


async def test_an_accepted_sandbox_can_be_deleted_while_pending(site: Site) -> None:
    async with site.house.slowly(site.server):
        sandbox = await site.accept()
        await site.delete(sandbox.id)
        assert (await refused(site.get(sandbox.id))).reason == "SANDBOX_NOT_FOUND"

    await site.nothing_remains()


async def test_delete_with_a_stale_etag_is_aborted_and_deletes_nothing(site: Site) -> None:
    sandbox = await site.create()
    changed = await site.update(sandbox.id, metadata={"a": "1"})

    refusal = await refused(site.delete(sandbox.id, etag=sandbox.etag))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await site.get(sandbox.id) == changed
    await site.delete(sandbox.id, etag=changed.etag)


# Pause and resume


async def test_pause_freezes_and_resume_thaws(site: Site) -> None:
    sandbox = await site.create()

    paused = await site.pause(sandbox.id)
    assert paused.status.state == PAUSED
    assert await site.get(sandbox.id) == paused
    resumed = await site.resume(sandbox.id)
    assert resumed.status.state == RUNNING
    assert await site.get(sandbox.id) == resumed


async def test_a_paused_sandbox_writes_nothing(site: Site) -> None:
    if not site.house.runs_processes:
        pytest.skip(f"the {site.house.name} driver runs no processes")
    sandbox = await site.create(Work(lines=tuple(("stdout", str(n)) for n in range(100)), pause=0.05))
    request = rpc.StreamLogsRequest(id=sandbox.id)
    await asyncio.sleep(0.3)
    await site.pause(sandbox.id)
    await asyncio.sleep(0.1)
    before = [chunk.data async for chunk in site.stub.StreamLogs(request)]
    await asyncio.sleep(0.4)
    after = [chunk.data async for chunk in site.stub.StreamLogs(request)]
    await site.resume(sandbox.id)
    await asyncio.sleep(0.4)
    resumed = [chunk.data async for chunk in site.stub.StreamLogs(request)]

    assert before == after
    assert len(resumed) > len(after) > 0


async def test_pause_of_a_paused_and_resume_of_a_running_one_return_it_as_it_is(site: Site) -> None:
    sandbox = await site.create()

    assert await site.resume(sandbox.id) == sandbox
    paused = await site.pause(sandbox.id)
    assert await site.pause(sandbox.id) == paused


async def test_pauses_and_resumes_at_the_same_time_take_turns(site: Site) -> None:
    sandbox = await site.create()

    for _ in range(3):
        await asyncio.gather(site.pause(sandbox.id), site.resume(sandbox.id), site.pause(sandbox.id))
    final = await site.pause(sandbox.id)

    assert final.status.state == PAUSED
    assert (await site.resume(sandbox.id)).status.state == RUNNING


async def test_pausing_and_resuming_are_seen_by_watches_in_order(site: Site) -> None:
    sandbox = await site.create()
    async with site.watch() as watch:
        for _ in range(2):
            await site.pause(sandbox.id)
            await site.resume(sandbox.id)
        await site.update(sandbox.id, metadata={"end": "1"})
        while not (await watch.next()).updated.metadata.get("end"):
            pass

    states = [pb.SandboxState.Name(event.updated.status.state)[14:] for event in watch.seen]
    assert states == ["PAUSING", "PAUSED", "RESUMING", "RUNNING"] * 2 + ["RUNNING"]


@pytest.mark.parametrize("code", [0, 3])
async def test_a_sandbox_that_has_ended_can_be_neither_paused_nor_resumed(site: Site, code: int) -> None:
    sandbox = await site.create(Work(exit=code))
    ended = await site.ended(sandbox.id)

    for verb in (site.pause, site.resume):
        refusal = await refused(verb(sandbox.id))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_STATE")
        assert refusal.details["PreconditionFailure"].violations[0].subject == sandbox.id
    assert await site.get(sandbox.id) == ended


async def test_a_pending_sandbox_cannot_be_paused(site: Site) -> None:
    async with site.house.slowly(site.server):
        sandbox = await site.accept()
        assert (await refused(site.pause(sandbox.id))).reason == "INVALID_STATE"

    assert (await site.wait(sandbox.id)).sandbox.status.state == RUNNING


@pytest.mark.parametrize("verb", ["pause", "resume", "delete"])
async def test_a_verb_that_fails_leaves_the_state_that_was_true_before(site: Site, verb: str) -> None:
    driver = site.server.driver
    if not hasattr(driver, "inject_error"):
        pytest.skip(f"the {site.house.name} driver has no faults on demand; tests/docker lets the engine's calls fail")
    sandbox = await site.create()
    before = await site.pause(sandbox.id) if verb == "resume" else sandbox
    driver.inject_error(verb, BackendError("injected"))

    refusal = await refused(getattr(site, verb)(sandbox.id))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "BACKEND_ERROR")
    assert await site.get(sandbox.id) == before
    await getattr(site, verb)(sandbox.id)


# Update


async def test_update_without_a_mask_sets_every_entry_and_keeps_the_others(site: Site) -> None:
    sandbox = await site.create(metadata={"keep": "1", "change": "1"})

    updated = await site.update(sandbox.id, metadata={"change": "2", "new": "3"})

    assert updated.metadata == {**site.mine, "keep": "1", "change": "2", "new": "3"}
    assert updated.etag != sandbox.etag
    assert await site.get(sandbox.id) == updated


async def test_update_with_an_empty_mask_is_as_without_one(site: Site) -> None:
    sandbox = await site.create(metadata={"keep": "1"})

    updated = await site.update(sandbox.id, metadata={"new": "3"}, update_mask=FieldMask())

    assert updated.metadata == {**site.mine, "keep": "1", "new": "3"}


async def test_update_of_metadata_replaces_the_whole_map(site: Site) -> None:
    sandbox = await site.create(metadata={"old": "1"})

    updated = await site.update(
        sandbox.id, metadata={**site.mine, "new": "2"}, update_mask=FieldMask(paths=["metadata"])
    )

    assert updated.metadata == {**site.mine, "new": "2"}


async def test_update_of_one_key_sets_or_removes_that_entry_alone(site: Site) -> None:
    sandbox = await site.create(metadata={"set": "1", "remove": "1", "example.com/dotted.key": "1"})

    updated = await site.update(
        sandbox.id,
        metadata={"set": "2", "not-in-the-mask": "3"},
        update_mask=FieldMask(paths=["metadata.set", "metadata.remove", "metadata.`example.com/dotted.key`"]),
    )

    assert updated.metadata == {**site.mine, "set": "2"}


async def test_the_etag_changes_with_metadata_and_expiry_and_not_with_status(site: Site) -> None:
    sandbox = await site.create()
    paused = await site.pause(sandbox.id)
    assert paused.etag == sandbox.etag

    updated = await site.update(sandbox.id, metadata={"a": "1"})
    renewed = await site.renew(sandbox.id, ttl=Duration(seconds=90))

    assert len({sandbox.etag, updated.etag, renewed.etag}) == 3


async def test_of_updates_with_the_same_etag_one_wins_and_the_others_are_aborted(site: Site) -> None:
    sandbox = await site.create()

    results = await asyncio.gather(
        *(site.update(sandbox.id, metadata={"winner": str(n)}, etag=sandbox.etag) for n in range(5)),
        return_exceptions=True,
    )

    won = [result for result in results if isinstance(result, pb.Sandbox)]
    lost = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert len(won) == 1
    assert {error.code() for error in lost} == {grpc.StatusCode.ABORTED}
    assert await site.get(sandbox.id) == won[0]


async def test_updates_without_etag_at_the_same_time_all_take_effect(site: Site) -> None:
    sandbox = await site.create()

    await asyncio.gather(*(site.update(sandbox.id, metadata={f"k{n}": "1"}) for n in range(8)))

    assert set((await site.get(sandbox.id)).metadata) == {"site", *(f"k{n}" for n in range(8))}


async def test_a_failed_creation_can_be_neither_updated_nor_renewed(site: Site) -> None:
    accepted = await site.accept(entrypoint=["/no/such/program"])
    await site.wait(accepted.id)

    for call in (site.update(accepted.id, metadata={"a": "1"}), site.renew(accepted.id, ttl=Duration(seconds=90))):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_STATE")


# Renew


async def test_renew_sets_an_expiry_sooner_or_later_than_the_old(site: Site) -> None:
    sandbox = await site.create(ttl=Duration(seconds=600))
    for seconds in (3600, 60):
        before = datetime.now(UTC)
        renewed = await site.renew(sandbox.id, ttl=Duration(seconds=seconds))
        expires = renewed.expire_time.ToDatetime(UTC)
        assert before <= expires - timedelta(seconds=seconds) <= datetime.now(UTC)
        assert await site.get(sandbox.id) == renewed


async def test_renew_gives_an_expiry_to_a_sandbox_that_had_none(site: Site) -> None:
    sandbox = await site.create()
    at = Timestamp(seconds=int(datetime.now(UTC).timestamp()) + 7200)

    assert (await site.renew(sandbox.id, expire_time=at)).expire_time == at


async def test_renew_keeps_the_bounds_of_creation(site: Site) -> None:
    sandbox = await site.create()

    for how in ({"ttl": Duration(seconds=59)}, {"ttl": Duration(seconds=-1)}, {"expire_time": Timestamp(seconds=1)}):
        refusal = await refused(site.renew(sandbox.id, **how))
        assert (refusal.reason, [*refusal.fields]) == ("INVALID_FIELD", [*how])
    assert await site.get(sandbox.id) == sandbox


async def test_renew_with_a_stale_etag_is_aborted(site: Site) -> None:
    sandbox = await site.create()
    changed = await site.update(sandbox.id, metadata={"a": "1"})

    refusal = await refused(site.renew(sandbox.id, ttl=Duration(seconds=90), etag=sandbox.etag))

    assert refusal.reason == "ETAG_MISMATCH"
    assert await site.get(sandbox.id) == changed


async def test_a_sandbox_that_has_ended_cannot_be_renewed(site: Site) -> None:
    sandbox = await site.create(Work(exit=0))
    await site.ended(sandbox.id)

    assert (await refused(site.renew(sandbox.id, ttl=Duration(seconds=90)))).reason == "INVALID_STATE"


async def test_pause_update_and_renew_do_not_undo_each_other(site: Site) -> None:
    sandbox = await site.create()

    await asyncio.gather(
        site.pause(sandbox.id),
        site.update(sandbox.id, metadata={"a": "1"}),
        site.renew(sandbox.id, ttl=Duration(seconds=600)),
    )

    final = await site.get(sandbox.id)
    assert final.status.state == PAUSED
    assert final.metadata["a"] == "1"
    assert final.HasField("expire_time")


# Wait


async def test_wait_returns_at_once_when_the_state_is_reached(site: Site) -> None:
    sandbox = await site.create()

    reply = await site.wait(sandbox.id)

    assert (reply.reached, reply.sandbox) == (True, sandbox)


async def test_wait_returns_when_the_state_comes_about(site: Site) -> None:
    sandbox = await site.create()
    waiting = asyncio.ensure_future(site.wait(sandbox.id, PAUSED))
    await asyncio.sleep(0.05)
    assert not waiting.done()

    paused = await site.pause(sandbox.id)

    assert (await waiting) == rpc.WaitSandboxResponse(sandbox=paused, reached=True)


async def test_wait_returns_the_sandbox_as_it_is_when_its_timeout_is_over(site: Site) -> None:
    sandbox = await site.create()

    for timeout in (Duration(), Duration(nanos=50_000_000)):
        reply = await site.wait(sandbox.id, PAUSED, timeout=timeout)
        assert reply == rpc.WaitSandboxResponse(sandbox=sandbox, reached=False)


async def test_wait_returns_when_a_final_state_makes_it_hopeless(site: Site) -> None:
    sandbox = await site.create(Work(exit=3))

    reply = await site.wait(sandbox.id, PAUSED)

    assert not reply.reached
    assert reply.sandbox.status.state == FAILED


async def test_a_sandbox_removed_while_waited_for_is_returned_once_more_as_terminated(site: Site) -> None:
    sandbox = await site.create()
    waits = [asyncio.ensure_future(site.wait(sandbox.id, *states)) for states in ([PAUSED], [TERMINATED])]
    await asyncio.sleep(0.05)

    await site.delete(sandbox.id)

    hopeless, reached = [await wait for wait in waits]
    assert (hopeless.reached, reached.reached) == (False, True)
    for reply in (hopeless, reached):
        assert (reply.sandbox.id, reply.sandbox.status.state) == (sandbox.id, TERMINATED)
        assert reply.sandbox.status.reason == "DELETED"


async def test_wait_ends_with_the_callers_deadline(site: Site) -> None:
    sandbox = await site.create()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.stub.WaitSandbox(rpc.WaitSandboxRequest(id=sandbox.id, states=[PAUSED]), timeout=0.1)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_wait_for_an_unknown_sandbox_is_not_found(site: Site) -> None:
    assert (await refused(site.wait(UNKNOWN))).code is grpc.StatusCode.NOT_FOUND


# How entry points end


@pytest.mark.parametrize(("code", "state"), [(0, TERMINATED), (3, FAILED), (255, FAILED)])
async def test_an_entry_point_that_exits_ends_its_sandbox_with_its_code(
    site: Site, code: int, state: pb.SandboxState.ValueType
) -> None:
    sandbox = await site.create(Work(exit=code))

    ended = await site.ended(sandbox.id)

    assert (ended.status.state, ended.status.reason) == (state, "ENTRYPOINT_EXITED")
    assert ended.status.HasField("exit_code")
    assert ended.status.exit_code == code
    assert await site.get(sandbox.id) == ended


async def test_a_running_sandbox_has_no_exit_code(site: Site) -> None:
    assert not (await site.create()).status.HasField("exit_code")


async def test_what_exceeds_the_memory_limit_is_killed(site: Site) -> None:
    if not site.house.runs_processes:
        pytest.skip(f"the {site.house.name} driver runs no processes")
    sandbox = await site.create(
        entrypoint=["/usr/bin/tail", "/dev/zero"], spec={"resources": pb.ResourceLimits(memory="32Mi")}
    )

    ended = await site.ended(sandbox.id)

    assert (ended.status.state, ended.status.reason, ended.status.exit_code) == (FAILED, "OOM_KILLED", 137)
