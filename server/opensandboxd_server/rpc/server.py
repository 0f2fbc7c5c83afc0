"""The grpc.aio server: services, health, reflection, TLS, and options for a life behind a mesh."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from opensandboxd.v1 import runtime_service_pb2, runtime_service_pb2_grpc, sandbox_service_pb2, sandbox_service_pb2_grpc
from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.rpc.interceptors import Calls, RequestInterceptor
from opensandboxd_server.rpc.runtime_service import RuntimeServicer
from opensandboxd_server.rpc.sandbox_service import SandboxServicer

SERVICES = (
    sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name,
    runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"].full_name,
)
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_REFLECTION_V1ALPHA = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_TELLING = 0.05
"""Seconds that those who watch the server's health are given to be told that it ends."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""gRPC's own default for what a client receives: nothing that this server sends is larger."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a load balancer
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),  # half-open connections are found and closed
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # meshes and clients ping, too
    ("grpc.max_connection_age_ms", 30 * 60_000),  # connections move to new replicas in the end
    ("grpc.max_connection_age_grace_ms", 10 * 60_000),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files; with `client_ca` a client must show a certificate that it has signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=self.client_ca.read_bytes() if self.client_ca else None,
            require_client_auth=self.client_ca is not None,
        )


class RpcServer:
    def __init__(
        self, sandboxes: SandboxServicer, runtime: RuntimeServicer, *, api_key: str, driver: str, tls: Tls | None
    ) -> None:
        self._calls = Calls()
        self._health = HealthServicer()
        self._tls = tls
        self._server = grpc.aio.server(
            interceptors=[RequestInterceptor(api_key, driver, self._calls)], options=_OPTIONS
        )
        sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server(sandboxes, self._server)
        runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers(_reflection())

    async def start(self, address: str) -> int:
        """Listens on "host:port", port 0 for a free one; returns the port. StartupError when it cannot."""
        try:
            if self._tls:
                port = self._server.add_secure_port(address, self._tls.credentials())
            else:
                port = self._server.add_insecure_port(address)
        except (RuntimeError, OSError) as exc:
            raise StartupError(f"cannot listen on {address}: {exc}; choose another [server] host or port") from exc
        await self._server.start()
        return port

    async def set_serving(self, serving: bool) -> None:
        """What health checks are told, of the server as a whole and of each service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)

    async def begin_shutdown(self) -> None:
        """NOT_SERVING from now on; long calls end with UNAVAILABLE SHUTTING_DOWN."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(_TELLING)
        self._calls.end()

    async def stop(self, grace: float) -> None:
        """Takes no more calls; those at work have `grace` seconds, then they are cancelled."""
        await self._server.stop(grace)


def _reflection() -> tuple[grpc.GenericRpcHandler, ...]:
    """Reflection v1alpha, and v1, whose messages are the same on the wire (grpcio-reflection has only the former)."""
    _describe_reflection_v1()
    servicer = ReflectionServicer(service_names=(*SERVICES, _HEALTH, _REFLECTION_V1ALPHA, _REFLECTION_V1))
    behaviour: Any = servicer.ServerReflectionInfo
    method = grpc.stream_stream_rpc_method_handler(
        behaviour,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(
        grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": method})
        for service in (_REFLECTION_V1, _REFLECTION_V1ALPHA)
    )


def _describe_reflection_v1() -> None:
    """Puts v1's descriptor where reflection looks things up, so that tools can describe the service they use."""
    pool = descriptor_pool.Default()
    name = reflection_pb2.DESCRIPTOR.name.replace("v1alpha", "v1")
    try:
        pool.FindFileByName(name)
    except KeyError:
        alpha = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        pool.Add(text_format.Parse(str(alpha).replace("v1alpha", "v1"), FileDescriptorProto()))
