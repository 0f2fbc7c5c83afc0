"""Reflection v1 and v1alpha, by a tool that people use: `buf curl` lists, describes and calls everything."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opensandboxd.v1 import runtime_service_pb2, sandbox_service_pb2
from tests.harness import Server, serving

BUF = Path(sys.executable).with_name("buf")
METHODS = [
    f"{service.full_name}/{method.name}"
    for module in (sandbox_service_pb2, runtime_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(server={"api_key": "k3y"}) as server:
        yield server


async def buf_curl(server: Server, *arguments: str, path: str = "") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments, f"http://{server.address}{path}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    return process.returncode or 0, out.decode(), errors.decode()


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
async def test_services_and_methods_are_listed(server: Server, version: str) -> None:
    code, services, errors = await buf_curl(server, "--reflect-protocol", version, "--list-services")
    assert code == 0, errors
    assert set(services.split()) >= {
        "opensandboxd.v1.SandboxService",
        "opensandboxd.v1.RuntimeService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }

    code, methods, errors = await buf_curl(server, "--reflect-protocol", version, "--list-methods")
    assert code == 0, errors
    assert set(methods.split()) >= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_can_be_called(server: Server, method: str) -> None:
    """With an empty request, and a resource version that ends a watch: what answers is the server, in its own words."""
    body = {"resourceVersion": "x"} if method.endswith("WatchSandboxes") else {}
    code, out, errors = await buf_curl(
        server, "--header", "open-sandbox-api-key: k3y", "--data", json.dumps(body), path=f"/{method}"
    )

    if code == 0:
        assert isinstance(json.loads(out), dict)
        return
    failure = json.loads(errors)
    assert failure["code"] == "invalid_argument"
    assert re.match(r"(id|spec\.image|ttl|resource_version|port): ", failure["message"])


async def test_a_sandbox_lives_its_life_by_buf_curl(server: Server) -> None:
    async def call(method: str, **body: object) -> dict[str, dict[str, object]]:
        code, out, errors = await buf_curl(
            server,
            "--header",
            "open-sandbox-api-key: k3y",
            "--data",
            json.dumps(body),
            path=f"/opensandboxd.v1.SandboxService/{method}",
        )
        assert code == 0, errors
        return dict(json.loads(out))

    created = (await call("CreateSandbox", spec={"image": {"uri": "img:1"}}, ttl="90s", metadata={"a": "b"}))["sandbox"]
    id = str(created["id"])
    assert (await call("PauseSandbox", id=id))["sandbox"]["status"]["state"] == "SANDBOX_STATE_PAUSED"  # type: ignore[index]
    assert (await call("ResumeSandbox", id=id))["sandbox"]["status"]["state"] == "SANDBOX_STATE_RUNNING"  # type: ignore[index]
    assert (await call("StreamLogs", id=id))["data"]
    assert await call("DeleteSandbox", id=id) == {}


async def test_reflection_needs_no_key_and_the_call_does(server: Server) -> None:
    code, _, errors = await buf_curl(server, "--data", "{}", path="/opensandboxd.v1.SandboxService/ListSandboxes")

    assert code != 0
    assert json.loads(errors)["code"] == "unauthenticated"
