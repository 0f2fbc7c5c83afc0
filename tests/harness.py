"""A real server for a test: grpc.aio on a free port of loopback, over whichever driver and store the test brings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from opensandboxd.v1 import runtime_service_pb2_grpc, sandbox_service_pb2_grpc
from opensandboxd_server.app import App
from opensandboxd_server.domain.ports import Clock, SandboxDriver, SandboxStore
from opensandboxd_server.drivers.fake import FakeDriver
from opensandboxd_server.settings import Settings
from opensandboxd_server.store.memory import MemoryStore


@dataclass(frozen=True)
class Server:
    """`sandboxes` and `runtime` are raw stubs: what a caller without our client sees."""

    app: App
    driver: Any
    channel: grpc.aio.Channel
    sandboxes: Any
    runtime: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.app.port}"


def settings(**sections: Any) -> Settings:
    """Settings for Docker with everything at its default but the keys given, a dict for each section."""
    return Settings(**{"runtime": {"type": "docker"}, **sections})


@asynccontextmanager
async def serving(
    driver: SandboxDriver | None = None,
    store: SandboxStore | None = None,
    clock: Clock | None = None,
    **sections: Any,
) -> AsyncIterator[Server]:
    """A server on the fake driver and a store in memory unless told otherwise; stopped at the end."""
    driver = driver or FakeDriver()
    app = await App.start(
        settings(**sections), driver=driver, store=store or MemoryStore(), clock=clock, address="127.0.0.1:0"
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            yield Server(
                app,
                driver,
                channel,
                sandbox_service_pb2_grpc.SandboxServiceStub(channel),
                runtime_service_pb2_grpc.RuntimeServiceStub(channel),
            )
    finally:
        await app.stop()
