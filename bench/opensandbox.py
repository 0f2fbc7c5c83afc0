"""OpenSandbox's own server, from PyPI, in a virtual environment of its own, driven over HTTP."""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.engine import RUN_LABEL, Engine
from bench.processes import PATIENCE, BenchError, Process, free_port, listens, running
from bench.rpc import toml
from bench.threads import Threads

VERSION = "1.1.1"
VENV = Path(".cache/bench/opensandbox-venv")
_KEEP_ALIVE = 2.0
"""Seconds that an idle connection is kept."""

_EXECD = {
    "execd": "#!/bin/sh\nexec sleep infinity\n",
    "bootstrap.sh": '#!/bin/sh\n/opt/opensandbox/execd &\nexec "$@"\n',
}
"""The least that its sandboxes start with: the real execd is a larger file to copy, and has more to do."""


class OpenSandbox:
    def __init__(self, process: Process, port: int, api_key: str, request: Mapping[str, Any], threads: Threads) -> None:
        self.process = process
        self._port = port
        self._headers = {"OPEN-SANDBOX-API-KEY": api_key, "Content-Type": "application/json"}
        self._request = request
        self._threads = threads
        self._connections = threading.local()

    async def create(self) -> str:
        """Returns the id of a sandbox that is Running: its server answers when it is."""
        return str((await self._call("POST", "/sandboxes", self._request))["id"])

    async def delete(self, id: str) -> None:
        await self._call("DELETE", f"/sandboxes/{id}")

    async def get(self, id: str) -> None:
        state = (await self._call("GET", f"/sandboxes/{id}"))["status"]["state"]
        if state != "Running":
            raise BenchError(f"OpenSandbox's sandbox {id} is {state}")

    async def list(self, page_size: int) -> int:
        """Returns how many sandboxes are on the first page."""
        return len((await self._call("GET", f"/sandboxes?pageSize={page_size}"))["items"])

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return await self._threads.run(lambda: self._exchange(method, path, body))

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        connection = self._connection()
        connection.request(method, path, json.dumps(body) if body else None, self._headers)
        response = connection.getresponse()
        text = response.read()
        self._connections.used = time.monotonic()
        if response.status >= http.client.BAD_REQUEST:
            raise BenchError(f"OpenSandbox answered {method} {path} with {response.status}: {text.decode()}")
        return json.loads(text) if text else None

    def _connection(self) -> http.client.HTTPConnection:
        """One for each thread, kept for as long as its server is sure to keep it."""
        mine = self._connections
        if not hasattr(mine, "used"):
            mine.kept = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        elif time.monotonic() - mine.used > _KEEP_ALIVE:
            mine.kept.close()
        connection: http.client.HTTPConnection = mine.kept
        return connection


@asynccontextmanager
async def opensandbox(
    run: str, directory: Path, engine: Engine, threads: Threads, *, image: str, request: Mapping[str, Any], gvisor: bool
) -> AsyncIterator[OpenSandbox]:
    """A server on a configuration of its own, with an API key and a SQLite store."""
    python = _installed()
    execd_image = f"opensandboxd-bench/execd:{run}"
    engine.build_image(image, execd_image, _EXECD)
    port, api_key = free_port(), secrets.token_urlsafe(24)
    name = "opensandbox-gvisor" if gvisor else "opensandbox"
    config = directory / f"{name}.toml"
    config.write_text(
        toml(
            server={"host": "127.0.0.1", "port": port, "api_key": api_key},
            runtime={"type": "docker", "execd_image": execd_image},
            docker={"network_mode": "bridge", "publish_host": "127.0.0.1"},
            secure_runtime={"type": "gvisor", "docker_runtime": "runsc"} if gvisor else {"type": ""},
            store={"path": str(directory / f"{name}.db")},
        )
    )
    command: list[str | Path] = [python.with_name("opensandbox-server"), "--config", config]
    try:
        with running(name, command, directory, {"OPENSANDBOX_SERVER_API_KEY": api_key}) as process:
            process.until(lambda: listens(port))
            body = {"image": {"uri": image}, "metadata": {RUN_LABEL: run}, "timeout": 3600, **request}
            yield OpenSandbox(process, port, api_key, body, threads)
    finally:
        engine.sweep(f"label={RUN_LABEL}={run}", f"ancestor={execd_image}")
        engine.remove_image(execd_image)


def _installed() -> Path:
    """The interpreter that has it; installs it when it is missing."""
    python = VENV.resolve() / "bin" / "python"
    if not python.with_name("opensandbox-server").exists():
        print(f"installing opensandbox-server {VERSION} into {VENV}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
            pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            subprocess.run([*pip, f"opensandbox-server=={VERSION}"], check=True)
        except subprocess.CalledProcessError as exc:
            raise BenchError(
                f"cannot install opensandbox-server {VERSION}; see above, or leave it out: --without-opensandbox"
            ) from exc
    return python
