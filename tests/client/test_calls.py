"""Arguments become the contract's messages, with the API key, a deadline, and retries only where they are safe."""

from __future__ import annotations

import asyncio
import threading
import uuid
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

import opensandboxd
from opensandboxd import (
    AsyncClient,
    NetworkAction,
    NetworkPolicy,
    Platform,
    RegistryAuth,
    Sandbox,
    SandboxSpec,
    SandboxState,
)
from opensandboxd.v1 import sandbox_service_pb2 as pb2
from opensandboxd.v1.sandbox_pb2 import ImageSource, ResourceLimits, SandboxStatus
from tests.client.scripted import Fault, Hang, ScriptedServer

UNAVAILABLE = Fault(grpc.StatusCode.UNAVAILABLE, "backend away")
CREATED = pb2.CreateSandboxResponse(sandbox=Sandbox(id="sbx-1"))
RUNNING = SandboxState.SANDBOX_STATE_RUNNING
PAUSED = SandboxState.SANDBOX_STATE_PAUSED
FAILED = SandboxState.SANDBOX_STATE_FAILED
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def sandbox_in(state: SandboxState.ValueType) -> Sandbox:
    return Sandbox(id="sbx-1", status=SandboxStatus(state=state))


async def test_create_sends_every_argument(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", CREATED)
    policy = NetworkPolicy(
        egress=[opensandboxd.EgressRule(action=NetworkAction.NETWORK_ACTION_ALLOW, target="pypi.org")]
    )
    created = await client.create(
        "img:1",
        entrypoint=["sleep", "60"],
        env={"A": "1"},
        metadata={"team": "x"},
        cpu="500m",
        memory="512Mi",
        gpu="1",
        ports=[8000],
        ttl=timedelta(minutes=10),
        network_policy=policy,
        auth=("me", "secret"),
        platform="linux/arm64",
        require_secure_runtime=True,
        request_id="r-1",
        validate_only=True,
        wait=False,
    )
    assert created == Sandbox(id="sbx-1")
    assert server.requests("CreateSandbox") == [
        pb2.CreateSandboxRequest(
            spec=SandboxSpec(
                image=ImageSource(uri="img:1", auth=RegistryAuth(username="me", password="secret")),
                entrypoint=["sleep", "60"],
                env={"A": "1"},
                resources=ResourceLimits(cpu="500m", memory="512Mi", gpu="1"),
                network_policy=policy,
                platform=Platform(os="linux", arch="arm64"),
                require_secure_runtime=True,
                ports=[8000],
            ),
            metadata={"team": "x"},
            ttl=Duration(seconds=600),
            request_id="r-1",
            validate_only=True,
            return_when=pb2.RETURN_WHEN_ACCEPTED,
        )
    ]


async def test_create_by_default_waits_and_makes_a_request_id(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("CreateSandbox", CREATED)
    await client.create("img")
    await client.create("img")
    first, second = server.requests("CreateSandbox")
    assert uuid.UUID(first.request_id) != uuid.UUID(second.request_id)
    assert first.return_when == pb2.RETURN_WHEN_RUNNING
    assert first.spec == SandboxSpec(image=ImageSource(uri="img"))
    assert first.WhichOneof("expiration") is None


async def test_create_takes_a_whole_spec(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", CREATED)
    spec = SandboxSpec(image=ImageSource(uri="img"), ports=[1])
    await client.create(spec, metadata={"a": "b"}, expire_time=NOON)
    (request,) = server.requests("CreateSandbox")
    assert (request.spec, request.expire_time) == (spec, Timestamp(seconds=int(NOON.timestamp())))


async def test_arguments_that_cannot_be_meant_are_refused_before_anything_is_sent(client: AsyncClient) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        await client.create("img", ttl=60, expire_time=NOON)
    with pytest.raises(ValueError, match="expire_time must carry a time zone"):
        await client.create("img", expire_time=NOON.replace(tzinfo=None))
    with pytest.raises(ValueError, match="set these fields in it"):
        await client.create(SandboxSpec(), cpu="1")
    with pytest.raises(ValueError, match="set these fields in it"):
        await client.create(SandboxSpec(), auth=("a", "b"))
    with pytest.raises(TypeError, match="not one string"):
        await client.create("img", entrypoint="sleep 60")
    with pytest.raises(ValueError, match="os/arch"):
        await client.create("img", platform="arm64")
    with pytest.raises(ValueError, match="makes no sandbox"):
        client.sandbox("img", validate_only=True)


@pytest.mark.parametrize("target", ["http://localhost:8080", "localhost", "localhost:", "a b:1", ":8080"])
def test_a_target_that_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="give host:port"):
        AsyncClient(target)


@pytest.mark.parametrize("target", ["localhost:1", "10.0.0.1:8080", "[::1]:8080", "dns:///api:1", "unix:/run/x.sock"])
def test_addresses_are_host_and_port_or_what_grpc_resolves(target: str) -> None:
    assert AsyncClient(target).target == target


def test_the_environment_gives_address_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AsyncClient().target == "localhost:8080"
    monkeypatch.setenv("OPEN_SANDBOX_DOMAIN", "api:1")
    assert AsyncClient().target == "api:1"
    assert AsyncClient("other:1").target == "other:1"
    monkeypatch.setenv("OPEN_SANDBOX_API_KEY", "key\n")
    with pytest.raises(ValueError, match="newline"):
        AsyncClient()


async def test_every_call_carries_the_api_key(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        server.expect("GetSandbox", pb2.GetSandboxResponse())
    server.expect("StreamLogs")
    monkeypatch.setenv("OPEN_SANDBOX_API_KEY", "from-env")
    async with AsyncClient(server.target) as client:
        await client.get("sbx-1")
    async with AsyncClient(server.target, api_key="given") as client:
        await client.get("sbx-1")
        assert [chunk async for chunk in client.logs("sbx-1")] == []
    keys = [received.metadata["open-sandbox-api-key"] for received in server.received["GetSandbox"]]
    assert keys == ["from-env", "given"]
    assert server.received["StreamLogs"][0].metadata["open-sandbox-api-key"] == "given"


async def test_list_goes_through_every_page(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("ListSandboxes", pb2.ListSandboxesResponse(sandboxes=[Sandbox(id="a")], next_page_token="2"))
    server.expect("ListSandboxes", pb2.ListSandboxesResponse(sandboxes=[Sandbox(id="b"), Sandbox(id="c")]))
    found = [sandbox.id async for sandbox in client.list(states=[RUNNING], metadata={"a": "b"}, page_size=2)]
    assert found == ["a", "b", "c"]
    first = pb2.ListSandboxesRequest(states=[RUNNING], metadata={"a": "b"}, page_size=2)
    second = pb2.ListSandboxesRequest(states=[RUNNING], metadata={"a": "b"}, page_size=2, page_token="2")
    assert server.requests("ListSandboxes") == [first, second]


async def test_update_sets_removes_and_replaces(server: ScriptedServer, client: AsyncClient) -> None:
    for _ in range(2):
        server.expect("UpdateSandbox", pb2.UpdateSandboxResponse(sandbox=Sandbox(id="sbx-1")))
    await client.update("sbx-1", {"a.b/c": "1", "gone": None}, etag="e")
    await client.update("sbx-1", {"a": "1"}, replace=True)
    first, second = server.requests("UpdateSandbox")
    assert (dict(first.metadata), list(first.update_mask.paths)) == (
        {"a.b/c": "1"},
        ["metadata.`a.b/c`", "metadata.`gone`"],
    )
    assert first.etag == "e"
    assert (dict(second.metadata), list(second.update_mask.paths)) == ({"a": "1"}, ["metadata"])


async def test_the_other_verbs_send_what_they_are_told(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("DeleteSandbox", pb2.DeleteSandboxResponse())
    server.expect("RenewSandbox", pb2.RenewSandboxResponse(sandbox=Sandbox(id="sbx-1")))
    server.expect("GetEndpoint", pb2.GetEndpointResponse(address="h:1"))
    server.expect("PauseSandbox", pb2.PauseSandboxResponse(sandbox=sandbox_in(PAUSED)))
    server.expect("ResumeSandbox", pb2.ResumeSandboxResponse(sandbox=sandbox_in(RUNNING)))
    server.expect("StreamLogs", pb2.StreamLogsResponse(data=b"hi\n"))
    await client.delete("sbx-1", allow_missing=True, etag="e")
    await client.renew("sbx-1", 90.5)
    assert (await client.endpoint("sbx-1", 80, internal=True)).address == "h:1"
    assert (await client.pause("sbx-1")).status.state == PAUSED
    assert (await client.resume("sbx-1")).status.state == RUNNING
    logs = client.logs("sbx-1", follow=True, tail=3, since=NOON, streams=[pb2.LOG_STREAM_STDERR])
    assert [chunk.data async for chunk in logs] == [b"hi\n"]
    assert server.requests("DeleteSandbox") == [pb2.DeleteSandboxRequest(id="sbx-1", allow_missing=True, etag="e")]
    assert server.requests("RenewSandbox") == [
        pb2.RenewSandboxRequest(id="sbx-1", ttl=Duration(seconds=90, nanos=500_000_000))
    ]
    assert server.requests("GetEndpoint") == [pb2.GetEndpointRequest(id="sbx-1", port=80, internal=True)]
    assert server.requests("StreamLogs") == [
        pb2.StreamLogsRequest(
            id="sbx-1",
            follow=True,
            tail_lines=3,
            since_time=Timestamp(seconds=int(NOON.timestamp())),
            streams=[pb2.LOG_STREAM_STDERR],
        )
    ]


async def test_every_unary_call_has_a_deadline(server: ScriptedServer) -> None:
    for _ in range(3):
        server.expect("GetSandbox", pb2.GetSandboxResponse())
    server.expect("CreateSandbox", CREATED)
    async with AsyncClient(server.target) as client:
        await client.get("sbx-1")
        await client.get("sbx-1", timeout=timedelta(seconds=5))
        await client.create("img")
    async with AsyncClient(server.target, timeout=7) as client:
        await client.get("sbx-1")
    left = [received.time_remaining or 0 for received in server.received["GetSandbox"]]
    for remaining, limit in zip(left, [60, 5, 7], strict=True):
        assert limit - 3 < remaining < limit + 1
    assert 297 < (server.received["CreateSandbox"][0].time_remaining or 0) < 301


async def test_a_server_that_does_not_answer_is_deadline_exceeded(server: ScriptedServer, client: AsyncClient) -> None:
    gone = threading.Event()
    server.expect("CreateSandbox", Hang(gone))
    with pytest.raises(opensandboxd.DeadlineExceededError):
        await client.create("img", timeout=0.2)
    assert await asyncio.to_thread(gone.wait, 5)


async def test_cancelling_a_call_hangs_up(server: ScriptedServer, client: AsyncClient) -> None:
    gone = threading.Event()
    server.expect("CreateSandbox", Hang(gone))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.create("img"), 0.3)
    assert await asyncio.to_thread(gone.wait, 5)


async def test_leaving_a_stream_hangs_up(server: ScriptedServer, client: AsyncClient) -> None:
    gone = threading.Event()
    server.expect("StreamLogs", pb2.StreamLogsResponse(data=b"1"), Hang(gone))
    logs = client.logs("sbx-1", follow=True)
    assert (await anext(logs)).data == b"1"
    await logs.aclose()
    assert await asyncio.to_thread(gone.wait, 5)


async def test_what_is_idempotent_is_tried_again_when_unavailable(server: ScriptedServer, client: AsyncClient) -> None:
    """A create's retry is the same request, so that the server finds the first one by its request_id."""
    server.expect("CreateSandbox", UNAVAILABLE)
    server.expect("CreateSandbox", UNAVAILABLE)
    server.expect("CreateSandbox", CREATED)
    assert (await client.create("img")).id == "sbx-1"
    first, second, third = server.requests("CreateSandbox")
    assert first == second == third
    server.expect("DeleteSandbox", UNAVAILABLE)
    server.expect("DeleteSandbox", pb2.DeleteSandboxResponse())
    await client.delete("sbx-1", allow_missing=True)
    server.expect("RenewSandbox", UNAVAILABLE)
    server.expect("RenewSandbox", pb2.RenewSandboxResponse())
    await client.renew("sbx-1", expire_time=NOON)


async def test_what_is_not_idempotent_is_sent_once(server: ScriptedServer, client: AsyncClient) -> None:
    for method in ("DeleteSandbox", "RenewSandbox", "UpdateSandbox"):
        server.expect(method, UNAVAILABLE)
    with pytest.raises(opensandboxd.UnavailableError):
        await client.delete("sbx-1")
    with pytest.raises(opensandboxd.UnavailableError):
        await client.renew("sbx-1", 60)
    with pytest.raises(opensandboxd.UnavailableError):
        await client.update("sbx-1", {"a": "b"}, etag="e")
    assert [len(server.received[m]) for m in ("DeleteSandbox", "RenewSandbox", "UpdateSandbox")] == [1, 1, 1]


async def test_only_unavailable_is_tried_again(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("GetSandbox", Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"))
    with pytest.raises(opensandboxd.ResourceExhaustedError):
        await client.get("sbx-1")
    assert len(server.received["GetSandbox"]) == 1


async def test_wait_asks_again_until_it_is_so(
    server: ScriptedServer, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opensandboxd.client._WAIT_TURN", 0.5)
    pending = sandbox_in(SandboxState.SANDBOX_STATE_PENDING)
    server.expect("WaitSandbox", pb2.WaitSandboxResponse(sandbox=pending))
    server.expect("WaitSandbox", pb2.WaitSandboxResponse(sandbox=sandbox_in(RUNNING), reached=True))
    assert (await client.wait("sbx-1", states=[RUNNING])).status.state == RUNNING
    expected = pb2.WaitSandboxRequest(id="sbx-1", states=[RUNNING], timeout=Duration(nanos=500_000_000))
    assert server.requests("WaitSandbox") == [expected, expected]


async def test_wait_raises_when_time_is_over_and_when_it_is_hopeless(
    server: ScriptedServer, client: AsyncClient
) -> None:
    pending = sandbox_in(SandboxState.SANDBOX_STATE_PENDING)
    server.expect("WaitSandbox", pb2.WaitSandboxResponse(sandbox=pending))
    with pytest.raises(opensandboxd.NotReachedError, match="sbx-1 is PENDING and time is over") as raised:
        await client.wait("sbx-1", timeout=0)
    assert raised.value.timed_out
    failed = sandbox_in(FAILED)
    failed.status.reason = "OOM_KILLED"
    server.expect("WaitSandbox", pb2.WaitSandboxResponse(sandbox=failed))
    with pytest.raises(opensandboxd.NotReachedError, match=r"FAILED \(OOM_KILLED\) and it cannot get there") as raised:
        await client.wait("sbx-1", states=[PAUSED])
    assert not raised.value.timed_out
    assert raised.value.sandbox == failed


async def test_a_closed_client_says_so(server: ScriptedServer) -> None:
    client = AsyncClient(server.target)
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("sbx-1")
