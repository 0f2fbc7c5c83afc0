"""What may be asked for, and what it becomes: spec + settings -> one frozen SandboxPlan, or a refusal by name.

The plan holds everything a driver needs, in a backend's units: drivers decide nothing about safety, they translate.
A plan is never weaker than the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from opensandboxd_server.domain import quantities
from opensandboxd_server.domain.errors import FailedPrecondition, InvalidArgument, Unsupported
from opensandboxd_server.domain.model import (
    CreateRequest,
    Expiration,
    HostPathSource,
    ImageSource,
    Platform,
    PoolSource,
    SandboxRuntime,
    SandboxSpec,
    SnapshotSource,
)
from opensandboxd_server.domain.runtimes import CAPABILITIES, Capability
from opensandboxd_server.domain.validate import check_create
from opensandboxd_server.settings import Settings


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


_ASKS: tuple[tuple[str, str, Callable[[SandboxSpec], bool]], ...] = (
    ("snapshots", "spec.snapshot", lambda spec: isinstance(spec.source, SnapshotSource)),
    ("pools", "spec.pool", lambda spec: isinstance(spec.source, PoolSource)),
    ("egress", "spec.network_policy", lambda spec: spec.network_policy is not None),
    ("host_path", "spec.volumes", lambda spec: any(isinstance(v.source, HostPathSource) for v in spec.volumes)),
    ("volumes", "spec.volumes", lambda spec: bool(spec.volumes)),
    ("gpu", "spec.resources.gpu", lambda spec: bool(spec.resources.gpu)),
    ("resources", "spec.resources", lambda spec: bool(spec.resources.cpu or spec.resources.memory)),
    ("platform", "spec.platform", lambda spec: spec.platform is not None),
    ("endpoints", "spec.ports", lambda spec: bool(spec.ports)),
)
"""Which capability a spec needs: capability, the field that asks for it, whether this spec does."""

MIN_TTL = timedelta(seconds=60)


class Policy:
    """Admission: the settings, and what the backend was found to have, against one request at a time."""

    def __init__(self, settings: Settings, runtime: SandboxRuntime, capabilities: Mapping[str, Capability], cpus: int):
        self.runtime = runtime
        self.capabilities = capabilities
        self._cpus = cpus
        self._max_ttl = settings.server.max_sandbox_timeout_seconds
        self._security = SecurityPlan(
            drop_capabilities=tuple(settings.docker.drop_capabilities),
            no_new_privileges=settings.docker.no_new_privileges,
            pids_limit=settings.docker.pids_limit,
            seccomp=settings.docker.seccomp_json,
            apparmor=settings.docker.apparmor_profile or "",
        )

    def plan(self, request: CreateRequest, id: str, now: datetime) -> SandboxPlan:
        """The plan for an admissible request; InvalidArgument, Unsupported or FailedPrecondition for any other."""
        check_create(request)
        spec = request.spec
        self._refuse_what_cannot_be_honoured(spec)
        if not isinstance(spec.source, ImageSource):
            raise InvalidArgument.of("spec.image", "is required: say which image to run")
        nano_cpus = quantities.nano_cpus(spec.resources.cpu) if spec.resources.cpu else 0
        if self._cpus and nano_cpus > self._cpus * 10**9:
            raise InvalidArgument.of("spec.resources.cpu", f"the backend has {self._cpus} cores; ask for no more")
        return SandboxPlan(
            id=id,
            spec=spec.without_auth(),
            image=spec.source,
            metadata=dict(request.metadata),
            create_time=now,
            expire_time=self.expiry(request.expiration, now),
            runtime=self.runtime,
            security=self._security,
            env=dict(spec.env),
            entrypoint=spec.entrypoint,
            nano_cpus=nano_cpus,
            memory_bytes=quantities.memory_bytes(spec.resources.memory) if spec.resources.memory else 0,
            gpus=quantities.count(spec.resources.gpu) if spec.resources.gpu else 0,
            platform=spec.platform,
            ports=spec.ports,
        )

    def require(self, capability: str) -> None:
        """Unsupported when this server cannot honour the verbs that are this capability."""
        known = self.capabilities[capability]
        if not known.supported:
            raise Unsupported(known.word, f"{CAPABILITIES[capability]}: {known.reason}", capability=capability)

    def expiry(self, expiration: Expiration, now: datetime) -> datetime | None:
        """When a sandbox created or renewed `now` expires; InvalidArgument outside the bounds."""
        if expiration.ttl is not None:
            left = expiration.ttl
        elif expiration.at is not None:
            left = expiration.at - now
        else:
            return None
        if left < MIN_TTL:
            raise InvalidArgument.of(expiration.field, f"must be at least {MIN_TTL.seconds} s ahead")
        if self._max_ttl and left > timedelta(seconds=self._max_ttl):
            raise InvalidArgument.of(expiration.field, f"must be at most {self._max_ttl} s ahead on this server")
        try:
            return now + left
        except OverflowError:
            raise InvalidArgument.of(
                expiration.field, "is after the end of time; leave it unset for no expiry"
            ) from None

    def _refuse_what_cannot_be_honoured(self, spec: SandboxSpec) -> None:
        for name, path, asks in _ASKS:
            capability = self.capabilities[name]
            if capability.supported or not asks(spec):
                continue
            if capability.word == "NOT_SERVED":
                raise Unsupported(capability.word, f"{path}: {capability.reason}", field=path, capability=name)
            raise InvalidArgument.of(path, capability.reason, reason=capability.word, capability=name)
        if spec.require_secure_runtime and not self.runtime.secure_runtime:
            raise FailedPrecondition(
                "SECURE_RUNTIME_REQUIRED",
                "spec.require_secure_runtime is set, and this server runs sandboxes under runc; "
                "configure [secure_runtime] type, or use a server that has one",
                subject="secure_runtime",
            )
