"""What a container wrote, as the engine kept it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime

from opensandboxd_server.domain.model import LogChunk, LogOptions, LogStream
from opensandboxd_server.drivers.docker.api import DockerApi, EngineError, LogFrame
from opensandboxd_server.drivers.docker.state import parse_time

_NOT_FOUND = 404
_STREAMS = {1: LogStream.STDOUT, 2: LogStream.STDERR}


async def read(api: DockerApi, container_id: str, options: LogOptions) -> AsyncGenerator[LogChunk, None]:
    """Ends when all is told, with `follow` when the container has exited or is gone."""
    since = _seconds(options.since) if options.since else None
    told = _Told()
    async with aclosing(_frames(api, container_id, options.follow, options.tail_lines, since)) as frames:
        async for frame in frames:
            told.add(frame)
            if chunk := _chunk(frame, options):
                yield chunk
    if not options.follow or not told.time:
        return
    # The engine may end a followed log before its last line, when that has no end of line.
    try:
        async with aclosing(_frames(api, container_id, False, None, told.seconds)) as frames:
            async for frame in frames:
                if told.is_new(frame) and (chunk := _chunk(frame, options)):
                    yield chunk
    except EngineError as exc:
        if exc.status != _NOT_FOUND:
            raise


class _Told:
    """How far a log has been read: the last time, as the engine writes it, and how many frames were of that time."""

    def __init__(self) -> None:
        self.time = b""
        self._count = 0

    def add(self, frame: LogFrame) -> None:
        time = frame.data.partition(b" ")[0]
        self._count = self._count + 1 if time == self.time else 1
        self.time = time

    @property
    def seconds(self) -> str:
        """The time as the engine takes it: it keeps nanoseconds, a datetime does not."""
        fraction = self.time.decode().rstrip("Z").partition(".")[2]
        return f"{int(parse_time(self.time.decode()).timestamp())}.{fraction.ljust(9, '0')}"

    def is_new(self, frame: LogFrame) -> bool:
        """Asked of every frame from the last time on, in order."""
        if frame.data.startswith(self.time + b" ") and self._count:
            self._count -= 1
            return False
        return True


async def _frames(
    api: DockerApi, container_id: str, follow: bool, tail: int | None, since: str | None
) -> AsyncGenerator[LogFrame, None]:
    async with api.logs(container_id, follow=follow, tail=tail, since=since) as stream:
        while batch := await stream.next_batch():
            for frame in batch:
                yield frame


def _chunk(frame: LogFrame, options: LogOptions) -> LogChunk | None:
    """None for a stream that was not asked for."""
    stream = _STREAMS[frame.stream]
    if options.streams and stream not in options.streams:
        return None
    time, _, data = frame.data.partition(b" ")
    return LogChunk(stream, data, parse_time(time.decode()))


def _seconds(time: datetime) -> str:
    return f"{int(time.timestamp())}.{time.microsecond:06d}000"
