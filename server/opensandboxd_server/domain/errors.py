"""Every way a request can fail, drawn once. rpc/errors.py maps each class to its status code and details.

SandboxError
├── InvalidArgument          a field is malformed, out of range, or not honourable on this server
├── Unauthenticated          API key missing or wrong
├── NotFound                 no such sandbox
├── AlreadyExists            request_id reused with another body
├── FailedPrecondition       wrong state, or something that must be true first is not
├── Aborted                  stale etag
├── ResourceExhausted        a configured limit or the backend's capacity; retryable
├── Unsupported              this server, driver or runtime does not serve the verb
├── BackendUnavailable       the backend is away, or the server is shutting down; retryable
└── BackendError             the backend failed in a way that nobody foresaw

`reason` is a stable UPPER_SNAKE_CASE word that clients may switch on. `message` says what is wrong and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """`field` is a path into the request, by the names of the contract: "spec.resources.cpu", "spec.ports[2]"."""

    field: str
    description: str


class SandboxError(Exception):
    """Base of all that is told to callers. `details` go into ErrorInfo.metadata."""

    def __init__(self, reason: str, message: str, **details: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details: Mapping[str, str] = details


class InvalidArgument(SandboxError):
    def __init__(self, violations: Sequence[FieldViolation], *, reason: str = "INVALID_FIELD", **details: str) -> None:
        super().__init__(reason, "; ".join(f"{v.field}: {v.description}" for v in violations), **details)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str, *, reason: str = "INVALID_FIELD", **details: str) -> InvalidArgument:
        return cls([FieldViolation(field, description)], reason=reason, **details)


class Unauthenticated(SandboxError):
    pass


class NotFound(SandboxError):
    def __init__(self, sandbox_id: str) -> None:
        super().__init__("SANDBOX_NOT_FOUND", f"there is no sandbox {sandbox_id!r}")
        self.sandbox_id = sandbox_id


class AlreadyExists(SandboxError):
    pass


class FailedPrecondition(SandboxError):
    """`subject` is what the precondition is about: a sandbox's id, an image, a resource version."""

    def __init__(self, reason: str, message: str, *, subject: str = "", **details: str) -> None:
        super().__init__(reason, message, **details)
        self.subject = subject


class Aborted(SandboxError):
    pass


class ResourceExhausted(SandboxError):
    """`retry_after` is in seconds."""

    def __init__(self, reason: str, message: str, *, subject: str, retry_after: float = 5.0, **details: str) -> None:
        super().__init__(reason, message, **details)
        self.subject = subject
        self.retry_after = retry_after


class Unsupported(SandboxError):
    """`field` is the path of what asked for it, when it is a field and not a verb."""

    def __init__(self, reason: str, message: str, *, field: str = "", **details: str) -> None:
        super().__init__(reason, message, **details)
        self.field = field


class BackendUnavailable(SandboxError):
    """`retry_after` is in seconds."""

    def __init__(self, message: str, *, reason: str = "BACKEND_UNAVAILABLE", retry_after: float = 2.0) -> None:
        super().__init__(reason, message)
        self.retry_after = retry_after


class BackendError(SandboxError):
    def __init__(self, message: str, *, reason: str = "BACKEND_ERROR", **details: str) -> None:
        super().__init__(reason, message, **details)


class StartupError(Exception):
    """The server cannot honour its configuration on this backend: said once, on standard error, before exit."""
