"""Servers in processes of their own: started, awaited, weighed and stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60.0
"""Seconds that a server may take to start, and a call to answer."""
_STOP = 15.0
_LAST_WORDS = 2000


class BenchError(Exception):
    """The benchmark cannot go on; the message is complete for the terminal."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process in MB (10^6 bytes): now, and at its peak."""

    now: float
    peak: float


class Process:
    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self._process = process
        self._name = name
        self._log = log

    def memory(self) -> Memory:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return Memory(*(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")))

    def until(self, ready: Callable[[], bool]) -> None:
        """Returns when `ready` says so. BenchError, with the process's last words, when it ends or takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if self._process.poll() is not None:
                raise BenchError(f"{self._name} did not start:\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchError(f"{self._name} does not answer after {PATIENCE:.0f} s:\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-_LAST_WORDS:]


@contextmanager
def running(
    name: str, command: Sequence[str | Path], directory: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """The command, with its output in `directory`; ended afterwards. A Ctrl-C on the terminal does not reach it, so
    that it still serves while what was made through it is removed."""
    log = directory / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        yield Process(process, name, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
