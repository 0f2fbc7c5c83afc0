"""The synchronous client: the asynchronous one behind a portal. There is nothing here but the adapter.

`_call` and `_iterate` keep a method's parameters, result and docstring, so each method below is the asynchronous one of
the same name, blocking.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from opensandboxd._channel import TLS
from opensandboxd._convert import Duration
from opensandboxd._portal import Portal
from opensandboxd.client import DEFAULT_TIMEOUT, AsyncClient
from opensandboxd.handle import AsyncSandboxHandle
from opensandboxd.v1.sandbox_pb2 import Sandbox

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")


class _Blocking(Generic[A]):
    """Something asynchronous, and the loop that it lives on."""

    _asynchronous: A
    _portal: Portal


def _call(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Blocking[A], P], T]:
    @functools.wraps(method)
    def blocking(self: _Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._portal.run(method(self._asynchronous, *args, **kwargs))

    return blocking


def _iterate(
    method: Callable[Concatenate[A, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[_Blocking[A], P], Generator[T, None, None]]:
    @functools.wraps(method)
    def blocking(self: _Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        items = method(self._asynchronous, *args, **kwargs)

        async def step() -> tuple[T] | None:
            async for item in items:
                return (item,)
            return None

        async def close() -> None:
            await items.aclose()

        try:
            while found := self._portal.run(step()):
                yield found[0]
        finally:
            self._portal.run(close())

    return blocking


def _handle(
    method: Callable[Concatenate[AsyncClient, P], AsyncSandboxHandle],
) -> Callable[Concatenate[Client, P], SandboxHandle]:
    @functools.wraps(method)
    def blocking(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> SandboxHandle:
        return SandboxHandle(self._portal, method(self._asynchronous, *args, **kwargs))

    return blocking


class SandboxHandle(_Blocking[AsyncSandboxHandle]):
    """A sandbox, made by Client.sandbox(), which owns it, or Client.attach(), which does not.

    As a `with` block: an owner creates the sandbox on entry and deletes it on exit; the other reads it on entry and
    leaves it alone. Methods are Client's, without the id, and keep `info` up to date.
    """

    def __init__(self, portal: Portal, asynchronous: AsyncSandboxHandle) -> None:
        self._portal = portal
        self._asynchronous = asynchronous

    def __enter__(self) -> Self:
        self._portal.run(self._asynchronous.__aenter__())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.run(self._asynchronous.__aexit__(exc_type, exc, traceback))

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self._asynchronous.id

    @property
    def info(self) -> Sandbox:
        """The sandbox as the last call returned it. After attach(id) it has only its id until refresh()."""
        return self._asynchronous.info

    refresh = _call(AsyncSandboxHandle.refresh)
    pause = _call(AsyncSandboxHandle.pause)
    resume = _call(AsyncSandboxHandle.resume)
    renew = _call(AsyncSandboxHandle.renew)
    update_metadata = _call(AsyncSandboxHandle.update_metadata)
    wait = _call(AsyncSandboxHandle.wait)
    endpoint = _call(AsyncSandboxHandle.endpoint)
    logs = _iterate(AsyncSandboxHandle.logs)
    delete = _call(AsyncSandboxHandle.delete)


class Client(_Blocking[AsyncClient]):
    """A connection to opensandboxd. Safe to share between threads, and usable while an event loop runs.

    Takes what AsyncClient takes, and does the same, blocking. Works on an event loop in a thread of its own, which ends
    with close() or the `with` block.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool | str | os.PathLike[str] | TLS = False,
        timeout: Duration = DEFAULT_TIMEOUT,
    ) -> None:
        self._asynchronous = AsyncClient(target, api_key=api_key, tls=tls, timeout=timeout)
        self._portal = Portal(self._asynchronous.close)
        self._finalizer = weakref.finalize(self, self._portal.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and ends its thread; calls that still run fail. Sandboxes live on. Idempotent."""
        self._finalizer()

    @property
    def target(self) -> str:
        """The address in use."""
        return self._asynchronous.target

    create = _call(AsyncClient.create)
    sandbox = _handle(AsyncClient.sandbox)
    attach = _handle(AsyncClient.attach)
    get = _call(AsyncClient.get)
    list = _iterate(AsyncClient.list)
    update = _call(AsyncClient.update)
    delete = _call(AsyncClient.delete)
    pause = _call(AsyncClient.pause)
    resume = _call(AsyncClient.resume)
    renew = _call(AsyncClient.renew)
    wait = _call(AsyncClient.wait)
    watch = _iterate(AsyncClient.watch)
    endpoint = _call(AsyncClient.endpoint)
    logs = _iterate(AsyncClient.logs)
    runtime_info = _call(AsyncClient.runtime_info)
    secure_runtimes = _call(AsyncClient.secure_runtimes)
    health = _call(AsyncClient.health)
