"""SandboxService: convert, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from opensandboxd.v1 import sandbox_service_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2_grpc as pb_grpc
from opensandboxd_server.rpc import convert
from opensandboxd_server.service.creation import Creations
from opensandboxd_server.service.following import Following
from opensandboxd_server.service.sandboxes import Sandboxes

Context = Any  # the generated base declares a mix of grpc's and grpc.aio's ServicerContext


class SandboxServicer(pb_grpc.SandboxServiceServicer):
    def __init__(self, creations: Creations, sandboxes: Sandboxes, following: Following) -> None:
        self._creations = creations
        self._sandboxes = sandboxes
        self._following = following
        self._messages = convert.SandboxMessages()

    async def CreateSandbox(self, request: pb.CreateSandboxRequest, context: Context) -> pb.CreateSandboxResponse:
        sandbox = await self._creations.create(convert.create_request(request))
        return pb.CreateSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def GetSandbox(self, request: pb.GetSandboxRequest, context: Context) -> pb.GetSandboxResponse:
        return pb.GetSandboxResponse(sandbox=self._messages.of(self._sandboxes.get(request.id)))

    async def ListSandboxes(self, request: pb.ListSandboxesRequest, context: Context) -> pb.ListSandboxesResponse:
        page = self._following.list(
            convert.list_filter(request), request.page_size, request.page_token, self._messages.size_of
        )
        sandboxes = [self._messages.of(sandbox) for sandbox in page.sandboxes]
        return pb.ListSandboxesResponse(sandboxes=sandboxes, next_page_token=page.next_token)

    async def UpdateSandbox(self, request: pb.UpdateSandboxRequest, context: Context) -> pb.UpdateSandboxResponse:
        change = convert.metadata_change(request)
        sandbox = await self._sandboxes.update_metadata(request.id, change, request.etag)
        return pb.UpdateSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def DeleteSandbox(self, request: pb.DeleteSandboxRequest, context: Context) -> pb.DeleteSandboxResponse:
        await self._sandboxes.delete(request.id, allow_missing=request.allow_missing, etag=request.etag)
        return pb.DeleteSandboxResponse()

    async def PauseSandbox(self, request: pb.PauseSandboxRequest, context: Context) -> pb.PauseSandboxResponse:
        return pb.PauseSandboxResponse(sandbox=convert.sandbox(await self._sandboxes.pause(request.id)))

    async def ResumeSandbox(self, request: pb.ResumeSandboxRequest, context: Context) -> pb.ResumeSandboxResponse:
        return pb.ResumeSandboxResponse(sandbox=convert.sandbox(await self._sandboxes.resume(request.id)))

    async def RenewSandbox(self, request: pb.RenewSandboxRequest, context: Context) -> pb.RenewSandboxResponse:
        expiration = convert.expiration(request, request.WhichOneof("expiration"))
        sandbox = await self._sandboxes.renew(request.id, expiration, request.etag)
        return pb.RenewSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def WaitSandbox(self, request: pb.WaitSandboxRequest, context: Context) -> pb.WaitSandboxResponse:
        timeout = convert.wait_timeout(request)
        result = await self._following.wait(request.id, convert.states(request.states), timeout)
        return pb.WaitSandboxResponse(sandbox=convert.sandbox(result.sandbox), reached=result.reached)

    async def WatchSandboxes(
        self, request: pb.WatchSandboxesRequest, context: Context
    ) -> AsyncIterator[pb.WatchSandboxesResponse]:
        async for event in self._following.watch(convert.watch_filter(request), request.resource_version):
            yield convert.watch_event(event, self._messages.of)

    async def GetEndpoint(self, request: pb.GetEndpointRequest, context: Context) -> pb.GetEndpointResponse:
        return convert.endpoint(await self._sandboxes.endpoint(request.id, request.port, internal=request.internal))

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Context) -> AsyncIterator[pb.StreamLogsResponse]:
        async for chunk in self._sandboxes.logs(request.id, convert.log_options(request)):
            yield convert.log_chunk(chunk)
