"""The seams of the house: what the use cases need of a backend, a store and a clock.

Implementations live in drivers/ and store/; tests/conformance holds every driver to the sentences below.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from opensandboxd_server.domain.model import (
    Endpoint,
    LogChunk,
    LogOptions,
    SandboxRuntime,
    SandboxSpec,
    SandboxState,
)
from opensandboxd_server.domain.policy import SandboxPlan
from opensandboxd_server.domain.runtimes import RuntimeAvailability, RuntimeProof


class Clock(Protocol):
    def now(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Observation:
    """One sandbox as the backend has it: what was fixed at creation, and its state now.

    `metadata` and `expire_time` are those of creation; what was changed since is in the store.
    `state` is one of PENDING (made, not started), RUNNING, PAUSED, TERMINATED, FAILED.
    """

    id: str
    spec: SandboxSpec
    metadata: Mapping[str, str]
    create_time: datetime
    expire_time: datetime | None
    runtime: SandboxRuntime
    state: SandboxState
    state_time: datetime
    reason: str = ""
    message: str = ""
    exit_code: int | None = None

    @classmethod
    def planned(
        cls,
        plan: SandboxPlan,
        state: SandboxState = SandboxState.PENDING,
        reason: str = "CREATING",
        message: str = "",
    ) -> Observation:
        """A sandbox that is being made, or could not be."""
        return cls(
            id=plan.id,
            spec=plan.spec,
            metadata=plan.metadata,
            create_time=plan.create_time,
            expire_time=plan.expire_time,
            runtime=plan.runtime,
            state=state,
            state_time=plan.create_time,
            reason=reason,
            message=message,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A sandbox appeared or changed. What a verb did after `began`, the `time.monotonic()` when the backend was asked,
    may be missing from it."""

    sandbox: Observation
    began: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The backend has this sandbox no more."""

    id: str


@dataclass(frozen=True, slots=True)
class Relisted:
    """All there is: sent first, and again after every gap in the backend's events. What finished being created
    after `began`, the `time.monotonic()` when the listing was asked for, may be missing from it."""

    sandboxes: tuple[Observation, ...]
    began: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The backend cannot be reached; the driver keeps trying, and says Relisted when it is back."""

    message: str


DriverEvent = Seen | Gone | Relisted | Lost


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """`version` is the backend's own; `runtimes` says of each secure runtime whether the backend has it; `cpus` is the
    most that one sandbox can be given, 0 when unknown."""

    name: str
    version: str
    runtimes: Mapping[str, RuntimeAvailability]
    proof: RuntimeProof | None
    unsupported: Mapping[str, str] = field(default_factory=dict)
    """Capabilities that this driver or backend lacks: name -> why, and what to do."""
    cpus: int = 0


Progress = Callable[[str, str], None]
"""Told how a creation goes: a reason word ("IMAGE_PULLING") and a sentence."""


class SandboxDriver(Protocol):
    """A backend. Methods raise domain.errors; BackendUnavailable when the backend cannot be reached."""

    async def start(self) -> DriverInfo:
        """Connects, validates the configured runtime and proves it. StartupError when it cannot be honoured."""

    async def close(self) -> None:
        """Releases connections and threads. Sandboxes keep running."""

    async def create(self, plan: SandboxPlan, progress: Progress) -> Observation:
        """Makes and starts the planned sandbox, pulling its image when absent. All or nothing: when it raises, also by
        cancellation, nothing of the sandbox is left. FailedPrecondition IMAGE_PULL_FAILED, START_FAILED."""

    async def delete(self, id: str) -> bool:
        """Removes the sandbox, whatever its state; returns when it is gone, and whether it was there. Idempotent."""

    async def pause(self, id: str) -> None:
        """Freezes it. NotFound; FailedPrecondition INVALID_STATE when it does not run. Idempotent."""

    async def resume(self, id: str) -> None:
        """Thaws it. NotFound; FailedPrecondition INVALID_STATE when it is neither frozen nor running. Idempotent."""

    def events(self) -> AsyncIterator[DriverEvent]:
        """Every change to this server's sandboxes, for ever: a Relisted first. One consumer."""

    async def endpoint(self, id: str, port: int, *, internal: bool) -> Endpoint:
        """Where `port` of the sandbox is reached. NotFound; FailedPrecondition PORT_NOT_PUBLISHED, INVALID_STATE."""

    def logs(self, id: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        """What the entry point wrote, in order. NotFound; ResourceExhausted TOO_MANY_STREAMS."""


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """What has changed of a sandbox since its creation. `claimed`: its expiry has struck, and it is being removed."""

    id: str
    revision: int
    metadata: Mapping[str, str]
    expire_time: datetime | None
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A CreateSandbox that carried a request_id. `body_hash` is of the request without secrets' values in clear."""

    request_id: str
    sandbox_id: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A creation that was ACCEPTED: not finished yet (`reason` CREATE_INTERRUPTED until it is), or failed."""

    observation: Observation
    keep_until: datetime


class SandboxStore(Protocol):
    """Durable facts about sandboxes. Survives the end of the process at any moment."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def load_records(self) -> list[SandboxRecord]: ...

    async def compare_and_set(self, record: SandboxRecord, expected_revision: int) -> bool:
        """Writes `record` if the sandbox's stored revision is `expected_revision` (0: none stored) and it is not
        claimed; says whether it did."""

    async def load_requests(self) -> list[RequestRecord]: ...

    async def put_request(self, record: RequestRecord) -> None: ...

    async def load_failures(self) -> list[FailureRecord]: ...

    async def put_failure(self, record: FailureRecord) -> None: ...

    async def drop_failure(self, id: str) -> None:
        """Idempotent."""

    async def forget(self, ids: list[str]) -> None:
        """Drops every row about these sandboxes: records, requests, failures. Idempotent."""
