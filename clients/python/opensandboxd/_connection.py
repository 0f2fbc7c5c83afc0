"""Calls: stubs, deadline, API key, and errors translated."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub

from opensandboxd._channel import TLS, open_channel
from opensandboxd._convert import Duration, seconds
from opensandboxd.errors import translated
from opensandboxd.v1.runtime_service_pb2_grpc import RuntimeServiceStub
from opensandboxd.v1.sandbox_service_pb2_grpc import SandboxServiceStub

if TYPE_CHECKING:
    from opensandboxd.v1.runtime_service_pb2_grpc import RuntimeServiceAsyncStub
    from opensandboxd.v1.sandbox_service_pb2_grpc import SandboxServiceAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Stubs:
    """`retried` for what the contract names idempotent, `once` for what must not be sent twice."""

    channels: tuple[grpc.aio.Channel, ...]
    retried: SandboxServiceAsyncStub
    once: SandboxServiceAsyncStub
    runtime: RuntimeServiceAsyncStub
    health: HealthStub


class Connection:
    """`api_key` "" sends none; `timeout` is in seconds, for calls that name none."""

    def __init__(self, target: str, api_key: str, tls: TLS | None, timeout: float) -> None:
        self._target = target
        self._metadata = (("open-sandbox-api-key", api_key),) if api_key else ()
        self._tls = tls
        self._timeout = timeout
        self._stubs: Stubs | None = None
        self._closed = False

    @property
    def stubs(self) -> Stubs:
        """Made at first use, because a channel belongs to the event loop that runs when it is made."""
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._stubs is None:
            self._stubs = self._open()
        return self._stubs

    async def close(self) -> None:
        self._closed = True
        stubs, self._stubs = self._stubs, None
        for channel in stubs.channels if stubs else ():
            await channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: Duration | None = None,
    ) -> Response:
        deadline = self._timeout if timeout is None else seconds(timeout)
        with translated(self._target):
            return await method(request, timeout=deadline, metadata=self._metadata)

    async def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> AsyncGenerator[Response, None]:
        call = method(request, metadata=self._metadata)
        try:
            with translated(self._target):
                async for response in call:
                    yield response
        finally:
            call.cancel()

    def _open(self) -> Stubs:
        retried = open_channel(self._target, self._tls, retry=True)
        once = open_channel(self._target, self._tls, retry=False)
        return Stubs(
            channels=(retried, once),
            retried=SandboxServiceStub(retried),
            once=SandboxServiceStub(once),
            runtime=RuntimeServiceStub(retried),
            health=HealthStub(retried),
        )
