"""The one crossing to the Docker engine: docker-py's blocking client behind coroutines.

Calls run on a bounded thread pool, streams each on a thread of their own; all have time-outs. Errors come out as those
of domain.errors: BackendUnavailable when the engine does not answer, ResourceExhausted when it has no room, EngineError
with the engine's own words for the rest. A cancelled call is waited for, so that what follows meets its effect; the
CancelledError's cause is how the call failed, if it did.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import docker.auth
import docker.errors
import requests
import urllib3.exceptions
from docker import APIClient
from docker.types.daemon import CancellableStream
from docker.utils import parse_repository_tag

from opensandboxd_server.domain.errors import BackendError, BackendUnavailable, ResourceExhausted, SandboxError
from opensandboxd_server.domain.model import RegistryAuth
from opensandboxd_server.drivers.docker.streams import Source, Stream, settled
from opensandboxd_server.drivers.docker.workers import Workers

CALLS = 32
LOG_STREAMS = 128
PULLS = 32
PULL_STALL = 300.0
"""Seconds without a word from the engine after which a pull has failed."""
OLDEST_API = (1, 41)
"""Docker Engine 20.10's: the first that takes a platform at creation."""

_DEFAULT_HOST = "unix:///var/run/docker.sock"
_CHUNK = 64 * 1024
_FRAME_HEADER = 8
_EXHAUSTED = re.compile(
    r"no space left on device|disk quota exceeded|cannot allocate memory|too many open files|port is already allocated"
    r"|address pools? ha(?:s|ve) been fully subnetted|could not find an available.* address pool"
    r"|no available IPv[46] addresses",
    re.IGNORECASE,
)

_BROKEN = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    docker.errors.DockerException,
    OSError,
    json.JSONDecodeError,
)

Json = dict[str, Any]
T = TypeVar("T")


class EngineError(BackendError):
    """The engine refused or failed; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class LogFrame:
    """One write of the entry point, preceded by its time: "2026-01-01T00:00:00.000000000Z text". `stream`: 1 or 2."""

    stream: int
    data: bytes


class DockerApi:
    """`host` "" is the platform's default; `timeout` is in seconds."""

    def __init__(self, host: str, timeout: int) -> None:
        self.address = host or _DEFAULT_HOST
        self._timeout = timeout
        self._calls = Workers(CALLS, "engine-call")
        self._heartbeat = Workers(1, "engine-heartbeat")
        self._log_streams = threading.BoundedSemaphore(LOG_STREAMS)
        self._pulls = threading.BoundedSemaphore(PULLS)
        self._connected: APIClient | None = None

    async def connect(self) -> None:
        """Finds out what API version to speak; no other method works before."""
        self._connected = await self._submit(self._new_client)

    async def close(self) -> None:
        """Waits for nothing: calls that the engine has not answered fail with BackendUnavailable."""
        self._calls.close()
        self._heartbeat.close()
        if self._connected:
            self._connected.close()

    # The engine

    async def ping(self, timeout: float) -> None:
        """BackendUnavailable when the engine does not answer within `timeout` seconds. Waits behind no other call."""
        ask = partial(_ping, self._client, timeout)
        await asyncio.wrap_future(self._heartbeat.submit(partial(self._translating, ask)))

    async def version(self) -> Json:
        return await self.call(lambda client: client.version())

    async def info(self) -> Json:
        return await self.call(lambda client: client.info())

    # Containers; `id` is a container's name or id

    async def create_container(self, name: str, body: Json, platform: str | None = None) -> None:
        await self.call(
            lambda client: client.create_container_from_config(body, name, platform)  # type: ignore[no-untyped-call]
        )

    async def start_container(self, id: str) -> None:
        await self.call(lambda client: client.start(id))

    async def inspect_container(self, id: str) -> Json | None:
        """None when there is none."""
        return await self._found(lambda client: client.inspect_container(id))

    async def list_containers(self, label: str) -> list[Json]:
        """All that carry the label, in every state."""
        return await self.call(lambda client: client.containers(all=True, filters={"label": label}))

    async def remove_container(self, id: str) -> bool:
        """Kills and removes it with its anonymous volumes; False when there is none."""

        def remove(client: APIClient) -> bool:
            client.remove_container(id, force=True, v=True)
            return True

        return await self._found(remove) or False

    async def pause_container(self, id: str) -> None:
        await self.call(lambda client: client.pause(id))

    async def unpause_container(self, id: str) -> None:
        await self.call(lambda client: client.unpause(id))

    async def wait_container(
        self, id: str, timeout: int, until: Literal["not-running", "removed"] = "not-running"
    ) -> None:
        """BackendUnavailable when it takes more than `timeout` seconds."""
        await self._found(lambda client: client.wait(id, timeout=timeout, condition=until))

    async def container_output(self, id: str) -> bytes:
        """What it has written so far on standard output."""
        return bytes(await self.call(lambda client: client.logs(id, stdout=True, stderr=False)))

    # Networks and images

    async def inspect_network(self, name: str) -> Json | None:
        """None when there is none."""
        return await self._found(lambda client: client.inspect_network(name))

    async def create_network(self, name: str, options: Mapping[str, str], labels: Mapping[str, str]) -> None:
        await self.call(
            lambda client: client.create_network(
                name, driver="bridge", options=dict(options), labels=dict(labels), check_duplicate=True
            )
        )

    async def has_image(self, reference: str) -> bool:
        found = await self._found(lambda client: client.inspect_image(reference))  # type: ignore[no-untyped-call]
        return found is not None

    async def import_image(self, archive: bytes, repository: str, tag: str) -> None:
        """Makes an image of one layer out of a tar archive."""
        answer = await self.call(lambda client: client.import_image_from_data(archive, repository, tag))
        if '"errorDetail"' in answer:
            raise EngineError(500, answer.strip())

    # Streams

    def pull(self, image: str, auth: RegistryAuth | None, platform: str | None) -> Stream[Json]:
        """The engine's progress messages; one with "error" is the last when it fails."""
        return self._stream(partial(_open_pull, image, auth, platform), _json_lines, self._pulls, "image pulls")

    def events(self, filters: Mapping[str, list[str]], since: float) -> Stream[Json]:
        """Events that pass the filters from `since` on, seconds since 1970. Ends when the engine does."""
        params = {"filters": json.dumps(filters), "since": f"{since:.3f}"}
        return self._stream(partial(_open_get, "/events", params), _json_lines)

    def logs(self, id: str, *, follow: bool, tail: int | None, since: str | None) -> Stream[LogFrame]:
        """What was written `since`, in seconds from 1970; with `follow`, is. ResourceExhausted TOO_MANY_STREAMS."""
        params = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": str(int(follow))}
        params["tail"] = "all" if tail is None else str(tail)
        if since is not None:
            params["since"] = since
        return self._stream(
            partial(_open_get, f"/containers/{id}/logs", params), _frames, self._log_streams, "log streams"
        )

    # How

    async def call(self, work: Callable[[APIClient], T]) -> T:
        """Every call of the engine passes here."""
        return await self._submit(partial(work, self._client))

    async def _found(self, work: Callable[[APIClient], T]) -> T | None:
        try:
            return await self.call(work)
        except EngineError as exc:
            if exc.status != requests.codes.not_found:
                raise
            return None

    async def _submit(self, work: Callable[[], T]) -> T:
        running = self._calls.submit(partial(self._translating, work))
        waiting = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError as cancelled:
            if not running.cancel():
                await settled(waiting)
                cancelled.__cause__ = waiting.exception()
            raise

    def _stream(
        self,
        open: Callable[[APIClient, float], requests.Response],
        parse: Callable[[requests.Response], Iterator[T]],
        slots: threading.BoundedSemaphore | None = None,
        what: str = "",
    ) -> Stream[T]:
        if slots and not slots.acquire(blocking=False):
            raise ResourceExhausted(
                "TOO_MANY_STREAMS",
                f"too many {what} are open on this server; end some, or try again later",
                subject=what,
            )

        def read() -> Source[T]:
            response = self._translating(partial(open, self._client, self._timeout))
            return Source(self._reading(parse(response)), partial(_interrupt, response), response.close)

        return Stream(read, slots.release if slots else lambda: None)

    def _reading(self, items: Iterator[T]) -> Iterator[T]:
        with self._translation():
            yield from items

    def _translating(self, work: Callable[[], T]) -> T:
        with self._translation():
            return work()

    @contextmanager
    def _translation(self) -> Iterator[None]:
        try:
            yield
        except docker.errors.APIError as exc:
            raise _engine_error(exc) from exc
        except requests.Timeout as exc:
            raise BackendUnavailable(f"the Docker engine at {self.address} did not answer in time") from exc
        except _BROKEN as exc:
            raise BackendUnavailable(f"cannot reach the Docker engine at {self.address}: {exc}") from exc

    @property
    def _client(self) -> APIClient:
        if not self._connected:
            raise BackendUnavailable("the Docker driver has not started")
        return self._connected

    def _new_client(self) -> APIClient:
        client = APIClient(self.address, version="auto", timeout=self._timeout, max_pool_size=CALLS)
        version = client.api_version
        if tuple(int(part) for part in version.split(".")) < OLDEST_API:
            client.close()
            raise BackendError(
                f"the Docker engine at {self.address} speaks API {version}; install Docker Engine 20.10 or newer"
            )
        return client


def _engine_error(exc: docker.errors.APIError) -> SandboxError:
    message = str(exc.explanation or exc)
    if _EXHAUSTED.search(message):
        return ResourceExhausted(
            "BACKEND_EXHAUSTED", f"the Docker engine has no room left: {message}", subject="docker engine"
        )
    return EngineError(exc.status_code or requests.codes.server_error, message)


def _url(client: APIClient, path: str) -> str:
    return f"{client.base_url}/v{client.api_version}{path}"


def _checked(response: requests.Response) -> requests.Response:
    try:
        response.raise_for_status()
    except requests.HTTPError as exc:
        with closing(response):
            docker.errors.create_api_error_from_http_exception(exc)
    return response


def _ping(client: APIClient, timeout: float) -> None:
    _checked(client.get(_url(client, "/_ping"), timeout=timeout)).close()


def _open_get(path: str, params: Mapping[str, str], client: APIClient, timeout: float) -> requests.Response:
    return _checked(client.get(_url(client, path), params=params, stream=True, timeout=(timeout, None)))


def _open_pull(
    image: str, auth: RegistryAuth | None, platform: str | None, client: APIClient, timeout: float
) -> requests.Response:
    """Without credentials of the caller's, those that the server's administrator is logged in with are used."""
    repository, tag = parse_repository_tag(image)
    params = {"fromImage": repository, "tag": tag or "latest"} | ({"platform": platform} if platform else {})
    headers = {}
    if auth:
        headers["X-Registry-Auth"] = docker.auth.encode_header({"username": auth.username, "password": auth.password})
    else:
        registry, _ = docker.auth.resolve_repository_name(repository)
        if header := docker.auth.get_config_header(client, registry):
            headers["X-Registry-Auth"] = header
    url = _url(client, "/images/create")
    return _checked(client.post(url, params=params, headers=headers, stream=True, timeout=(timeout, PULL_STALL)))


def _interrupt(response: requests.Response) -> None:
    """Shuts the connection down, so that a thread reading from it reads its end."""
    with suppress(OSError, AttributeError):  # it has ended meanwhile
        CancellableStream(iter(()), response).close()


def _json_lines(response: requests.Response) -> Iterator[Json]:
    for line in response.iter_lines(_CHUNK):
        if line:
            yield json.loads(line)


def _frames(response: requests.Response) -> Iterator[LogFrame]:
    """The engine's framing of a container without a terminal: stream, three zeros, length in four bytes, data."""
    buffer = bytearray()
    for chunk in response.iter_content(_CHUNK):
        buffer += chunk
        start = 0
        while len(buffer) - start >= _FRAME_HEADER:
            end = start + _FRAME_HEADER + int.from_bytes(buffer[start + 4 : start + 8], "big")
            if len(buffer) < end:
                break
            yield LogFrame(buffer[start], bytes(buffer[start + _FRAME_HEADER : end]))
            start = end
        del buffer[:start]
