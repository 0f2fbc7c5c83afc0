"""What may be asked for, and what it becomes: spec + settings -> one frozen SandboxPlan, or a refusal by name.

The plan holds everything a driver needs, in a backend's units, so that drivers decide nothing about safety: they translate.
A plan is never weaker than the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from opensandboxd_server.domain.model import ImageSource, Platform, SandboxRuntime, SandboxSpec


@dataclass(frozen=True, slots=True)
class SecurityPlan:
    """Hardening that every sandbox of this server gets. `seccomp` is a profile's JSON, "" the backend's default;
    `pids_limit` None is no limit."""

    drop_capabilities: tuple[str, ...]
    no_new_privileges: bool
    pids_limit: int | None
    seccomp: str
    apparmor: str


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """One sandbox, decided. `spec` is without secrets and goes into the backend's labels; `image` may carry auth.

    `nano_cpus` are billionths of a core, `memory_bytes` bytes, 0 each for no limit; `gpus` a count.
    """

    id: str
    spec: SandboxSpec
    image: ImageSource
    metadata: Mapping[str, str]
    create_time: datetime
    expire_time: datetime | None
    runtime: SandboxRuntime
    security: SecurityPlan
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    entrypoint: tuple[str, ...] = ()
    nano_cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    platform: Platform | None = None
    ports: tuple[int, ...] = ()
