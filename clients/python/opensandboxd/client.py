"""The asynchronous client: the one implementation. sync.py makes the synchronous one of it."""

from __future__ import annotations

import functools
import math
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

from grpc_health.v1 import health_pb2

from opensandboxd._channel import DEFAULT_TARGET, TLS, check_target
from opensandboxd._connection import Connection
from opensandboxd._convert import (
    Duration,
    check_expiration,
    metadata_mask,
    seconds,
    to_duration,
    to_spec,
    to_timestamp,
)
from opensandboxd._watch import resuming_watch
from opensandboxd.errors import NotReachedError
from opensandboxd.handle import AsyncSandboxHandle
from opensandboxd.v1 import runtime_service_pb2 as runtime_pb2
from opensandboxd.v1 import sandbox_service_pb2 as pb2
from opensandboxd.v1.sandbox_pb2 import (
    SANDBOX_STATE_FAILED,
    SANDBOX_STATE_TERMINATED,
    NetworkPolicy,
    Platform,
    RegistryAuth,
    Sandbox,
    SandboxSpec,
    SandboxState,
)

P = ParamSpec("P")

DEFAULT_TIMEOUT = 60.0
CREATE_TIMEOUT = 300.0
_WAIT_TURN = 30.0
_FINAL = (SANDBOX_STATE_TERMINATED, SANDBOX_STATE_FAILED)


def _owned_handle(
    create: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Sandbox]],
) -> Callable[Concatenate[AsyncClient, P], AsyncSandboxHandle]:
    def sandbox(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncSandboxHandle:
        """A sandbox for the length of a `with` block: created on entry, deleted on exit. Takes what create() takes.

        Deleted even when the block raises. If the deletion then fails too, the block's exception goes on, with a note.
        """
        if kwargs.get("validate_only"):
            raise ValueError("validate_only makes no sandbox to hold: use create(..., validate_only=True)")
        return AsyncSandboxHandle(self, create=functools.partial(create, self, *args, **kwargs))

    sandbox.__wrapped__ = create  # type: ignore[attr-defined] # create's signature, our own docstring
    return sandbox


class AsyncClient:
    """A connection to opensandboxd, for asyncio. Safe to share between tasks of one event loop.

    `target` is host:port (default: `OPEN_SANDBOX_DOMAIN`, else localhost:8080); a gRPC resolver's prefix such as
    dns:/// works too. `api_key` defaults to `OPEN_SANDBOX_API_KEY`. `tls` is False for plain text, True for TLS with
    the roots that gRPC ships, the path of a CA's PEM file, or TLS(...) for a client certificate. `timeout` is the
    deadline of every unary call that names none; create has 300 s.

    Connects with the first call. Every method raises the errors of opensandboxd.errors.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool | str | os.PathLike[str] | TLS = False,
        timeout: Duration = DEFAULT_TIMEOUT,
    ) -> None:
        self.target = check_target(target or os.environ.get("OPEN_SANDBOX_DOMAIN") or DEFAULT_TARGET)
        key = api_key if api_key is not None else os.environ.get("OPEN_SANDBOX_API_KEY", "")
        if not (key.isascii() and key.isprintable()):
            raise ValueError("api_key must be printable ASCII; does it end with a newline?")
        self._timeout = seconds(timeout)
        self._rpc = Connection(self.target, key, _to_tls(tls), self._timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that still run fail. Sandboxes live on. Idempotent."""
        await self._rpc.close()

    async def create(
        self,
        image: str | SandboxSpec,
        *,
        entrypoint: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        cpu: str = "",
        memory: str = "",
        gpu: str = "",
        ports: Iterable[int] = (),
        ttl: Duration | None = None,
        expire_time: datetime | None = None,
        network_policy: NetworkPolicy | None = None,
        auth: RegistryAuth | tuple[str, str] | None = None,
        platform: Platform | str | None = None,
        require_secure_runtime: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
        wait: bool = True,
        timeout: Duration | None = None,
    ) -> Sandbox:
        """Creates a sandbox and returns it RUNNING; with `wait` False as soon as it is admitted, PENDING.

        `image` is an image reference or a whole SandboxSpec. `cpu`, `memory` and `gpu` are Kubernetes quantities
        ("500m", "512Mi", "1"); `auth` is (username, password) for the registry; `platform` is "os/arch". The sandbox is
        deleted `ttl` (seconds or timedelta) from now, or at `expire_time`, or with neither by delete(). `request_id`
        makes the call idempotent across processes; without one the client makes its own, so that its retries never
        make a second sandbox.
        `validate_only` creates nothing and returns the sandbox as it would be accepted, without id.

        All or nothing: when it raises, nothing of the sandbox is left.
        """
        check_expiration(ttl, expire_time)
        request = pb2.CreateSandboxRequest(
            spec=to_spec(
                image,
                entrypoint=entrypoint,
                env=env,
                cpu=cpu,
                memory=memory,
                gpu=gpu,
                ports=ports,
                network_policy=network_policy,
                auth=auth,
                platform=platform,
                require_secure_runtime=require_secure_runtime,
            ),
            metadata=metadata,
            ttl=to_duration(ttl),
            expire_time=to_timestamp("expire_time", expire_time),
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
            return_when=pb2.RETURN_WHEN_RUNNING if wait else pb2.RETURN_WHEN_ACCEPTED,
        )
        deadline = CREATE_TIMEOUT if timeout is None else timeout
        return (await self._rpc.call(self._rpc.stubs.retried.CreateSandbox, request, deadline)).sandbox

    sandbox = _owned_handle(create)

    def attach(self, sandbox: str | Sandbox) -> AsyncSandboxHandle:
        """A handle of a sandbox that exists, by id or as returned by another call. It does not delete it on exit."""
        return AsyncSandboxHandle(self, sandbox=Sandbox(id=sandbox) if isinstance(sandbox, str) else sandbox)

    async def get(self, id: str, *, timeout: Duration | None = None) -> Sandbox:
        """Returns a sandbox."""
        request = pb2.GetSandboxRequest(id=id)
        return (await self._rpc.call(self._rpc.stubs.retried.GetSandbox, request, timeout)).sandbox

    async def list(
        self,
        *,
        states: Iterable[SandboxState.ValueType] = (),
        metadata: Mapping[str, str] | None = None,
        page_size: int = 0,
        timeout: Duration | None = None,
    ) -> AsyncGenerator[Sandbox, None]:
        """Yields sandboxes, oldest first, that are in one of `states` (none given: any) and carry all of `metadata`.

        Fetches pages of `page_size` (0: 100; at most 1,000) as they are needed; `timeout` is for one page.
        """
        request = pb2.ListSandboxesRequest(states=states, metadata=metadata, page_size=page_size)
        while True:
            page = await self._rpc.call(self._rpc.stubs.retried.ListSandboxes, request, timeout)
            for sandbox in page.sandboxes:
                yield sandbox
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def update(
        self,
        id: str,
        metadata: Mapping[str, str | None],
        *,
        replace: bool = False,
        etag: str = "",
        timeout: Duration | None = None,
    ) -> Sandbox:
        """Sets entries of a sandbox's metadata, removes those whose value is None, and returns the sandbox.

        Other entries stay, unless `replace`. With `etag`: AbortedError when the sandbox has another by now.
        """
        request = pb2.UpdateSandboxRequest(
            id=id,
            metadata={key: value for key, value in metadata.items() if value is not None},
            update_mask=metadata_mask(metadata, replace=replace),
            etag=etag,
        )
        stub = self._rpc.stubs.once if etag else self._rpc.stubs.retried
        return (await self._rpc.call(stub.UpdateSandbox, request, timeout)).sandbox

    async def delete(
        self, id: str, *, allow_missing: bool = False, etag: str = "", timeout: Duration | None = None
    ) -> None:
        """Deletes a sandbox in whatever state, and returns when it is gone.

        NotFoundError when there is none, unless `allow_missing`. With `etag`: AbortedError when it has another by now.
        """
        request = pb2.DeleteSandboxRequest(id=id, allow_missing=allow_missing, etag=etag)
        stub = self._rpc.stubs.retried if allow_missing and not etag else self._rpc.stubs.once
        await self._rpc.call(stub.DeleteSandbox, request, timeout)

    async def pause(self, id: str, *, timeout: Duration | None = None) -> Sandbox:
        """Freezes every process of a RUNNING sandbox, and returns it PAUSED. Expiry goes on counting."""
        request = pb2.PauseSandboxRequest(id=id)
        return (await self._rpc.call(self._rpc.stubs.retried.PauseSandbox, request, timeout)).sandbox

    async def resume(self, id: str, *, timeout: Duration | None = None) -> Sandbox:
        """Thaws a PAUSED sandbox, and returns it RUNNING."""
        request = pb2.ResumeSandboxRequest(id=id)
        return (await self._rpc.call(self._rpc.stubs.retried.ResumeSandbox, request, timeout)).sandbox

    async def renew(
        self,
        id: str,
        ttl: Duration | None = None,
        *,
        expire_time: datetime | None = None,
        etag: str = "",
        timeout: Duration | None = None,
    ) -> Sandbox:
        """Sets when the sandbox is deleted, `ttl` from now or at `expire_time`, sooner or later than before."""
        check_expiration(ttl, expire_time)
        request = pb2.RenewSandboxRequest(
            id=id, ttl=to_duration(ttl), expire_time=to_timestamp("expire_time", expire_time), etag=etag
        )
        stub = self._rpc.stubs.retried if expire_time and not etag else self._rpc.stubs.once
        return (await self._rpc.call(stub.RenewSandbox, request, timeout)).sandbox

    async def wait(
        self, id: str, *, states: Iterable[SandboxState.ValueType] = (), timeout: Duration | None = None
    ) -> Sandbox:
        """Waits until the sandbox is in one of `states` (none given: RUNNING, TERMINATED or FAILED), and returns it.

        NotReachedError after `timeout` (None: never), or when a final state makes the wait hopeless.
        """
        deadline = math.inf if timeout is None else time.monotonic() + seconds(timeout)
        request = pb2.WaitSandboxRequest(id=id, states=states)
        while True:
            turn = min(_WAIT_TURN, max(0.0, deadline - time.monotonic()))
            request.timeout.FromNanoseconds(round(turn * 1e9))
            response = await self._rpc.call(self._rpc.stubs.retried.WaitSandbox, request, turn + self._timeout)
            if response.reached:
                return response.sandbox
            hopeless = response.sandbox.status.state in _FINAL
            if hopeless or time.monotonic() >= deadline:
                raise _not_reached(response.sandbox, timed_out=not hopeless)

    async def watch(
        self,
        *,
        states: Iterable[SandboxState.ValueType] = (),
        metadata: Mapping[str, str] | None = None,
        ids: Iterable[str] = (),
        resource_version: str = "",
        reconnect_timeout: Duration = 300.0,
    ) -> AsyncGenerator[pb2.WatchSandboxesResponse, None]:
        """Yields an `added` for each sandbox there is, a bookmark with `snapshot_end`, then changes, without end.

        A lost connection is resumed where it stopped; when the server cannot, as after its restart, the new snapshot is
        told as the changes since. Raises when the first connection fails, and when the server stays away for longer
        than `reconnect_timeout`. With `resource_version`, that of an earlier event, goes on from there; then
        FailedPreconditionError RESOURCE_VERSION_EXPIRED when that is too old.
        """
        request = pb2.WatchSandboxesRequest(states=states, metadata=metadata, ids=ids)

        async def connect(version: str) -> AsyncGenerator[pb2.WatchSandboxesResponse, None]:
            request.resource_version = version
            async for event in self._rpc.stream(self._rpc.stubs.retried.WatchSandboxes, request):
                yield event

        async for event in resuming_watch(connect, resource_version, seconds(reconnect_timeout)):
            yield event

    async def endpoint(
        self, id: str, port: int, *, internal: bool = False, timeout: Duration | None = None
    ) -> pb2.GetEndpointResponse:
        """Returns where a port of the sandbox is reached: `.address`, `.host`, `.port`, and `.headers` to send.

        `port` must be one of those the sandbox was created with; `internal` asks for the sandbox's own network.
        """
        request = pb2.GetEndpointRequest(id=id, port=port, internal=internal)
        return await self._rpc.call(self._rpc.stubs.retried.GetEndpoint, request, timeout)

    async def logs(
        self,
        id: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: datetime | None = None,
        streams: Iterable[pb2.LogStream.ValueType] = (),
    ) -> AsyncGenerator[pb2.StreamLogsResponse, None]:
        """Yields what the entry point wrote: `.data` is bytes, a line with its end or part of a long one.

        `tail` is for the last lines only, `since` for what was written from then on. With `follow` it goes on until the
        entry point exits.
        """
        request = pb2.StreamLogsRequest(
            id=id, follow=follow, tail_lines=tail, since_time=to_timestamp("since", since), streams=streams
        )
        async for chunk in self._rpc.stream(self._rpc.stubs.retried.StreamLogs, request):
            yield chunk

    async def runtime_info(self, *, timeout: Duration | None = None) -> runtime_pb2.GetRuntimeInfoResponse:
        """Returns the server's version, driver, secure runtime and what was proved of it, and capabilities."""
        return await self._rpc.call(
            self._rpc.stubs.runtime.GetRuntimeInfo, runtime_pb2.GetRuntimeInfoRequest(), timeout
        )

    async def secure_runtimes(self, *, timeout: Duration | None = None) -> tuple[runtime_pb2.SecureRuntime, ...]:
        """Returns every secure runtime the project knows, runc first, and whether this server's backend has it."""
        request = runtime_pb2.ListSecureRuntimesRequest()
        response = await self._rpc.call(self._rpc.stubs.runtime.ListSecureRuntimes, request, timeout)
        return tuple(response.secure_runtimes)

    async def health(self, service: str = "", *, timeout: Duration | None = None) -> bool:
        """Whether the server serves, or one `service` such as "opensandboxd.v1.SandboxService". Needs no key."""
        request = health_pb2.HealthCheckRequest(service=service)
        response = await self._rpc.call(self._rpc.stubs.health.Check, request, timeout)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _to_tls(tls: bool | str | os.PathLike[str] | TLS) -> TLS | None:
    match tls:
        case False:
            return None
        case True:
            return TLS()
        case TLS():
            return tls
        case _:
            return TLS(ca=tls)


def _not_reached(sandbox: Sandbox, *, timed_out: bool) -> NotReachedError:
    status = sandbox.status
    state = SandboxState.Name(status.state).removeprefix("SANDBOX_STATE_")
    why = ": ".join(filter(None, (status.reason, status.message)))
    ending = "time is over" if timed_out else "it cannot get there"
    return NotReachedError(
        f"sandbox {sandbox.id} is {state}{f' ({why})' if why else ''} and {ending}", sandbox, timed_out
    )
