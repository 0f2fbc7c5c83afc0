"""What this server runs sandboxes on, and what it can honour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opensandboxd_server.domain.model import SandboxRuntime
from opensandboxd_server.domain.ports import DriverInfo
from opensandboxd_server.domain.runtimes import RUNTIMES, Capability, RuntimeAvailability, SecureRuntime


@dataclass(frozen=True, slots=True)
class RuntimeEntry:
    """One line of the table of secure runtimes, as this server sees it."""

    runtime: SecureRuntime
    availability: RuntimeAvailability
    configured: bool


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """Everything RuntimeService tells; fixed at the start of the server."""

    server_version: str
    driver: DriverInfo
    runtime: SandboxRuntime
    capabilities: Mapping[str, Capability]

    def secure_runtimes(self) -> list[RuntimeEntry]:
        unknown = RuntimeAvailability(False, "this backend does not tell")
        return [
            RuntimeEntry(
                runtime, self.driver.runtimes.get(runtime.type, unknown), runtime.type == self.runtime.secure_runtime
            )
            for runtime in RUNTIMES.values()
        ]
