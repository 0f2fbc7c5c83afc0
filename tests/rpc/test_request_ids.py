"""`x-request-id`: the caller's or one made, in the trailing metadata of every reply, and in the log."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from tests.harness import Server, serving
from tests.refusal import refused

NAME = "x-request-id"
MADE = re.compile(r"[0-9a-f]{32}")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


async def trailing(call: Any) -> str:
    values = [str(value) for key, value in await call.trailing_metadata() if key == NAME]
    assert len(values) == 1
    return values[0]


def calls(server: Server, metadata: Any) -> list[Any]:
    """One that succeeds, and one that fails, of either kind."""
    return [
        server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest(), metadata=metadata),
        server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id="x"), metadata=metadata),
        server.sandboxes.StreamLogs(rpc.StreamLogsRequest(id="x"), metadata=metadata),
        server.sandboxes.WatchSandboxes(rpc.WatchSandboxesRequest(resource_version="x"), metadata=metadata),
    ]


@pytest.mark.parametrize("given", ["abc", "x" * 128, "with space and = ~!\"'", "0"])
async def test_the_callers_request_id_comes_back(server: Server, given: str) -> None:
    assert [await trailing(call) for call in calls(server, ((NAME, given),))] == [given] * 4


@pytest.mark.parametrize("metadata", [(), ((NAME, ""),), ((NAME, "x" * 129),), ((NAME, "y" * 7000),)])
async def test_one_is_made_when_there_is_none_or_it_is_unfit(
    server: Server, metadata: tuple[tuple[str, str], ...]
) -> None:
    made = [await trailing(call) for call in calls(server, metadata)]

    assert all(MADE.fullmatch(id) for id in made)
    assert len(set(made)) == 4


async def test_several_request_ids_do_no_harm(server: Server) -> None:
    for call in calls(server, ((NAME, "a"), (NAME, "b"))):
        assert await trailing(call) in ("a", "b")


async def test_a_followed_stream_has_it_at_its_end(server: Server) -> None:
    created = await server.sandboxes.CreateSandbox(
        rpc.CreateSandboxRequest(spec=pb.SandboxSpec(image=pb.ImageSource(uri="img:1")))
    )
    call = server.sandboxes.StreamLogs(rpc.StreamLogsRequest(id=created.sandbox.id), metadata=((NAME, "stream"),))
    assert [chunk.data async for chunk in call] == [b"started\n"]
    assert await trailing(call) == "stream"


async def test_an_unauthenticated_call_has_one_too() -> None:
    async with serving(server={"api_key": "k"}) as server:
        refusal = await refused(
            server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id="x"), metadata=((NAME, "unknown-caller"),))
        )
    assert (refusal.code, refusal.trailing[NAME]) == (grpc.StatusCode.UNAUTHENTICATED, "unknown-caller")


async def test_every_line_of_a_call_in_the_log_carries_it(server: Server) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        created = await server.sandboxes.CreateSandbox(
            rpc.CreateSandboxRequest(spec=pb.SandboxSpec(image=pb.ImageSource(uri="img:1"))),
            metadata=((NAME, "create-1"),),
        )
        await refused(server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id="x"), metadata=((NAME, "get-1"),)))
    events = {(line["event"], line.get("request_id")) for line in lines}

    assert {("sandbox created", "create-1"), ("rpc", "create-1"), ("rpc", "get-1")} <= events
    [line] = [line for line in lines if line["event"] == "rpc" and line["request_id"] == "create-1"]
    assert line["sandbox_id"] == created.sandbox.id
    assert (line["code"], line["driver"]) == ("OK", "fake")
    assert line["duration_ms"] >= 0
    assert line["method"] == "/opensandboxd.v1.SandboxService/CreateSandbox"


async def test_calls_at_the_same_time_keep_their_own(server: Server) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        gate = server.driver.hold("start")
        made = [
            server.sandboxes.CreateSandbox(
                rpc.CreateSandboxRequest(
                    spec=pb.SandboxSpec(image=pb.ImageSource(uri="img:1")), metadata={"n": str(n)}
                ),
                metadata=((NAME, f"call-{n}"),),
            )
            for n in range(5)
        ]
        await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest())
        gate.set()
        ids = {f"call-{n}": (await call).sandbox.id for n, call in enumerate(made)}
    created = {line["request_id"]: line["sandbox_id"] for line in lines if line["event"] == "sandbox created"}

    assert created == ids
