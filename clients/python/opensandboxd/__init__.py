"""Clients for opensandboxd: sandboxes for untrusted, AI-generated code, over gRPC.

    with Client() as client, client.sandbox("python:3.12-slim", ttl=600) as sbx:
        print(sbx.id, sbx.info.status.runtime.secure_runtime)

AsyncClient is the same for asyncio. Replies are the contract's own messages (opensandboxd.v1); errors are a tree
(opensandboxd.errors).
"""

from opensandboxd._channel import TLS
from opensandboxd.client import AsyncClient
from opensandboxd.errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledByServerError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    NotReachedError,
    PermissionDeniedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from opensandboxd.handle import AsyncSandboxHandle
from opensandboxd.sync import Client, SandboxHandle
from opensandboxd.v1.runtime_service_pb2 import Capability, GetRuntimeInfoResponse, SecureRuntime
from opensandboxd.v1.sandbox_pb2 import (
    EgressRule,
    ImageSource,
    Isolation,
    NetworkAction,
    NetworkPolicy,
    Platform,
    RegistryAuth,
    ResourceLimits,
    Sandbox,
    SandboxSpec,
    SandboxState,
    SandboxStatus,
)
from opensandboxd.v1.sandbox_service_pb2 import (
    GetEndpointResponse,
    LogStream,
    StreamLogsResponse,
    WatchSandboxesResponse,
)

__all__ = [
    "TLS",
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncSandboxHandle",
    "CancelledByServerError",
    "Capability",
    "Client",
    "DeadlineExceededError",
    "EgressRule",
    "FailedPreconditionError",
    "FieldViolation",
    "GetEndpointResponse",
    "GetRuntimeInfoResponse",
    "ImageSource",
    "InternalError",
    "InvalidArgumentError",
    "Isolation",
    "LogStream",
    "NetworkAction",
    "NetworkPolicy",
    "NotFoundError",
    "NotReachedError",
    "PermissionDeniedError",
    "Platform",
    "RegistryAuth",
    "Resource",
    "ResourceExhaustedError",
    "ResourceLimits",
    "Sandbox",
    "SandboxError",
    "SandboxHandle",
    "SandboxSpec",
    "SandboxState",
    "SandboxStatus",
    "SecureRuntime",
    "StreamLogsResponse",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "WatchSandboxesResponse",
]
