"""One sandbox, held: its verbs without its id, and its end at the end of a block."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from opensandboxd._convert import Duration
from opensandboxd.errors import SandboxError
from opensandboxd.v1.sandbox_pb2 import Sandbox, SandboxState
from opensandboxd.v1.sandbox_service_pb2 import GetEndpointResponse, LogStream, StreamLogsResponse

if TYPE_CHECKING:
    from opensandboxd.client import AsyncClient


class AsyncSandboxHandle:
    """A sandbox, made by AsyncClient.sandbox(), which owns it, or AsyncClient.attach(), which does not.

    As an `async with` block: an owner creates the sandbox on entry and deletes it on exit; the other reads it on entry
    and leaves it alone. Methods are AsyncClient's, without the id, and keep `info` up to date.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        create: Callable[[], Awaitable[Sandbox]] | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        self._client = client
        self._create = create
        self._sandbox = sandbox

    async def __aenter__(self) -> Self:
        if self._create is None:
            await self.refresh()
        elif self._sandbox is None:
            self._sandbox = await self._create()
        else:
            raise RuntimeError("this handle was entered before: make another with sandbox()")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._create is None:
            return
        try:
            await self.delete(allow_missing=True)
        except SandboxError as error:
            if exc is None:
                raise
            exc.add_note(f"sandbox {self.id} was not deleted: {error}")

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def info(self) -> Sandbox:
        """The sandbox as the last call returned it. After attach(id) it has only its id until refresh()."""
        if self._sandbox is None:
            raise RuntimeError("the sandbox is made on entry: use 'async with' (or 'with') before this")
        return self._sandbox

    async def refresh(self, *, timeout: Duration | None = None) -> Sandbox:
        """Reads the sandbox again and returns it."""
        return self._keep(await self._client.get(self.id, timeout=timeout))

    async def pause(self, *, timeout: Duration | None = None) -> Sandbox:
        """Freezes every process. Expiry goes on counting."""
        return self._keep(await self._client.pause(self.id, timeout=timeout))

    async def resume(self, *, timeout: Duration | None = None) -> Sandbox:
        """Thaws every process."""
        return self._keep(await self._client.resume(self.id, timeout=timeout))

    async def renew(
        self, ttl: Duration | None = None, *, expire_time: datetime | None = None, timeout: Duration | None = None
    ) -> Sandbox:
        """Sets when the sandbox is deleted: `ttl` from now, or at `expire_time`."""
        return self._keep(await self._client.renew(self.id, ttl, expire_time=expire_time, timeout=timeout))

    async def update_metadata(
        self, metadata: Mapping[str, str | None], *, replace: bool = False, timeout: Duration | None = None
    ) -> Sandbox:
        """Sets entries, and removes those whose value is None. Other entries stay, unless `replace`."""
        return self._keep(await self._client.update(self.id, metadata, replace=replace, timeout=timeout))

    async def wait(self, *, states: Iterable[SandboxState.ValueType] = (), timeout: Duration | None = None) -> Sandbox:
        """Waits until the sandbox is in one of `states`; see AsyncClient.wait."""
        return self._keep(await self._client.wait(self.id, states=states, timeout=timeout))

    async def endpoint(
        self, port: int, *, internal: bool = False, timeout: Duration | None = None
    ) -> GetEndpointResponse:
        """Returns where a port of the sandbox is reached; see AsyncClient.endpoint."""
        return await self._client.endpoint(self.id, port, internal=internal, timeout=timeout)

    async def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: datetime | None = None,
        streams: Iterable[LogStream.ValueType] = (),
    ) -> AsyncGenerator[StreamLogsResponse, None]:
        """Yields what the entry point wrote; see AsyncClient.logs."""
        async for chunk in self._client.logs(self.id, follow=follow, tail=tail, since=since, streams=streams):
            yield chunk

    async def delete(self, *, allow_missing: bool = False, timeout: Duration | None = None) -> None:
        """Deletes the sandbox, and returns when it is gone."""
        await self._client.delete(self.id, allow_missing=allow_missing, timeout=timeout)

    def _keep(self, sandbox: Sandbox) -> Sandbox:
        self._sandbox = sandbox
        return sandbox
