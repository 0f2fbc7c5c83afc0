"""WatchSandboxes: "first an `added` for each sandbox there is and a bookmark with snapshot_end, then changes"."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.service import following
from tests.conformance.house import FAILED, PAUSED, PAUSING, PENDING, RUNNING, STOPPING, TERMINATED, Work
from tests.conformance.site import Site, Watch
from tests.refusal import drained, refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_snapshot_holds_every_sandbox_there_is(site: Site) -> None:
    created = await asyncio.gather(*(site.create() for _ in range(3)))

    async with site.watch() as watch:
        assert {s.id for s in watch.at_snapshot} == {s.id for s in created}
        assert watch.resource_version


async def test_the_life_of_a_sandbox_is_told_in_order(site: Site) -> None:
    async with site.watch() as watch:
        sandbox = await site.create()
        await site.update(sandbox.id, metadata={"a": "1"})
        await site.pause(sandbox.id)
        await site.delete(sandbox.id)
        await watch.until("removed")

    told = [(event.WhichOneof("event"), getattr(event, event.WhichOneof("event") or "")) for event in watch.seen]
    steps: list[tuple[str | None, object]] = []
    for kind, seen in told:
        if (step := (kind, seen.status.state)) not in steps:  # PENDING is told again when its message changes
            steps.append(step)
    assert {seen.id for _, seen in told} == {sandbox.id}
    assert steps == [
        ("added", PENDING),
        ("updated", PENDING),
        ("updated", RUNNING),
        ("updated", PAUSING),
        ("updated", PAUSED),
        ("updated", STOPPING),
        ("removed", TERMINATED),
    ] or steps == [
        ("added", PENDING),
        ("updated", RUNNING),
        ("updated", PAUSING),
        ("updated", PAUSED),
        ("updated", STOPPING),
        ("removed", TERMINATED),
    ]


async def test_a_change_of_metadata_or_expiry_is_an_update(site: Site) -> None:
    sandbox = await site.create()
    async with site.watch() as watch:
        updated = await site.update(sandbox.id, metadata={"a": "1"})
        assert (await watch.next()).updated == updated
        renewed = await site.renew(sandbox.id, ttl=Duration(seconds=90))
        assert (await watch.next()).updated == renewed


async def test_resuming_from_any_resource_version_misses_nothing_and_repeats_nothing(site: Site) -> None:
    async with site.watch() as watch:
        start = watch.resource_version
        sandbox = await site.create()
        await site.pause(sandbox.id)
        await site.resume(sandbox.id)
        await site.delete(sandbox.id)
        await watch.until("removed")
    whole = watch.seen

    for n, version in enumerate([start, *(event.resource_version for event in whole)]):
        async with site.watch(resource_version=version) as resumed:
            rest = [await resumed.next() for _ in whole[n:]]
            assert rest == whole[n:]


async def test_a_resumed_watch_goes_on_with_what_happens_next(site: Site) -> None:
    async with site.watch() as watch:
        version = watch.resource_version
    async with site.watch(resource_version=version) as resumed:
        sandbox = await site.create()
        assert (await resumed.next()).added.id == sandbox.id


@pytest.mark.parametrize("version", ["00000000-1", "00000000-0"])
async def test_a_resource_version_of_another_run_of_the_server_is_expired(site: Site, version: str) -> None:
    refusal = await refused(drained(site.stub.WatchSandboxes(rpc.WatchSandboxesRequest(resource_version=version))))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RESOURCE_VERSION_EXPIRED")


async def test_a_resource_version_from_the_future_is_expired(site: Site) -> None:
    async with site.watch() as watch:
        epoch = watch.resource_version.partition("-")[0]
    call = site.stub.WatchSandboxes(rpc.WatchSandboxesRequest(resource_version=f"{epoch}-99999999"))

    assert (await refused(drained(call))).reason == "RESOURCE_VERSION_EXPIRED"


@pytest.mark.parametrize("number", ["", "x", "-1", "1.5", "٣", "9" * 5000])
async def test_a_resource_version_that_no_watch_gave_is_refused(site: Site, number: str) -> None:
    async with site.watch() as watch:
        epoch = watch.resource_version.partition("-")[0]
    call = site.stub.WatchSandboxes(rpc.WatchSandboxesRequest(resource_version=f"{epoch}-{number}"))

    refusal = await refused(drained(call))
    assert refusal.reason in ("INVALID_FIELD", "RESOURCE_VERSION_EXPIRED")
    assert refusal.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)


async def test_what_comes_to_match_a_filter_is_added_and_what_ceases_to_is_removed(site: Site) -> None:
    sandbox = await site.create(metadata={"team": "a"})
    async with (
        site.watch(states=[PAUSED]) as paused,
        site.watch(metadata={**site.mine, "team": "b"}) as team_b,
        site.watch(ids=[sandbox.id]) as only,
        site.watch(ids=["sbx-00000000000000000000"]) as another,
    ):
        assert paused.at_snapshot == team_b.at_snapshot == another.at_snapshot == []
        assert [s.id for s in only.at_snapshot] == [sandbox.id]

        await site.pause(sandbox.id)
        assert (await paused.next()).added.status.state == PAUSED
        await site.resume(sandbox.id)
        left = await paused.next()
        assert left.WhichOneof("event") == "removed"
        assert left.removed.status.state != TERMINATED

        await site.update(sandbox.id, metadata={"team": "b"})
        assert (await team_b.next()).added.metadata["team"] == "b"
        await site.update(sandbox.id, update_mask=FieldMask(paths=["metadata.team"]))
        assert (await team_b.next()).WhichOneof("event") == "removed"

        await site.delete(sandbox.id)
        await only.until("removed")
        assert (paused.seen[2:], team_b.seen[2:], another.seen) == ([], [], [])


async def test_the_exit_of_an_entry_point_is_an_update(site: Site) -> None:
    async with site.watch() as watch:
        await site.create(Work(exit=3))
        ended = await watch.until("updated", state=FAILED)
    assert (ended.status.reason, ended.status.exit_code) == ("ENTRYPOINT_EXITED", 3)


async def test_a_failed_creation_is_removed_from_watches(site: Site) -> None:
    async with site.watch() as watch:
        await refused(site.create(entrypoint=["/no/such/program"]))
        removed = await watch.until("removed")
    assert removed.status.state == TERMINATED
    assert removed.status.message


async def test_silence_is_broken_by_bookmarks_that_can_be_resumed_from(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BOOKMARK_INTERVAL", 0.1)
    call = site.stub.WatchSandboxes(rpc.WatchSandboxesRequest(metadata=site.mine))
    try:
        watch = Watch(call)
        await watch.snapshot()
        first, second = await call.read(), await call.read()
    finally:
        call.cancel()
    for event in (first, second):
        assert event.WhichOneof("event") == "bookmark"
        assert not event.bookmark.snapshot_end
    async with site.watch(resource_version=second.resource_version) as resumed:
        sandbox = await site.create()
        assert (await resumed.next()).added.id == sandbox.id


async def test_two_watches_and_the_listing_agree_in_the_end(site: Site) -> None:
    async with site.watch() as one, site.watch() as other:
        created = await asyncio.gather(*(site.create() for _ in range(4)))
        await asyncio.gather(site.delete(created[0].id), site.pause(created[1].id))
        await asyncio.gather(*(site.update(s.id, metadata={"end": "1"}) for s in created[1:]))
        for watch in (one, other):
            while sum(e.WhichOneof("event") == "updated" and "end" in e.updated.metadata for e in watch.seen) < 3:
                await watch.next()

        known = []
        for watch in (one, other):
            sandboxes: dict[str, pb.Sandbox] = {}
            for event in watch.seen:
                kind = event.WhichOneof("event")
                if kind == "removed":
                    sandboxes.pop(event.removed.id)
                else:
                    sandbox = event.added if kind == "added" else event.updated
                    assert (sandbox.id in sandboxes) == (kind == "updated")
                    sandboxes[sandbox.id] = sandbox
            known.append(sorted(sandboxes.values(), key=lambda s: s.id))
    assert known[0] == known[1] == sorted(await site.list(), key=lambda s: s.id)
