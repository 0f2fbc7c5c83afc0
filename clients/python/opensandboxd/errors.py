"""Every way a call can fail, drawn once.

SandboxError                    base of all; `.code`, `.reason` and the rest are on every one
├── CancelledByServerError      CANCELLED: the server, or something between, gave the call up
├── InvalidArgumentError        INVALID_ARGUMENT: a field is malformed or cannot be honoured; see `.field_violations`
├── DeadlineExceededError       DEADLINE_EXCEEDED: no reply within the call's timeout
├── NotFoundError               NOT_FOUND: no such sandbox
├── AlreadyExistsError          ALREADY_EXISTS: request_id used before with another body
├── PermissionDeniedError       PERMISSION_DENIED: known, but not allowed (said by a proxy; the server has no roles)
├── ResourceExhaustedError      RESOURCE_EXHAUSTED: a configured limit or the backend's capacity; see `.retry_after`
├── FailedPreconditionError     FAILED_PRECONDITION: wrong state, or something that must be true first is not
├── AbortedError                ABORTED: the etag is stale
├── UnimplementedError          UNIMPLEMENTED: this server or its backend does not serve the call
├── InternalError               INTERNAL: the server or its backend failed in a way nobody foresaw
├── UnavailableError            UNAVAILABLE: server or backend cannot be reached; retried before it is raised
├── UnauthenticatedError        UNAUTHENTICATED: API key missing or wrong
└── NotReachedError             wait() ended elsewhere; made by the client; `.sandbox` is the sandbox as it was last

Wrong arguments that the client itself can see (a naive datetime, `ttl` together with `expire_time`) are ValueError
or TypeError, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from opensandboxd.v1.sandbox_pb2 import Sandbox

_STATUS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """`path` is a path into the request, by the names of the contract: "spec.resources.cpu", "spec.ports[2]"."""

    path: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """What an error is about: `type` "opensandboxd.v1.Sandbox" and, as `name`, its id."""

    type: str
    name: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What an error carries beside its message. `retry_after` is in seconds, None when the server named no time."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    field_violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None
    request_id: str = ""
    resource: Resource | None = None


class SandboxError(Exception):
    """Base of every error about a call.

    `code` is the gRPC status, `reason` a stable UPPER_SNAKE_CASE word to switch on ("" when the error did not come
    from opensandboxd itself), `message` a sentence for people, `metadata` the reason's particulars, `request_id` what
    to look for in the server's log, `resource` what the error is about. The gRPC error is its `__cause__`.
    """

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message, details)
        details = details or ErrorDetails()
        self.message = message
        self.code = details.code
        self.reason = details.reason
        self.metadata: Mapping[str, str] = details.metadata
        self.field_violations = details.field_violations
        self.retry_after = details.retry_after
        self.request_id = details.request_id
        self.resource = details.resource

    def __str__(self) -> str:
        origin = [self.reason] if self.reason else []
        origin += [f"request {self.request_id}"] if self.request_id else []
        return f"{self.message} ({', '.join(origin)})" if origin else self.message


class CancelledByServerError(SandboxError):
    """CANCELLED: the server, or something between, gave the call up."""


class InvalidArgumentError(SandboxError):
    """INVALID_ARGUMENT: a field is malformed, out of range, or cannot be honoured on this server."""


class DeadlineExceededError(SandboxError):
    """DEADLINE_EXCEEDED: no reply within the call's timeout."""


class NotFoundError(SandboxError):
    """NOT_FOUND: no such sandbox."""


class AlreadyExistsError(SandboxError):
    """ALREADY_EXISTS: the request_id was used before, with another body."""


class PermissionDeniedError(SandboxError):
    """PERMISSION_DENIED: the caller is known but not allowed to do this."""


class ResourceExhaustedError(SandboxError):
    """RESOURCE_EXHAUSTED: a configured limit or the backend's capacity. `retry_after` says when to try again."""


class FailedPreconditionError(SandboxError):
    """FAILED_PRECONDITION: wrong state, or something that must be true first is not."""


class AbortedError(SandboxError):
    """ABORTED: the etag is stale. Read the sandbox again and decide anew."""


class UnimplementedError(SandboxError):
    """UNIMPLEMENTED: this server or its backend does not serve the call. See `runtime_info().capabilities`."""


class InternalError(SandboxError):
    """INTERNAL: the server or its backend failed in a way that nobody foresaw."""


class UnavailableError(SandboxError):
    """UNAVAILABLE: the server or its backend cannot be reached. What is safe to repeat has been retried already."""


class UnauthenticatedError(SandboxError):
    """UNAUTHENTICATED: the API key is missing or wrong."""


class NotReachedError(SandboxError):
    """wait() ended before the sandbox was in a state waited for. `sandbox` is the sandbox as it was last.

    `timed_out` tells whether time was over; otherwise the sandbox is in a final state and waiting on is hopeless.
    """

    def __init__(self, message: str, sandbox: Sandbox, timed_out: bool) -> None:
        code = grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.FAILED_PRECONDITION
        super().__init__(message, ErrorDetails(code=code, reason=sandbox.status.reason))
        self.args = (message, sandbox, timed_out)
        self.sandbox = sandbox
        self.timed_out = timed_out


ERRORS: Mapping[grpc.StatusCode, type[SandboxError]] = MappingProxyType(
    {
        grpc.StatusCode.CANCELLED: CancelledByServerError,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
        grpc.StatusCode.NOT_FOUND: NotFoundError,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
        grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
        grpc.StatusCode.ABORTED: AbortedError,
        grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
        grpc.StatusCode.INTERNAL: InternalError,
        grpc.StatusCode.UNAVAILABLE: UnavailableError,
        grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    }
)
"""Status code -> class. Codes that are not here (UNKNOWN, OUT_OF_RANGE, DATA_LOSS) are SandboxError itself."""


@contextmanager
def translated(target: str) -> Iterator[None]:
    """Raises gRPC's errors as ours. The one place that does."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_grpc(error, target) from error


def from_grpc(error: grpc.aio.AioRpcError, target: str) -> SandboxError:
    """Builds our error from gRPC's, with the google.rpc details of its trailing metadata."""
    trailing = dict(tuple(error.trailing_metadata() or ()))  # pairs: older grpc's Metadata is no proper mapping
    message = error.details() or error.code().name
    packed = trailing.get(_STATUS_KEY)
    status = _parse_status(packed) if isinstance(packed, bytes) else status_pb2.Status()
    if error.code() is grpc.StatusCode.UNAVAILABLE and not status.details:
        message = f"cannot reach {target}: {message}"
    request_id = trailing.get(_REQUEST_ID_KEY, "")
    details = _read_details(status, error.code(), request_id if isinstance(request_id, str) else "")
    return ERRORS.get(error.code(), SandboxError)(message, details)


def _parse_status(packed: bytes) -> status_pb2.Status:
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:  # something between rewrote the trailer; code and message still stand
        return status_pb2.Status()


def _read_details(status: status_pb2.Status, code: grpc.StatusCode, request_id: str) -> ErrorDetails:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    resource = error_details_pb2.ResourceInfo()
    found = {
        message.DESCRIPTOR.full_name
        for detail in status.details
        for message in (info, bad_request, retry, resource)
        if detail.Unpack(message)
    }
    return ErrorDetails(
        code=code,
        reason=info.reason,
        metadata=dict(info.metadata),
        field_violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry.DESCRIPTOR.full_name in found else None,
        request_id=request_id,
        resource=(
            Resource(resource.resource_type, resource.resource_name) if resource.DESCRIPTOR.full_name in found else None
        ),
    )
