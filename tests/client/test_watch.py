"""A watch misses nothing and tells nothing twice, across lost connections and restarts of the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo

import opensandboxd
from opensandboxd import AsyncClient, Sandbox, WatchSandboxesResponse
from opensandboxd.v1.sandbox_service_pb2 import Bookmark
from tests.client.scripted import Fault, ScriptedServer

LOST = Fault(grpc.StatusCode.UNAVAILABLE, "gone away")
DENIED = Fault(grpc.StatusCode.PERMISSION_DENIED, "the end")


def refused(code: grpc.StatusCode, reason: str) -> Fault:
    return Fault(code, reason, details=[ErrorInfo(domain="opensandbox.io", reason=reason)])


EXPIRED = refused(grpc.StatusCode.FAILED_PRECONDITION, "RESOURCE_VERSION_EXPIRED")
TOO_SLOW = refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")


def event(kind: str, id: str, version: str, etag: str = "") -> WatchSandboxesResponse:
    return WatchSandboxesResponse(**{kind: Sandbox(id=id, etag=etag)}, resource_version=version)  # type: ignore[arg-type]


def bookmark(version: str, *, snapshot_end: bool = False) -> WatchSandboxesResponse:
    return WatchSandboxesResponse(bookmark=Bookmark(snapshot_end=snapshot_end), resource_version=version)


async def told(events: AsyncGenerator[WatchSandboxesResponse, None]) -> list[Message]:
    """Everything until the script's end, which is DENIED."""
    seen: list[Message] = []
    try:
        async for one in events:
            seen.append(one)  # noqa: PERF401 (a comprehension would lose them to the exception)
    except opensandboxd.PermissionDeniedError:
        return seen
    pytest.fail("the watch ended without an error")


@pytest.mark.parametrize("interruption", [LOST, TOO_SLOW, None], ids=["lost", "too slow", "ended"])
async def test_an_interrupted_watch_goes_on_where_it_was(
    server: ScriptedServer, client: AsyncClient, interruption: Fault | None
) -> None:
    first = [event("added", "a", ""), bookmark("5", snapshot_end=True), event("updated", "a", "6", "2")]
    second = [event("removed", "a", "7")]
    server.expect("WatchSandboxes", *first, *([interruption] if interruption else []))
    server.expect("WatchSandboxes", *second, DENIED)
    assert await told(client.watch(ids=["a"], metadata={"k": "v"})) == first + second
    assert [request.resource_version for request in server.requests("WatchSandboxes")] == ["", "6"]
    assert all((list(r.ids), dict(r.metadata)) == (["a"], {"k": "v"}) for r in server.requests("WatchSandboxes"))


async def test_after_a_restart_the_new_snapshot_is_told_as_changes(server: ScriptedServer, client: AsyncClient) -> None:
    first = [event("added", id, "", "1") for id in "abc"] + [bookmark("5", snapshot_end=True)]
    server.expect("WatchSandboxes", *first, LOST)
    server.expect("WatchSandboxes", EXPIRED)
    again = [event("added", "a", "", "1"), event("added", "b", "", "2"), event("added", "d", "", "1")]
    server.expect("WatchSandboxes", *again, bookmark("1", snapshot_end=True), event("updated", "d", "2", "9"), DENIED)
    assert await told(client.watch()) == [
        *first,
        event("updated", "b", "", "2"),
        event("added", "d", "", "1"),
        event("removed", "c", "1", "1"),
        bookmark("1"),
        event("updated", "d", "2", "9"),
    ]
    assert [request.resource_version for request in server.requests("WatchSandboxes")] == ["", "5", ""]


async def test_a_snapshot_cut_short_is_told_once(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("WatchSandboxes", event("added", "a", ""), LOST)
    server.expect(
        "WatchSandboxes", event("added", "a", ""), event("added", "b", ""), bookmark("5", snapshot_end=True), DENIED
    )
    assert await told(client.watch()) == [
        event("added", "a", ""),
        event("added", "b", ""),
        bookmark("5", snapshot_end=True),
    ]


async def test_a_version_of_the_callers_own_that_is_too_old_is_raised(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.expect("WatchSandboxes", EXPIRED)
    with pytest.raises(opensandboxd.FailedPreconditionError) as raised:
        await anext(client.watch(resource_version="3"))
    assert raised.value.reason == "RESOURCE_VERSION_EXPIRED"
    assert server.requests("WatchSandboxes")[0].resource_version == "3"


async def test_a_watch_that_never_connected_raises() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(opensandboxd.UnavailableError):
            await anext(client.watch())


async def test_it_gives_up_when_the_server_stays_away(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("WatchSandboxes", bookmark("1", snapshot_end=True), LOST)
    events = client.watch(reconnect_timeout=0)
    await anext(events)
    with pytest.raises(opensandboxd.UnavailableError, match="gone away"):
        await anext(events)
