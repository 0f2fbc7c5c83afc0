"""Drivers on real engines: the one that answers, and private ones that a test may stop, break and fill.

Every driver gets an instance of its own, and everything of that instance is removed afterwards. A test that fails
shows its containers' states and logs.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
import requests

from opensandboxd_server.domain.model import ImageSource, SandboxRuntime, SandboxSpec
from opensandboxd_server.domain.names import new_id
from opensandboxd_server.domain.policy import SandboxPlan, SecurityPlan
from opensandboxd_server.domain.runtimes import RUNTIMES
from opensandboxd_server.drivers.docker.container import INSTANCE
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions
from opensandboxd_server.drivers.docker.proof import LABEL

IMAGE = "opensandboxd/base:bookworm"
BOTH_RUNTIMES = [pytest.param("", id="runc"), pytest.param("gvisor", id="gvisor", marks=pytest.mark.gvisor)]
SLEEP = ("sleep", "1000")
SECURITY = SecurityPlan(("MKNOD", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"), True, 256, "", "")


Shown = pytest.StashKey[list["Engine"]]()


@dataclass
class Engine:
    """An engine, by docker-py itself, and what the tests have on it."""

    client: docker.APIClient
    host: str = ""
    instances: list[str] = field(default_factory=list)

    def options(self, runtime: str = "", **changes: Any) -> DockerOptions:
        """Options of a server that nobody else is."""
        instance = f"test-{secrets.token_hex(4)}"
        self.instances.append(instance)
        known = RUNTIMES[runtime]
        options = DockerOptions(instance, docker_host=self.host, runtime=known, oci_runtime=known.oci_runtime)
        return replace(options, **changes)

    def containers(self, instance: str = "") -> list[dict[str, Any]]:
        instances = [instance] if instance else self.instances
        labels = [f"{label}={name}" for name in instances for label in (INSTANCE, LABEL)]
        return [found for label in labels for found in self.client.containers(all=True, filters={"label": label})]

    def networks(self) -> list[str]:
        labels = [f"{INSTANCE}={instance}" for instance in self.instances]
        return [found["Name"] for label in labels for found in self.client.networks(filters={"label": label})]

    def inspect(self, id: str) -> dict[str, Any]:
        return dict(self.client.inspect_container(id))

    def execute(self, id: str, *command: str) -> tuple[int, str]:
        """Exit code and output of a command in a container."""
        made = self.client.exec_create(id, list(command))
        output = self.client.exec_start(made["Id"])
        return int(self.client.exec_inspect(made["Id"])["ExitCode"]), output.decode(errors="replace")

    def show(self) -> str:
        """The tests' containers, for people: state, and the end of what they wrote."""
        lines = []
        for container in self.containers():
            state = self.inspect(container["Id"])["State"]
            output = self.client.logs(container["Id"], tail=20, timestamps=True).decode(errors="replace")
            lines.append(f"{container['Names']} {json.dumps(state)}\n{output[-2000:]}")
        return "\n".join(lines) or "no containers"

    def clean(self) -> None:
        for container in self.containers():
            with suppress(docker.errors.NotFound):
                self.client.remove_container(container["Id"], force=True, v=True)
        for name in self.networks():
            with suppress(docker.errors.NotFound):
                self.client.remove_network(name)


def pytest_configure(config: pytest.Config) -> None:
    """docker-py leaves Unix sockets that did not connect to the collector; those that did show a raddr here."""
    never_connected = r"ignore:unclosed <socket.socket fd=\d+, family=1, type=1, proto=0>:ResourceWarning"
    config.addinivalue_line("filterwarnings", never_connected)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.when != "teardown":
        for engine in item.stash.get(Shown, []):
            with suppress(docker.errors.DockerException, requests.RequestException):
                report.sections.append(("containers of this test", engine.show()))
    return report


@pytest.fixture(scope="session")
def default_client() -> Iterator[docker.APIClient]:
    try:
        client = docker.APIClient(os.environ.get("DOCKER_HOST"), version="auto", timeout=60)
    except docker.errors.DockerException as exc:
        pytest.skip(f"no Docker engine answers: {exc}")
    if not client.images(IMAGE):
        client.close()
        pytest.skip(f"the engine lacks {IMAGE}: deploy/dev/engine image")
    yield client
    client.close()


@pytest.fixture
def engine(default_client: docker.APIClient, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(default_client, os.environ.get("DOCKER_HOST", ""))
    request.node.stash.setdefault(Shown, []).append(engine)
    if request.node.get_closest_marker("gvisor") and "runsc" not in default_client.info()["Runtimes"]:
        pytest.skip("the engine does not have the runtime runsc")
    yield engine
    engine.clean()


@pytest.fixture
async def started() -> AsyncIterator[Callable[[DockerOptions], Any]]:
    """Starts drivers, and closes them at the end: `driver = await started(options)`."""
    drivers: list[DockerDriver] = []

    async def start(options: DockerOptions) -> DockerDriver:
        driver = DockerDriver(options)
        drivers.append(driver)
        await driver.start()
        return driver

    yield start
    for driver in drivers:
        await driver.close()


def plan_for(options: DockerOptions, *entrypoint: str, **changes: Any) -> SandboxPlan:
    """A plan for a sandbox of the base image under the options' runtime; sleeps unless told what to run."""
    image = changes.pop("image", ImageSource(IMAGE))
    command = entrypoint or SLEEP
    spec = SandboxSpec(image, entrypoint=command, ports=changes.get("ports", ())).without_auth()
    runtime = SandboxRuntime(options.runtime.type, options.runtime.isolation, oci_runtime=options.oci_runtime)
    plan = SandboxPlan(new_id(), spec, image, {}, datetime.now(UTC), None, runtime, SECURITY, entrypoint=command)
    return replace(plan, **changes)


def unheard(reason: str, message: str) -> None:
    """A Progress for who does not care."""


# A private engine

CLEAN_LIMIT = 20.0


@dataclass
class PrivateEngine:
    """A dockerd of the tests' own. `runtimes` are added to runc.

    It lives in network and mount namespaces of its own: on the host's, a second dockerd takes the first one's bridge
    and firewall rules apart.
    """

    directory: Path
    runtimes: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.directory}/docker.sock"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> None:
        (self.directory / "daemon.json").write_text(json.dumps({"runtimes": self.runtimes}))
        arguments = {
            "config-file": self.directory / "daemon.json",
            "host": self.host,
            "data-root": self.directory / "data",
            "exec-root": self.directory / "exec",
            "pidfile": self.directory / "pid",
        }
        dockerd = ["dockerd", *(f"--{name}={value}" for name, value in arguments.items())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "--mount", *dockerd], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + CLEAN_LIMIT
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-800:]
                self.stop()
                pytest.skip(f"dockerd does not run here: {tail}")
            time.sleep(0.1)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The engine keeps its connections and answers nothing."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(CLEAN_LIMIT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.host.removeprefix("unix://"))
            except OSError:
                return False
        docker.APIClient(self.host, version="auto", timeout=20).close()
        return True


@pytest.fixture(scope="session")
def private_daemon() -> Iterator[PrivateEngine]:
    runc = shutil.which("runc")
    if os.geteuid() != 0 or not runc or not all(shutil.which(tool) for tool in ("dockerd", "unshare")):
        pytest.skip("a private engine needs root, dockerd, runc and unshare")
    directory = Path(tempfile.mkdtemp(prefix="osbd-", dir="/tmp"))  # short, for the sockets below it
    private = PrivateEngine(directory, {"kata-runtime": {"path": runc}})
    try:
        private.start()
        yield private
    finally:
        private.remove()


@pytest.fixture(scope="session")
def private_image(private_daemon: PrivateEngine, default_client: docker.APIClient) -> str:
    """The base image, with a volume declared, on the private engine."""
    client = docker.APIClient(private_daemon.host, version="auto", timeout=120)
    container = default_client.create_container(IMAGE, ["true"], labels={"opensandboxd-test": "export"})
    try:
        archive = private_daemon.directory / "base.tar"
        with archive.open("wb") as file:
            file.writelines(default_client.export(container["Id"]))
        client.import_image_from_file(str(archive), "opensandboxd/base", "bookworm", changes=["VOLUME /data"])
        archive.unlink()
    finally:
        default_client.remove_container(container["Id"])
        client.close()
    return IMAGE


@pytest.fixture
def private_engine(
    private_daemon: PrivateEngine, private_image: str, request: pytest.FixtureRequest
) -> Iterator[tuple[PrivateEngine, Engine]]:
    """Running, with the base image and nothing else on it."""
    if not private_daemon.answers():
        private_daemon.start()
    client = docker.APIClient(private_daemon.host, version="auto", timeout=60)
    engine = Engine(client, private_daemon.host)
    request.node.stash.setdefault(Shown, []).append(engine)
    yield private_daemon, engine
    engine.clean()
    client.close()
