"""The houses that the conformance suite visits: a driver, the backend under it, and what people do behind its back.

A new driver joins the suite with one class here and one line in HOUSES.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd_server.app import driver_for
from opensandboxd_server.domain.errors import FailedPrecondition
from opensandboxd_server.domain.model import LogChunk, LogStream
from opensandboxd_server.domain.ports import Clock, SandboxDriver, SandboxStore
from opensandboxd_server.drivers.fake import FakeBackend, FakeDriver
from tests import harness
from tests.harness import Server


@dataclass(frozen=True)
class Work:
    """What an entry point does: writes `lines` of (stream, text), `pause` seconds apart, then exits, or stays."""

    lines: tuple[tuple[str, str], ...] = ()
    pause: float = 0.0
    exit: int | None = None


STAY = Work()


class JumpingClock:
    """The machine's clock, moved on by what a test says."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def jump_to(self, time: datetime) -> None:
        self._ahead = time - datetime.now(UTC)


class House(Protocol):
    """A driver and its backend. `runs_processes`: entry points are real, so what they do can be looked at."""

    name: str
    image: str
    absent_image: str
    secure_runtime: str
    runs_processes: bool
    preamble: tuple[str, ...]

    def missing(self) -> str:
        """Why this house cannot be visited on this machine, or ""."""

    def open(
        self, store: SandboxStore | None = None, clock: Clock | None = None, instance: str = "", **server: Any
    ) -> AbstractAsyncContextManager[Server]:
        """A new server over this house's backend."""

    def entrypoint(self, work: Work) -> list[str]: ...

    async def perform(self, server: Server, id: str, work: Work) -> None:
        """Where entry points are not real: does what one would."""

    def slowly(self, server: Server) -> AbstractAsyncContextManager[None]:
        """Creations begun inside do not finish before its end, or take a quarter of a second at least."""

    async def kill(self, server: Server, id: str) -> None:
        """Somebody kills the entry point behind the server's back."""

    async def remove(self, server: Server, id: str) -> None:
        """Somebody removes the sandbox behind the server's back."""

    async def remains(self, server: Server, instance: str = "") -> list[str]:
        """Whatever sandboxes have left on the backend."""

    def close(self) -> None: ...


class FakeHouse:
    name = "fake"
    image = "fake/image:1"
    absent_image = "fake/absent:1"
    secure_runtime = ""
    runs_processes = False
    preamble: tuple[str, ...] = ("started\n",)

    def __init__(self) -> None:
        self._backends: dict[str, FakeBackend] = {}

    def missing(self) -> str:
        return ""

    def open(
        self, store: SandboxStore | None = None, clock: Clock | None = None, instance: str = "", **server: Any
    ) -> AbstractAsyncContextManager[Server]:
        backend = self._backends.setdefault(instance, FakeBackend())
        return harness.serving(_PickyFake(backend, self.absent_image), store, clock, server=server)

    def entrypoint(self, work: Work) -> list[str]:
        return ["fake", repr(work)]

    async def perform(self, server: Server, id: str, work: Work) -> None:
        for stream, text in work.lines:
            chunk = LogChunk(LogStream(stream), f"{text}\n".encode(), datetime.now(UTC))
            server.driver.backend.logs[id].append(chunk)
            await asyncio.sleep(work.pause)
        if work.exit is not None:
            server.driver.exit(id, work.exit)

    @asynccontextmanager
    async def slowly(self, server: Server) -> AsyncIterator[None]:
        gate = server.driver.hold("start")
        try:
            yield
        finally:
            gate.set()

    async def kill(self, server: Server, id: str) -> None:
        server.driver.exit(id, 137, "KILLED")

    async def remove(self, server: Server, id: str) -> None:
        server.driver.vanish(id)

    async def remains(self, server: Server, instance: str = "") -> list[str]:
        return list(server.driver.backend.sandboxes)

    def close(self) -> None:
        pass


class _PickyFake(FakeDriver):
    """Has every image but one, and every program but one."""

    def __init__(self, backend: FakeBackend, absent_image: str) -> None:
        super().__init__(backend)
        self._absent = absent_image

    async def create(self, plan: Any, progress: Any) -> Any:
        if plan.image.uri == self._absent:
            self.inject_error("pull", FailedPrecondition("IMAGE_PULL_FAILED", "no such image", subject=plan.image.uri))
        if plan.entrypoint[:1] == ("/no/such/program",):
            self.inject_error("start", FailedPrecondition("START_FAILED", "no such program", subject=plan.id))
        return await super().create(plan, progress)


class DockerHouse:
    """The engine at its default address; `secure_runtime` is the configured type."""

    name = "docker"
    image = os.environ.get("OSB_TEST_IMAGE", "opensandboxd/base:bookworm")
    absent_image = "localhost:1/opensandboxd/absent:none"
    secure_runtime = ""
    oci_runtime = "runc"
    runs_processes = True
    preamble: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._run = secrets.token_hex(3)
        self._instances: set[str] = set()

    def missing(self) -> str:
        if not shutil.which("docker"):
            return "there is no docker command"
        found = subprocess.run(["docker", "info", "--format", "{{json .Runtimes}}"], capture_output=True, text=True)
        if found.returncode:
            return f"no Docker engine answers: {found.stderr.strip()}"
        if self.oci_runtime not in json.loads(found.stdout):
            return f"the Docker engine has no runtime {self.oci_runtime}"
        if subprocess.run(["docker", "image", "inspect", self.image], capture_output=True).returncode:
            return f"the Docker engine has no image {self.image}; name another in OSB_TEST_IMAGE"
        return ""

    def open(
        self, store: SandboxStore | None = None, clock: Clock | None = None, instance: str = "", **server: Any
    ) -> AbstractAsyncContextManager[Server]:
        sections: dict[str, Any] = {
            "server": {"instance": self._instance(instance), **server},
            "secure_runtime": {"type": self.secure_runtime},
        }
        driver: SandboxDriver = driver_for(harness.settings(**sections))
        return harness.serving(driver, store, clock, **sections)

    def entrypoint(self, work: Work) -> list[str]:
        script = []
        for stream, text in work.lines:
            script.append(f"printf '%s\\n' {shlex.quote(text)}{' >&2' if stream == 'stderr' else ''}")
            script.append(f"sleep {work.pause or 0.02}")
        script.append("exec sleep infinity" if work.exit is None else f"exit {work.exit}")
        return ["/bin/sh", "-c", "\n".join(script)]

    async def perform(self, server: Server, id: str, work: Work) -> None:
        pass

    @asynccontextmanager
    async def slowly(self, server: Server) -> AsyncIterator[None]:
        yield

    async def kill(self, server: Server, id: str) -> None:
        await docker("kill", id)

    async def remove(self, server: Server, id: str) -> None:
        await docker("rm", "-f", id)

    async def remains(self, server: Server, instance: str = "") -> list[str]:
        label = f"label=opensandbox.io/instance={self._instance(instance)}"
        containers = await docker("ps", "--all", "--format", "{{.Names}}", "--filter", label)
        volumes = await docker("volume", "ls", "--format", "{{.Name}}", "--filter", label)
        return [*containers.split(), *volumes.split()]

    def close(self) -> None:
        for instance in self._instances:
            label = f"label=opensandbox.io/instance={instance}"
            left = subprocess.run(["docker", "ps", "-aq", "--filter", label], capture_output=True, text=True)
            if ids := left.stdout.split():
                subprocess.run(["docker", "rm", "-f", *ids], capture_output=True)
            subprocess.run(["docker", "network", "rm", f"opensandboxd-{instance}"], capture_output=True)

    def _instance(self, name: str) -> str:
        instance = f"conformance-{self._run}{'-' if name else ''}{name}"
        self._instances.add(instance)
        return instance


class GvisorHouse(DockerHouse):
    name = "gvisor"
    secure_runtime = "gvisor"
    oci_runtime = "runsc"


async def docker(*arguments: str) -> str:
    """What somebody at the engine's own command line does."""
    process = await asyncio.create_subprocess_exec(
        "docker", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


HOUSES: Mapping[str, Callable[[], House]] = {"fake": FakeHouse, "docker": DockerHouse, "gvisor": GvisorHouse}

RUNNING = pb.SANDBOX_STATE_RUNNING
PENDING = pb.SANDBOX_STATE_PENDING
PAUSED = pb.SANDBOX_STATE_PAUSED
PAUSING = pb.SANDBOX_STATE_PAUSING
RESUMING = pb.SANDBOX_STATE_RESUMING
STOPPING = pb.SANDBOX_STATE_STOPPING
TERMINATED = pb.SANDBOX_STATE_TERMINATED
FAILED = pb.SANDBOX_STATE_FAILED
