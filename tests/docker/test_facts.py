"""What the driver concludes from what an engine says of itself, for engines that are not here."""

from __future__ import annotations

from typing import Any

import pytest

from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.model import Isolation, SandboxState
from opensandboxd_server.domain.runtimes import RUNTIMES
from opensandboxd_server.drivers.docker.engine import check_runtime, unsupported, warnings
from opensandboxd_server.drivers.docker.options import DockerOptions
from opensandboxd_server.drivers.docker.proof import mismatch, read_kernel
from opensandboxd_server.drivers.docker.state import of_inspected

ABLE = {"MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True, "SwapLimit": True}
GVISOR = DockerOptions("blue", runtime=RUNTIMES["gvisor"], oci_runtime="runsc")


def info(*arguments: str, **changes: Any) -> dict[str, Any]:
    runsc = {"path": "/usr/bin/runsc", "runtimeArgs": list(arguments)}
    return {"Runtimes": {"runc": {"path": "runc"}, "runsc": runsc}} | ABLE | changes


def test_gvisors_own_netstack_is_warned_of_where_names_resolve_through_the_engine() -> None:
    [warning] = warnings(info(), GVISOR)
    assert "names will not resolve" in warning
    assert "--network=host" in warning
    assert warnings(info("--network=host"), GVISOR) == []
    assert warnings(info(), DockerOptions("blue")) == [], "runc"
    assert warnings(info(), DockerOptions("blue", network_mode="host", oci_runtime="runsc")) == []


@pytest.mark.parametrize(("fact", "word"), [("PidsLimit", "pids_limit"), ("SwapLimit", "swap")])
def test_a_limit_that_the_engine_cannot_keep_is_warned_of(fact: str, word: str) -> None:
    [warning] = warnings(info(**{fact: False}), DockerOptions("blue"))
    assert word in warning


@pytest.mark.parametrize("fact", ["MemoryLimit", "CpuCfsQuota"])
def test_resources_are_unsupported_where_the_engine_would_leave_them_out(fact: str) -> None:
    assert "resources" in unsupported(info(**{fact: False}), DockerOptions("blue"))
    assert "resources" not in unsupported(info(), DockerOptions("blue"))


def test_gpus_need_nvidias_runtime_or_devices() -> None:
    options = DockerOptions("blue")
    assert "gpu" in unsupported(info(), options)
    assert "gpu" not in unsupported(info(Runtimes={"nvidia": {"path": "nvidia-container-runtime"}}), options)
    assert "gpu" not in unsupported(info(DiscoveredDevices=[{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]), options)


def test_endpoints_need_a_network() -> None:
    assert "endpoints" in unsupported(info(), DockerOptions("blue", network_mode="none"))


@pytest.mark.parametrize("type", ["kata-fc", "firecracker"])
def test_firecracker_is_refused_whatever_the_engine_has(type: str) -> None:
    with pytest.raises(StartupError, match="devmapper"):
        check_runtime(info(), DockerOptions("blue", runtime=RUNTIMES[type]))


HOST = b"Linux\nbox\n6.1.0-18-amd64\n#1 SMP Debian\nx86_64\n"
GUEST = b"Linux\nbox\n5.19.2\n#2 SMP\nx86_64\n<5>[    0.000000] Linux version 5.19.2\n"
SENTRY = b"Linux\nbox\n4.4.0\n#1 SMP\nx86_64\n<6>[   0.000000] Starting gVisor...\n<6>[   0.5] Ready!\n"


@pytest.mark.parametrize(
    ("output", "isolation", "proved"),
    [
        (SENTRY, Isolation.USER_SPACE_KERNEL, True),
        (HOST, Isolation.USER_SPACE_KERNEL, False),
        (GUEST, Isolation.USER_SPACE_KERNEL, False),
        (GUEST, Isolation.VM, True),
        (GUEST, Isolation.MICRO_VM, True),
        (HOST, Isolation.VM, False),
        (HOST, Isolation.MICRO_VM, False),
    ],
)
def test_a_kernel_proves_only_what_it_is(output: bytes, isolation: Isolation, proved: bool) -> None:
    assert (mismatch(read_kernel(output), isolation, "6.1.0-18-amd64") == "") == proved


def test_what_signals_and_removals_leave_is_told_as_it_is() -> None:
    def ended(code: int, **changes: Any) -> Any:
        state = {"Status": "exited", "ExitCode": code, "OOMKilled": False, "Error": ""} | changes
        times = {"StartedAt": "2026-01-01T00:00:00.123456789Z", "FinishedAt": "2026-01-01T00:00:01.987654321Z"}
        return of_inspected({"State": state | times, "HostConfig": {"Memory": 0}})

    assert [(ended(code).reason, ended(code).state) for code in (0, 1, 128, 137, 143, 255)] == [
        ("ENTRYPOINT_EXITED", SandboxState.TERMINATED),
        ("ENTRYPOINT_EXITED", SandboxState.FAILED),
        ("ENTRYPOINT_EXITED", SandboxState.FAILED),
        ("KILLED", SandboxState.FAILED),
        ("KILLED", SandboxState.FAILED),
        ("ENTRYPOINT_EXITED", SandboxState.FAILED),
    ]
    assert "SIGTERM" in ended(143).message
    assert "memory" not in ended(137).message
    assert ended(0).time.microsecond == 987654
    assert ended(137, Status="removing") is None
