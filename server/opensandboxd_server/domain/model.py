"""What a sandbox is: immutable values that every layer passes around.

Times are timezone-aware UTC datetimes; an absent time is None. Quantities are the caller's own text ("500m", "512Mi");
domain.policy turns them into the units a backend takes. Secrets are kept out of every repr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum


class SandboxState(Enum):
    """Where in its life a sandbox is; see SandboxState in the contract."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    RESUMING = "RESUMING"
    STOPPING = "STOPPING"
    TERMINATED = "TERMINATED"
    FAILED = "FAILED"

    @property
    def final(self) -> bool:
        return self in (SandboxState.TERMINATED, SandboxState.FAILED)


class Isolation(Enum):
    """What stands between a sandbox and the host."""

    PROCESS = "process"
    USER_SPACE_KERNEL = "user-space kernel"
    VM = "VM"
    MICRO_VM = "microVM"


class NetworkAction(Enum):
    DENY = "DENY"
    ALLOW = "ALLOW"


class LogStream(Enum):
    STDOUT = "stdout"
    STDERR = "stderr"


class ReturnWhen(Enum):
    RUNNING = "RUNNING"
    ACCEPTED = "ACCEPTED"


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """Credentials for one pull. Never stored, logged or returned."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageSource:
    uri: str
    auth: RegistryAuth | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    id: str


@dataclass(frozen=True, slots=True)
class PoolSource:
    name: str


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """Kubernetes quantities; "" is no limit."""

    cpu: str = ""
    memory: str = ""
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class EgressRule:
    action: NetworkAction | None
    target: str


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    default_action: NetworkAction = NetworkAction.DENY
    egress: tuple[EgressRule, ...] = ()


@dataclass(frozen=True, slots=True)
class HostPathSource:
    path: str


@dataclass(frozen=True, slots=True)
class NamedVolumeSource:
    name: str


@dataclass(frozen=True, slots=True)
class Volume:
    name: str
    source: HostPathSource | NamedVolumeSource | None
    mount_path: str
    read_only: bool = False
    sub_path: str = ""


@dataclass(frozen=True, slots=True)
class Platform:
    os: str = ""
    arch: str = ""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox is made from; see SandboxSpec in the contract."""

    source: ImageSource | SnapshotSource | PoolSource | None
    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    resources: ResourceLimits = ResourceLimits()
    network_policy: NetworkPolicy | None = None
    volumes: tuple[Volume, ...] = ()
    platform: Platform | None = None
    require_secure_runtime: bool = False
    ports: tuple[int, ...] = ()

    def without_auth(self) -> SandboxSpec:
        """The spec as it may be stored and returned."""
        if isinstance(self.source, ImageSource) and self.source.auth:
            return replace(self, source=ImageSource(self.source.uri))
        return self


@dataclass(frozen=True, slots=True)
class SandboxRuntime:
    """The runtime a sandbox was created under. `secure_runtime` "" is runc; a backend's name "" is its default."""

    secure_runtime: str
    isolation: Isolation
    oci_runtime: str = ""
    runtime_class: str = ""


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    state: SandboxState
    runtime: SandboxRuntime
    last_transition_time: datetime
    reason: str = ""
    message: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox as callers see it. `revision` counts changes of metadata and expire_time; the etag is made of it."""

    id: str
    metadata: Mapping[str, str]
    spec: SandboxSpec
    status: SandboxStatus
    create_time: datetime
    expire_time: datetime | None = None
    revision: int = 0

    @property
    def etag(self) -> str:
        return f'"{self.revision}"'

    @property
    def weight(self) -> int:
        """Roughly how many bytes it takes in memory: the caller's own text, and what there always is."""
        texts = (self.spec.entrypoint, self.spec.env, self.spec.env.values(), self.metadata)
        return 1024 + sum(len(text) for part in texts for text in part)


@dataclass(frozen=True, slots=True)
class Expiration:
    """When to delete: `ttl` after now, or `at` a time; at most one of them. Neither: not before it is asked for."""

    ttl: timedelta | None = None
    at: datetime | None = None

    @property
    def field(self) -> str:
        return "ttl" if self.ttl is not None else "expire_time"


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """One CreateSandbox. `request_id` "": not idempotent."""

    spec: SandboxSpec
    metadata: Mapping[str, str] = field(default_factory=dict)
    expiration: Expiration = Expiration()
    request_id: str = ""
    validate_only: bool = False
    return_when: ReturnWhen = ReturnWhen.RUNNING


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`tail_lines` None: all that the backend kept; `streams` empty: both."""

    follow: bool = False
    tail_lines: int | None = None
    since: datetime | None = None
    streams: frozenset[LogStream] = frozenset()


@dataclass(frozen=True, slots=True)
class LogChunk:
    stream: LogStream
    data: bytes
    time: datetime
