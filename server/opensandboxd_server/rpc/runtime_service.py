"""RuntimeService: fixed at the start of the server, so converted once."""

from __future__ import annotations

from typing import Any

from opensandboxd.v1 import runtime_service_pb2 as pb
from opensandboxd.v1 import runtime_service_pb2_grpc as pb_grpc
from opensandboxd_server.rpc import convert
from opensandboxd_server.service.runtime import RuntimeInfo

Context = Any  # the generated base declares a mix of grpc's and grpc.aio's ServicerContext


class RuntimeServicer(pb_grpc.RuntimeServiceServicer):
    def __init__(self, info: RuntimeInfo) -> None:
        self._info = convert.runtime_info(info)
        self._runtimes = [convert.runtime_entry(entry) for entry in info.secure_runtimes()]

    async def GetRuntimeInfo(self, request: pb.GetRuntimeInfoRequest, context: Context) -> pb.GetRuntimeInfoResponse:
        return self._info

    async def ListSecureRuntimes(
        self, request: pb.ListSecureRuntimesRequest, context: Context
    ) -> pb.ListSecureRuntimesResponse:
        return pb.ListSecureRuntimesResponse(secure_runtimes=self._runtimes)
