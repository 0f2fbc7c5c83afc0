"""Admission and GetRuntimeInfo come from the same table: what is said to be unsupported is refused, by name, and what
is said to be supported is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from opensandboxd.v1 import runtime_service_pb2 as runtime_pb
from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.ports import DriverInfo
from opensandboxd_server.domain.runtimes import CAPABILITIES, RUNTIMES
from opensandboxd_server.drivers.fake import FakeDriver
from opensandboxd_server.settings import SettingsError
from tests.harness import Server, serving, settings
from tests.refusal import Refusal, drained, refused

IMAGE = {"uri": "img:1"}
POLICY = {"egress": [{"action": "NETWORK_ACTION_ALLOW", "target": "pypi.org"}]}
SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "endpoints": ({"image": IMAGE, "ports": [8080]}, "spec.ports"),
    "resources": ({"image": IMAGE, "resources": {"cpu": "1", "memory": "64Mi"}}, "spec.resources"),
    "gpu": ({"image": IMAGE, "resources": {"gpu": "1"}}, "spec.resources.gpu"),
    "platform": ({"image": IMAGE, "platform": {"os": "linux", "arch": "amd64"}}, "spec.platform"),
    "egress": ({"image": IMAGE, "networkPolicy": POLICY}, "spec.network_policy"),
    "volumes": (
        {"image": IMAGE, "volumes": [{"name": "v", "named": {"name": "n"}, "mountPath": "/m"}]},
        "spec.volumes",
    ),
    "host_path": (
        {"image": IMAGE, "volumes": [{"name": "v", "hostPath": {"path": "/srv"}, "mountPath": "/m"}]},
        "spec.volumes",
    ),
    "snapshots": ({"snapshot": {"id": "s"}}, "spec.snapshot"),
    "pools": ({"pool": {"name": "p"}}, "spec.pool"),
}
"""For each capability that a spec can ask for: such a spec, and the field that asks."""

VERBS = ("pause", "logs", "endpoints")
NOBODY_ASKS = {"full_syscalls", "privileged", "ipv6"}
RUNTIMES_ON_DOCKER = [name for name, runtime in RUNTIMES.items() if not runtime.docker_refusal]


class Lacking(FakeDriver):
    """A backend that lacks these capabilities, and no others."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    async def start(self) -> DriverInfo:
        return replace(await super().start(), unsupported={name: f"no {name} here" for name in self._names})


async def create(server: Server, spec: dict[str, Any], **fields: Any) -> pb.Sandbox:
    request = ParseDict({"spec": spec, **fields}, rpc.CreateSandboxRequest())
    sandbox: pb.Sandbox = (await server.sandboxes.CreateSandbox(request)).sandbox
    return sandbox


async def capabilities(server: Server) -> dict[str, runtime_pb.Capability]:
    return dict((await server.runtime.GetRuntimeInfo(runtime_pb.GetRuntimeInfoRequest())).capabilities)


def verb_calls(server: Server, id: str) -> dict[str, list[Callable[[], Awaitable[Any]]]]:
    stub = server.sandboxes
    return {
        "pause": [
            lambda: stub.PauseSandbox(rpc.PauseSandboxRequest(id=id)),
            lambda: stub.ResumeSandbox(rpc.ResumeSandboxRequest(id=id)),
        ],
        "logs": [lambda: drained(stub.StreamLogs(rpc.StreamLogsRequest(id=id)))],
        "endpoints": [lambda: stub.GetEndpoint(rpc.GetEndpointRequest(id=id, port=80, internal=True))],
    }


def names(refusal: Refusal, name: str, reason: str) -> bool:
    """Whether it says which capability is missing, and why."""
    return refusal.details["ErrorInfo"].metadata["capability"] == name and reason in refusal.message


def test_every_capability_is_looked_at_here() -> None:
    assert set(CAPABILITIES) == set(SPECS) | set(VERBS) | NOBODY_ASKS


@pytest.mark.parametrize("lacking", [(), *((name,) for name in CAPABILITIES), tuple(CAPABILITIES)])
@pytest.mark.parametrize("runtime", RUNTIMES_ON_DOCKER)
async def test_a_spec_is_refused_exactly_when_a_capability_it_asks_for_is_unsupported(
    runtime: str, lacking: tuple[str, ...]
) -> None:
    async with serving(Lacking(*lacking), secure_runtime={"type": runtime}) as server:
        told = await capabilities(server)
        assert set(told) == set(CAPABILITIES)
        assert all(not told[name].supported for name in lacking)
        for name, (spec, field) in SPECS.items():
            needs = {name, "volumes"} if name == "host_path" else {name}
            missing = [need for need in needs if not told[need].supported]
            if not missing:
                assert (await create(server, spec)).id
                continue
            refusal = await refused(create(server, spec))
            assert [*refusal.fields] == [field]
            assert any(names(refusal, need, told[need].reason) for need in missing)
            assert refusal.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
            assert (refusal.code is grpc.StatusCode.UNIMPLEMENTED) == (refusal.reason == "NOT_SERVED")
        supported = [spec for name, (spec, _) in SPECS.items() if told[name].supported]
        assert len(server.driver.backend.sandboxes) == len(supported)


@pytest.mark.parametrize("lacking", ["", *VERBS])
async def test_a_verb_is_unimplemented_exactly_when_its_capability_is_unsupported(lacking: str) -> None:
    async with serving(Lacking(lacking) if lacking else FakeDriver()) as server:
        told = await capabilities(server)
        sandbox = await create(server, {"image": IMAGE})
        for name, calls in verb_calls(server, sandbox.id).items():
            for call in calls:
                if told[name].supported:
                    await call()
                    continue
                refusal = await refused(call())
                assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_BY_DRIVER")
                assert names(refusal, name, told[name].reason)
        get = server.sandboxes.GetSandbox(rpc.GetSandboxRequest(id=sandbox.id))
        assert (await get).sandbox.status.state == pb.SANDBOX_STATE_RUNNING


async def test_under_gvisor_a_policy_and_a_gpu_are_refused_as_beyond_the_runtime() -> None:
    async with serving(Lacking(), secure_runtime={"type": "gvisor"}) as server:
        for name in ("egress", "gpu"):
            spec, field = SPECS[name]
            refusal = await refused(create(server, spec))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_BY_RUNTIME")
            assert [*refusal.fields] == [field]
            assert "gVisor" in refusal.message
        assert server.driver.backend.sandboxes == {}


@pytest.mark.parametrize("runtime", RUNTIMES_ON_DOCKER)
async def test_require_secure_runtime_asserts_that_there_is_one(runtime: str) -> None:
    async with serving(secure_runtime={"type": runtime}) as server:
        call = create(server, {"image": IMAGE, "requireSecureRuntime": True})
        if runtime:
            assert (await call).status.runtime.secure_runtime == runtime
        else:
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SECURE_RUNTIME_REQUIRED")
            assert "[secure_runtime] type" in refusal.message


@pytest.mark.parametrize("runtime", ["kata-fc", "firecracker"])
def test_firecracker_on_docker_is_refused_at_the_start(runtime: str) -> None:
    with pytest.raises((SettingsError, StartupError, ValueError), match="devmapper"):
        settings(secure_runtime={"type": runtime})


@pytest.mark.parametrize("runtime", RUNTIMES_ON_DOCKER)
async def test_the_table_of_secure_runtimes_says_which_is_configured(runtime: str) -> None:
    async with serving(secure_runtime={"type": runtime}) as server:
        reply = await server.runtime.ListSecureRuntimes(runtime_pb.ListSecureRuntimesRequest())
        info = await server.runtime.GetRuntimeInfo(runtime_pb.GetRuntimeInfoRequest())

    assert [r.type for r in reply.secure_runtimes] == [*RUNTIMES]
    assert [r.type for r in reply.secure_runtimes if r.configured] == [runtime] == [info.secure_runtime.type]
    [configured] = [r for r in reply.secure_runtimes if r.configured]
    assert configured.isolation == info.secure_runtime.isolation
    for name, capability in configured.capabilities.items():
        assert capability.supported or not info.capabilities[name].supported
    for name, capability in info.capabilities.items():
        assert capability.supported == (capability.reason == ""), name
