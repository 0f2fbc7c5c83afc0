"""A real grpc.aio server that answers what a test wrote down, and complains of what nobody asked for."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import status_pb2

from opensandboxd.v1 import runtime_service_pb2, sandbox_service_pb2

SERVICES = (
    sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"],
    runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"],
)


@dataclass(frozen=True)
class Fault:
    """Ends a call with a status, as opensandboxd does."""

    code: grpc.StatusCode
    message: str = ""
    details: Sequence[Message] = ()
    trailing: Sequence[tuple[str, str | bytes]] = ()

    async def abort(self, context: Any) -> None:
        trailing = list(self.trailing)
        if self.details:
            status = status_pb2.Status(code=self.code.value[0], message=self.message)
            for detail in self.details:
                packed = AnyMessage()
                packed.Pack(detail)
                status.details.append(packed)
            trailing.append(("grpc-status-details-bin", status.SerializeToString()))
        await context.abort(self.code, self.message, tuple(trailing))


@dataclass(frozen=True)
class Hang:
    """Never answers. `gone` is set when the caller has hung up."""

    gone: threading.Event


Step = Message | Fault | Hang
"""A unary reply is one step; a stream is as many as come before its end."""


@dataclass(frozen=True)
class Received:
    request: Any
    metadata: dict[str, str | bytes]
    time_remaining: float | None


class ScriptedServer:
    """Answers `Method` with what `expect("Method", ...)` queued, in order. An RPC nobody expects fails with UNKNOWN."""

    def __init__(self) -> None:
        self.port = 0
        self.received: defaultdict[str, list[Received]] = defaultdict(list)
        self._script: defaultdict[str, deque[tuple[Step, ...]]] = defaultdict(deque)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def expect(self, method: str, *steps: Step) -> None:
        """Answers the next call of `method` not yet scripted."""
        self._script[method].append(steps)

    def unconsumed(self) -> dict[str, int]:
        return {method: len(left) for method, left in self._script.items() if left}

    def requests(self, method: str) -> list[Any]:
        return [received.request for received in self.received[method]]

    def handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        for service in SERVICES:
            yield grpc.method_handlers_generic_handler(
                service.full_name, {method.name: self._handler(method) for method in service.methods}
            )

    def _handler(self, method: MethodDescriptor) -> Any:
        async def steps(request: Message, context: Any) -> AsyncIterator[Message]:
            metadata = dict(context.invocation_metadata())
            self.received[method.name].append(Received(request, metadata, context.time_remaining()))
            if not self._script[method.name]:
                await context.abort(grpc.StatusCode.UNKNOWN, f"nobody expected {method.name}")
            for step in self._script[method.name].popleft():
                if isinstance(step, Fault):
                    await step.abort(context)
                elif isinstance(step, Hang):
                    try:
                        await asyncio.Event().wait()
                    finally:
                        step.gone.set()
                else:
                    yield step

        async def unary(request: Message, context: Any) -> Message:
            async for step in steps(request, context):
                return step
            raise AssertionError(f"the script of {method.name} has no reply")

        make: Callable[..., Any] = (
            grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(
            steps if method.server_streaming else unary,
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


@contextmanager
def in_thread(serve: Callable[[Future[Any], asyncio.Event], Awaitable[None]]) -> Iterator[Any]:
    """Runs a server on an event loop in a thread: `serve(started, stop)` sets started's result, then waits for stop."""
    started: Future[Any] = Future()
    loop_of: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        loop_of.set_result((asyncio.get_running_loop(), stop))
        try:
            await serve(started, stop)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="test-server")
    thread.start()
    try:
        yield started.result(timeout=30)
    finally:
        loop, stop = loop_of.result()
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@contextmanager
def scripted_server(credentials: grpc.ServerCredentials | None = None) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()

    async def serve(started: Future[None], stop: asyncio.Event) -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(scripted.handlers()))
        scripted.port = (
            server.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else server.add_insecure_port("127.0.0.1:0")
        )
        await server.start()
        started.set_result(None)
        await stop.wait()
        await server.stop(None)

    with in_thread(serve):
        yield scripted
    assert not scripted.unconsumed(), f"scripted but never asked for: {scripted.unconsumed()}"
