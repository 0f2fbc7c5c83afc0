"""What every RPC goes through, whatever its kind: a request id, the API key, errors as statuses, a line in the log.

One interceptor does it all, because each layer of grpc.aio interceptors costs every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from opensandboxd_server.domain.errors import (
    BackendError,
    BackendUnavailable,
    InvalidArgument,
    SandboxError,
    Unauthenticated,
)
from opensandboxd_server.rpc.errors import code_of, to_status
from opensandboxd_server.service.creation import shutting_down

API_KEY = "open-sandbox-api-key"
REQUEST_ID = "x-request-id"
STATUS_DETAILS = "grpc-status-details-bin"
RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""When gRPC's own retries are to try again: they do not read RetryInfo (gRFC A6)."""

OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.")
"""Called without a key: probes and tools have none."""

_READS = ("Get", "List")
_LONG = "Wait"

log = structlog.get_logger("opensandboxd_server.rpc")

Context = Any  # grpc.aio.ServicerContext is generic in a way that its own handlers are not
Handler = Any


class Calls:
    """The long calls at work, so that shutdown can end them: streams and WaitSandbox."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closing = False

    def end(self) -> None:
        """Ends them all, and those to come, with UNAVAILABLE SHUTTING_DOWN."""
        self.closing = True
        for task in self._tasks:
            task.cancel()

    def __enter__(self) -> None:
        if self.closing:
            raise shutting_down()
        self._tasks.add(_current_task())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        task = _current_task()
        self._tasks.discard(task)
        if self.closing and isinstance(error, asyncio.CancelledError):
            task.uncancel()
            raise shutting_down() from None


class RequestInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """`api_key` "" lets everyone in; `driver` is named in every line of the log."""

    def __init__(self, api_key: str, driver: str, calls: Calls) -> None:
        self._api_key = api_key.encode()
        self._driver = driver
        self._calls = calls
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            is_open = method.startswith(OPEN_SERVICES)
            self._wrapped[method] = self._wrap_open(handler) if is_open else self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        """The handler of the same kind, with a call's beginning and end around its behaviour."""
        kinds: dict[tuple[bool, bool], tuple[str, Callable[[str, Any], Any], Callable[..., Handler]]] = {
            (False, False): ("unary_unary", self._unary, grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", self._stream, grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", self._unary, grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", self._stream, grpc.stream_stream_rpc_method_handler),
        }
        attribute, wrap, make = kinds[handler.request_streaming, handler.response_streaming]
        behaviour = wrap(method, getattr(handler, attribute))
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _wrap_open(self, handler: Handler) -> Handler:
        """Neither key nor log line; but Health.Watch ends with the server, or probes would hold it open to the last."""
        if handler.request_streaming or not handler.response_streaming:
            return handler
        watch = handler.unary_stream

        async def call(request: Any, context: Context) -> None:
            try:
                with self._calls:
                    await watch(request, context)
            except BackendUnavailable as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)

        return grpc.unary_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def _unary(self, method: str, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        long = _name(method).startswith(_LONG)

        async def call(request: Any, context: Context) -> Any:
            record = _Call(method, self._driver, request, context)
            try:
                self._authenticate(context)
                if long:
                    with self._calls:
                        response = await behaviour(request, context)
                else:
                    response = await behaviour(request, context)
            except BaseException as error:
                await record.fail(error)
                raise
            record.succeed(response)
            return response

        return call

    def _stream(self, method: str, behaviour: Callable[[Any, Context], AsyncGenerator[Any]]) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            record = _Call(method, self._driver, request, context)
            try:
                self._authenticate(context)
                with self._calls:
                    async with contextlib.aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            yield response
            except BaseException as error:
                await record.fail(error)
                raise
            record.succeed(None)

        return call

    def _authenticate(self, context: Context) -> None:
        """Of several keys each must be right: a proxy in front may have looked at another than the one taken here."""
        if not self._api_key:
            return
        given = [value for key, value in context.invocation_metadata() or () if key == API_KEY and value]
        if not given:
            raise Unauthenticated("API_KEY_MISSING", f"the call carries no API key; send it in metadata {API_KEY!r}")
        if not all(hmac.compare_digest(value.encode(), self._api_key) for value in given):
            raise Unauthenticated("API_KEY_INVALID", f"the API key in metadata {API_KEY!r} is not this server's")


class _Call:
    """One RPC: its request id, and the line it leaves in the log."""

    def __init__(self, method: str, driver: str, request: Any, context: Context) -> None:
        self._method = method
        self._driver = driver
        self._context = context
        self._request = request
        self._began = time.perf_counter()
        self.metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        self.request_id = _request_id(self.metadata)
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        context.set_trailing_metadata(((REQUEST_ID, self.request_id),))

    def succeed(self, response: Any) -> None:
        level = logging.DEBUG if _name(self._method).startswith(_READS) else logging.INFO
        if log.is_enabled_for(level):  # reads are too many for a line that nobody is shown
            log.log(level, "rpc", **self._line("OK", getattr(getattr(response, "sandbox", None), "id", "")))

    async def fail(self, error: BaseException) -> None:
        """Logs the failure, and ends the RPC with its status unless the caller has ended it."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            log.info("rpc", **self._line("CANCELLED"))
            return
        if not isinstance(error, SandboxError):
            log.exception("rpc failed in an unforeseen way", **self._line("INTERNAL"))
            error = BackendError(
                f"the server failed; its log tells more under request id {self.request_id}", reason="INTERNAL"
            )
        else:
            log.info("rpc", **self._line(code_of(error).name), reason=error.reason, error=_loggable(error))
        code, message, details = to_status(error)
        trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID, self.request_id), (STATUS_DETAILS, details)]
        if isinstance(error, BackendUnavailable):
            trailing.append((RETRY_PUSHBACK, str(round(error.retry_after * 1000))))
        await self._context.abort(code, message, tuple(trailing))

    def _line(self, code: str, sandbox_id: str = "") -> dict[str, object]:
        line: dict[str, object] = {
            "method": self._method,
            "code": code,
            "driver": self._driver,
            "duration_ms": round((time.perf_counter() - self._began) * 1000, 2),
        }
        asked = getattr(self._request, "id", "") or getattr(self._request, "sandbox_id", "")
        if id := sandbox_id or str(asked)[:64]:
            line["sandbox_id"] = id
        return line


def _request_id(metadata: dict[str, str | bytes]) -> str:
    """The caller's, when it is fit for a header and a log, or a new one."""
    given = metadata.get(REQUEST_ID, "")
    if isinstance(given, str) and 0 < len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(128):032x}"


def _loggable(error: SandboxError) -> str:
    """What is malformed quotes what was sent, and that may be a secret in the wrong place."""
    if isinstance(error, InvalidArgument):
        return ", ".join(sorted({violation.field.partition("[")[0] for violation in error.violations}))
    return error.message


def _name(method: str) -> str:
    return method.rpartition("/")[2]


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
