"""The API key: all four kinds of RPC want it; health and reflection do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from opensandboxd.v1 import runtime_service_pb2 as runtime_pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.rpc.interceptors import Calls, RequestInterceptor
from tests.harness import Server, serving
from tests.refusal import drained, refused

KEY = "s3cret-key"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
NAME = "open-sandbox-api-key"

WRONG: list[tuple[tuple[tuple[str, str], ...], str]] = [
    ((), "API_KEY_MISSING"),
    (((NAME, ""),), "API_KEY_MISSING"),
    (((NAME, "wrong"),), "API_KEY_INVALID"),
    (((NAME, KEY + "x"),), "API_KEY_INVALID"),
    (((NAME, KEY[:-1]),), "API_KEY_INVALID"),
    (((NAME, KEY.upper()),), "API_KEY_INVALID"),
    (((NAME, f"Bearer {KEY}"),), "API_KEY_INVALID"),
    (((NAME, KEY), (NAME, "wrong")), "API_KEY_INVALID"),
    (((NAME, "wrong"), (NAME, KEY)), "API_KEY_INVALID"),
    ((("authorization", KEY),), "API_KEY_MISSING"),
    ((("open-sandbox-api-key-bin", KEY),), "API_KEY_MISSING"),
]


class Echo:
    """One RPC of each kind, that notes whether it was ever reached."""

    def __init__(self) -> None:
        self.reached = 0

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        self.reached += 1
        return request

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.reached += 1
        yield request

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.reached += 1
        return b"".join([request async for request in requests])

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.reached += 1
        async for request in requests:
            yield request


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, grpc.aio.Channel]]:
    """A server of all four kinds behind the real interceptor."""
    service = Echo()
    server = grpc.aio.server(interceptors=[RequestInterceptor(KEY, "fake", Calls())])
    handlers = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(service, kind)) for kind in KINDS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service, channel
    await server.stop(0)


async def silent() -> AsyncIterator[bytes]:
    """The requests of a caller who waits to be answered first."""
    await asyncio.sleep(60)
    yield b""


async def call(
    channel: grpc.aio.Channel, kind: str, metadata: tuple[tuple[str, Any], ...], requests: Any = (b"a", b"b")
) -> bytes:
    method = getattr(channel, kind)(f"/test.Echo/{kind}")
    made = method(requests if kind.startswith("stream") else b"ab", metadata=metadata)
    if kind.endswith("stream"):
        return b"".join(await drained(made))
    return bytes(await made)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_right_key_is_let_in(echo: tuple[Echo, grpc.aio.Channel], kind: str) -> None:
    _, channel = echo
    assert await call(channel, kind, ((NAME, KEY),)) == b"ab"
    assert await call(channel, kind, ((NAME, KEY), (NAME, KEY))) == b"ab"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("metadata", "reason"), WRONG)
async def test_any_other_is_unauthenticated_and_never_reaches_the_servicer(
    echo: tuple[Echo, grpc.aio.Channel], kind: str, metadata: tuple[tuple[str, str], ...], reason: str
) -> None:
    service, channel = echo
    sent = tuple((key, value.encode() if key.endswith("-bin") else value) for key, value in metadata)

    async with asyncio.timeout(5):
        refusal = await refused(call(channel, kind, sent, silent()))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert service.reached == 0
    assert KEY not in str(refusal)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(server={"api_key": KEY}) as server:
        yield server


@pytest.mark.parametrize(
    "name",
    [method.name for method in rpc.DESCRIPTOR.services_by_name["SandboxService"].methods]
    + [method.name for method in runtime_pb.DESCRIPTOR.services_by_name["RuntimeService"].methods],
)
async def test_every_rpc_wants_the_key(server: Server, name: str) -> None:
    module: Any = rpc if hasattr(rpc, f"{name}Request") else runtime_pb
    stub = server.sandboxes if module is rpc else server.runtime
    made = getattr(stub, name)(getattr(module, f"{name}Request")())

    refusal = await refused(drained(made) if name in ("WatchSandboxes", "StreamLogs") else made)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "API_KEY_MISSING")


async def test_health_and_reflection_need_no_key(server: Server) -> None:
    health = health_pb2_grpc.HealthStub(server.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    reflection = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert (await drained(call))[0].list_services_response.service


async def test_a_key_of_any_printable_characters_works() -> None:
    for key in ("with spaces, and = signs", "x" * 4000, "!~\"'\\"):
        async with serving(server={"api_key": key}) as server:
            listed = await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest(), metadata=((NAME, key),))
            assert not listed.sandboxes


async def test_without_a_configured_key_none_is_wanted_and_any_is_ignored() -> None:
    async with serving() as server:
        for metadata in ((), ((NAME, "anything"),)):
            assert not (await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest(), metadata=metadata)).sandboxes
