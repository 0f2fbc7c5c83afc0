"""Channels: the address, TLS, keepalive and the retry policy. The only place that knows channel options."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc

from opensandboxd.v1 import runtime_service_pb2, sandbox_service_pb2

DEFAULT_TARGET = "localhost:8080"

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:/\s\[\]]+):\d{1,5}")
_RESOLVER = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|xds):\S+")

_RETRIED_SERVICES = (
    sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name,
    runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"].full_name,
    "grpc.health.v1.Health",
)
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS with more than the system's roots. All are paths of PEM files.

    `ca` verifies the server (None: the roots that gRPC ships); `cert` and `key`, both or neither, are shown to a
    server that asks for a client certificate; `server_name` is the name to expect when it is not the address's host.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both or neither")


def check_target(target: str) -> str:
    """Returns `target`. ValueError unless it is host:port, or an address with one of gRPC's resolver prefixes."""
    if _HOST_PORT.fullmatch(target) or _RESOLVER.fullmatch(target):
        return target
    raise ValueError(f"{target!r} is not an address: give host:port, without a scheme, such as {DEFAULT_TARGET!r}")


def open_channel(target: str, tls: TLS | None, *, retry: bool) -> grpc.aio.Channel:
    """Opens a channel on the running event loop; it connects with its first call.

    With `retry`, gRPC tries a call again on UNAVAILABLE: for calls that the contract names idempotent.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", f"opensandboxd-python/{version('opensandboxd')}"),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    if retry:
        options.append(("grpc.service_config", _service_config()))
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(target, _credentials(tls), options=options)


def _service_config() -> str:
    names = [{"service": service} for service in _RETRIED_SERVICES]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}]})


def _credentials(tls: TLS) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=Path(tls.ca).read_bytes() if tls.ca else None,
        private_key=Path(tls.key).read_bytes() if tls.key else None,
        certificate_chain=Path(tls.cert).read_bytes() if tls.cert else None,
    )
