"""From domain errors to gRPC statuses: the one table, and the google.rpc details a client can switch on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from opensandboxd_server.domain import errors

DOMAIN = "opensandbox.io"
SANDBOX_TYPE = "opensandboxd.v1.Sandbox"

CODES: dict[type[errors.SandboxError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.BackendUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.BackendError: grpc.StatusCode.INTERNAL,
}

# Statuses travel in trailing metadata, which peers bound to 8 KiB or so: a longer one would arrive as another error.
# All in bytes; the message is there up to three times, once percent-encoded, and the rest is in base64.
_MAX_TEXT = 600
_MAX_METADATA = 200
_MAX_VIOLATION = 200
_MAX_VIOLATIONS = 3000


def code_of(error: errors.SandboxError) -> grpc.StatusCode:
    """The code of the error's class, or of the one that it refines."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def to_status(error: errors.SandboxError) -> tuple[grpc.StatusCode, str, bytes]:
    """The code, the message and the serialized google.rpc.Status for `grpc-status-details-bin`."""
    code = code_of(error)
    message = _clip(error.message)
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in _details(error):
        packed = AnyProto()
        packed.Pack(detail)
        status.details.append(packed)
    return code, message, status.SerializeToString()


def _details(error: errors.SandboxError) -> Iterator[Any]:
    metadata = {key: _clip(value, _MAX_METADATA) for key, value in error.details.items()}
    yield details.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    match error:
        case errors.InvalidArgument(violations=violations):
            yield _bad_request(violations)
        case errors.Unsupported(field=field) if field:
            yield _bad_request((errors.FieldViolation(field, error.message),))
        case errors.NotFound(sandbox_id=id):
            yield details.ResourceInfo(
                resource_type=SANDBOX_TYPE, resource_name=_clip(id), description=_clip(error.message)
            )
        case errors.FailedPrecondition(subject=subject):
            violation = details.PreconditionFailure.Violation(
                type=error.reason, subject=_clip(subject), description=_clip(error.message)
            )
            yield details.PreconditionFailure(violations=[violation])
        case errors.ResourceExhausted(subject=subject):
            quota = details.QuotaFailure.Violation(subject=subject, description=_clip(error.message))
            yield details.QuotaFailure(violations=[quota])
    if isinstance(error, errors.ResourceExhausted | errors.BackendUnavailable):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        yield details.RetryInfo(retry_delay=delay)


def _bad_request(violations: tuple[errors.FieldViolation, ...]) -> details.BadRequest:
    request, room = details.BadRequest(), _MAX_VIOLATIONS
    for i, violation in enumerate(violations):
        shown = request.field_violations.add(
            field=_clip(violation.field, _MAX_VIOLATION), description=_clip(violation.description, _MAX_VIOLATION)
        )
        room -= shown.ByteSize()
        if room < 0:
            del request.field_violations[-1]
            request.field_violations.add(field="", description=f"and {len(violations) - i} more")
            break
    return request


def _clip(text: str, length: int = _MAX_TEXT) -> str:
    """`text` in at most `length` bytes of UTF-8."""
    encoded = text.encode()
    return text if len(encoded) <= length else encoded[: length - 3].decode(errors="ignore") + "…"
