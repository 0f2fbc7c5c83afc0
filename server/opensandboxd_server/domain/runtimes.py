"""The secure runtimes this project knows, what each can and costs: the one table behind admission, GetRuntimeInfo and
ListSecureRuntimes. From DESIGN section 5; figures are of gVisor's, Kata's and OpenSandbox's own guides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from opensandboxd_server.domain.model import Isolation

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Capability:
    """`word` is the error reason of a request that needs it in vain."""

    supported: bool
    reason: str = ""
    word: str = ""


@dataclass(frozen=True, slots=True)
class SecureRuntime:
    """`oci_runtime` and `runtime_class` are the names looked for unless configured; "" is the backend's default.

    `unsupported` maps a capability to why this runtime lacks it. `docker_refusal` is why Docker cannot run it, if so.
    """

    type: str
    isolation: Isolation
    oci_runtime: str
    runtime_class: str
    start_overhead_ms: tuple[int, int]
    memory_overhead: int
    best_for: str
    install: str
    unsupported: Mapping[str, str]
    docker_refusal: str = ""

    def capabilities(self) -> dict[str, Capability]:
        """What the runtime itself can, whatever the server makes of it."""
        return {
            name: Capability(name not in self.unsupported, self.unsupported.get(name, ""))
            for name in RUNTIME_CAPABILITIES
        }


@dataclass(frozen=True, slots=True)
class RuntimeAvailability:
    available: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeProof:
    """What a throw-away container saw from inside: the kernel's own words, and when."""

    kernel: str
    time: datetime


CAPABILITIES: Mapping[str, str] = {
    "pause": "PauseSandbox and ResumeSandbox",
    "logs": "StreamLogs",
    "endpoints": "GetEndpoint and spec.ports",
    "resources": "cpu and memory limits",
    "gpu": "spec.resources.gpu",
    "platform": "spec.platform",
    "egress": "spec.network_policy",
    "volumes": "named volumes in spec.volumes",
    "host_path": "host paths in spec.volumes",
    "snapshots": "spec.snapshot",
    "pools": "spec.pool",
    "full_syscalls": "every system call of the host's kernel",
    "privileged": "systemd and privileged workloads inside the sandbox",
    "ipv6": "IPv6 inside the sandbox",
}
"""Everything that a server can be asked for and may lack, with what it means."""

RUNTIME_CAPABILITIES = ("full_syscalls", "gpu", "privileged", "egress", "volumes", "host_path", "ipv6")
"""Those of them that depend on the secure runtime."""

_NOT_SERVED = "not served by this version"
NOT_SERVED: Mapping[str, str] = {
    "egress": f"{_NOT_SERVED}; leave spec.network_policy unset and filter at the network",
    "volumes": f"{_NOT_SERVED}; leave spec.volumes empty and bring files in the image",
    "host_path": f"{_NOT_SERVED}; leave spec.volumes empty and bring files in the image",
    "snapshots": f"{_NOT_SERVED}; use spec.image",
    "pools": f"{_NOT_SERVED}; use spec.image",
    "privileged": "sandboxes are never privileged on this server",
}

_KATA_INSTALL = "install Kata Containers and register its shim with the backend: docs/secure-runtimes.md"
_GVISOR_UNSUPPORTED = {
    "full_syscalls": "gVisor implements most of Linux's system calls, not all; choose kata-qemu for the rest",
    "gpu": "gVisor gives no GPU to sandboxes here; choose runc or kata-qemu",
    "privileged": "gVisor runs neither systemd nor privileged workloads; choose kata-qemu",
    "egress": "gVisor's network stack does not meet the egress sidecar's rules, so a policy would fail open; "
    "choose runc or Kata",
}
_FIRECRACKER_UNSUPPORTED = {
    "full_syscalls": "Firecracker's guest kernel is minimal; choose kata-qemu",
    "gpu": "Firecracker passes no devices through; choose kata-qemu",
    "privileged": "Firecracker's guest runs neither systemd nor privileged workloads; choose kata-qemu",
    "host_path": "Firecracker has no virtio-fs; choose kata-qemu or a named volume",
}
_FIRECRACKER_ON_DOCKER = (
    "Firecracker needs the devmapper snapshotter, which Docker does not have; choose kata-qemu or use Kubernetes"
)

RUNC = SecureRuntime(
    "", Isolation.PROCESS, "", "", (0, 0), 0, "trusted workloads, local development", "", {},
)  # fmt: skip
_RUNTIMES = (
    RUNC,
    SecureRuntime(
        "gvisor", Isolation.USER_SPACE_KERNEL, "runsc", "gvisor", (10, 50), 50 * MIB, "general workloads",
        "install runsc (gVisor) and register it: docs/secure-runtimes.md", _GVISOR_UNSUPPORTED,
    ),
    SecureRuntime(
        "kata", Isolation.VM, "kata-runtime", "kata-qemu", (500, 500), 50 * MIB,
        "maximum compatibility and isolation", _KATA_INSTALL, {},
    ),
    SecureRuntime(
        "kata-qemu", Isolation.VM, "kata-runtime", "kata-qemu", (500, 500), 50 * MIB,
        "maximum compatibility and isolation", _KATA_INSTALL, {},
    ),
    SecureRuntime(
        "kata-clh", Isolation.VM, "kata-clh", "kata-clh", (200, 200), 20 * MIB, "balanced", _KATA_INSTALL, {},
    ),
    SecureRuntime(
        "kata-fc", Isolation.MICRO_VM, "", "kata-fc", (125, 125), 5 * MIB, "high density", _KATA_INSTALL,
        _FIRECRACKER_UNSUPPORTED, _FIRECRACKER_ON_DOCKER,
    ),
    SecureRuntime(
        "firecracker", Isolation.MICRO_VM, "", "kata-fc", (125, 125), 5 * MIB, "high density", _KATA_INSTALL,
        _FIRECRACKER_UNSUPPORTED, _FIRECRACKER_ON_DOCKER,
    ),
)  # fmt: skip
RUNTIMES: Mapping[str, SecureRuntime] = {runtime.type: runtime for runtime in _RUNTIMES}


def capabilities_of(runtime: SecureRuntime, driver_lacks: Mapping[str, str]) -> dict[str, Capability]:
    """What a server can honour: everything but what this version does not serve, what its driver lacks and what its
    runtime cannot. The most lasting reason is the one told."""
    lacking = (
        {name: Capability(False, why, "NOT_SERVED") for name, why in NOT_SERVED.items()}
        | {name: Capability(False, why, "UNSUPPORTED_BY_DRIVER") for name, why in driver_lacks.items()}
        | {name: Capability(False, why, "UNSUPPORTED_BY_RUNTIME") for name, why in runtime.unsupported.items()}
    )
    return {name: lacking.get(name, Capability(True)) for name in CAPABILITIES}
