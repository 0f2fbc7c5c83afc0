"""What is called over gRPC: the empty server and opensandboxd, both by the same loop over grpc.aio."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.empty_server import METHOD, SERVICE
from bench.processes import PATIENCE, Process, free_port, listens, running
from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as service_pb
from opensandboxd.v1 import sandbox_service_pb2_grpc as service_grpc

COMMAND = str(Path(sys.executable).with_name("opensandboxd"))
_KEY_FROM_OUTSIDE = "OPENSANDBOX_SERVER_API_KEY"
"""Would win over the configuration's key."""


class EmptyRpc:
    """Carries the metadata that a call of opensandboxd does, and nothing else."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.unary_unary(f"/{SERVICE}/{METHOD}")

    async def call(self) -> None:
        await self._call(b"", metadata=_metadata("a key that nobody looks at"), timeout=PATIENCE)


class Opensandboxd:
    """A server of ours, through the generated stubs. `instance` is the name it goes by on the engine."""

    def __init__(self, process: Process, instance: str, stub: Any, api_key: str, spec: pb.SandboxSpec) -> None:
        self.process = process
        self.instance = instance
        self._stub = stub
        self._metadata = _metadata(api_key)
        self._create = service_pb.CreateSandboxRequest(spec=spec, metadata={"made-by": "bench"})
        self._create.ttl.FromSeconds(3600)

    async def create(self) -> str:
        """Returns the id of a RUNNING sandbox."""
        response = await self._stub.CreateSandbox(self._create, metadata=self._metadata, timeout=PATIENCE)
        return str(response.sandbox.id)

    async def delete(self, id: str) -> None:
        await self._stub.DeleteSandbox(
            service_pb.DeleteSandboxRequest(id=id), metadata=self._metadata, timeout=PATIENCE
        )

    async def get(self, id: str) -> None:
        await self._stub.GetSandbox(service_pb.GetSandboxRequest(id=id), metadata=self._metadata, timeout=PATIENCE)

    async def list(self, page_size: int) -> int:
        """Returns how many sandboxes are on the first page."""
        request = service_pb.ListSandboxesRequest(page_size=page_size)
        response = await self._stub.ListSandboxes(request, metadata=self._metadata, timeout=PATIENCE)
        return len(response.sandboxes)


@asynccontextmanager
async def empty_server(directory: Path) -> AsyncIterator[EmptyRpc]:
    port = free_port()
    with running("empty-rpc", [sys.executable, "-m", "bench.empty_server", str(port)], directory) as process:
        process.until(lambda: listens(port))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield EmptyRpc(channel)


@asynccontextmanager
async def opensandboxd(
    instance: str, directory: Path, spec: pb.SandboxSpec, *, secure_runtime: str = "", fake: bool = False
) -> AsyncIterator[Opensandboxd]:
    """A server in a process of its own, with an API key and a SQLite store; on the fake driver if told so."""
    port, api_key = free_port(), secrets.token_urlsafe(24)
    config = directory / f"{instance}.toml"
    config.write_text(
        toml(
            server={"host": "127.0.0.1", "port": port, "api_key": api_key, "instance": instance},
            runtime={"type": "docker"},
            secure_runtime={"type": secure_runtime},
            store={"path": str(directory / f"{instance}.db")},
        )
    )
    command = [sys.executable, "-m", "bench.fake_server", str(config)] if fake else [COMMAND, "--config", str(config)]
    with running(instance, command, directory, {_KEY_FROM_OUTSIDE: api_key}) as process:
        process.until(lambda: listens(port))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Opensandboxd(process, instance, service_grpc.SandboxServiceStub(channel), api_key, spec)


def _metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    return (("open-sandbox-api-key", api_key),)


def toml(**sections: dict[str, str | int | bool]) -> str:
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()) + "\n"
        for name, keys in sections.items()
    )
