"""`make demo`: one sandbox's life over gRPC, from creation to removal, each step with its milliseconds.

Starts a server of its own on a free port, talks to it through the public client, and stops it, whatever happens.
Exits with 1 when a step fails or does not show what it should.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.dev.server import API_KEY_VARIABLE, COMMAND, HOST, write_config
from opensandboxd import (
    AsyncClient,
    GetEndpointResponse,
    Isolation,
    NotFoundError,
    Sandbox,
    SandboxError,
    SandboxState,
)

IMAGE = "opensandboxd/base:bookworm"
LABELS = {"demo": "lifecycle"}
PORT = 8000
GREETING = "hello from the sandbox"
GREETER = (
    f'$SIG{{PIPE}} = "IGNORE"; $s = IO::Socket::INET->new(LocalPort => {PORT}, Listen => 9) or die;'
    f' while (1) {{ $c = $s->accept or next; print $c "{GREETING}\\n"; close $c }}'
)
ENTRYPOINT = ["sh", "-c", f"dmesg 2>&1 | head -n 3; uname -a; exec perl -MIO::Socket::INET -e '{GREETER}'"]
PATIENCE = 30.0
"""Seconds for a start, a stop, or a line that must come."""


class DemoError(Exception):
    """A step did not show what it should."""


def timed(step: str) -> Callable[[str], None]:
    """Starts the clock of a step; what it returns stops it and prints the line."""
    began = time.perf_counter()

    def done(text: str) -> None:
        print(f"{step:<10}{(time.perf_counter() - began) * 1000:>8.1f} ms  {text}", flush=True)

    return done


def aside(step: str, text: str) -> None:
    """A line that is not timed, dimmed on a terminal."""
    line = f"{step:<10}{'':>11}  {text}"
    print(f"\033[2m{line}\033[0m" if sys.stdout.isatty() else line, flush=True)


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise DemoError(what)


def state_of(sandbox: Sandbox) -> str:
    return SandboxState.Name(sandbox.status.state).removeprefix("SANDBOX_STATE_")


def seconds_left(sandbox: Sandbox) -> float:
    return (sandbox.expire_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()


@dataclass(frozen=True)
class Server:
    """A server of the demo's own. `log` is what it writes."""

    process: subprocess.Popen[bytes]
    target: str
    api_key: str
    log: Path

    def last_words(self) -> str:
        return "\n".join(f"  {line}" for line in self.log.read_text(errors="replace").splitlines()[-8:])


@contextmanager
def running_server(secure_runtime: str) -> Iterator[Server]:
    """A server on a free port of the loopback interface, stopped at the end of the block, its network removed."""
    instance = f"demo-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="opensandboxd-demo-") as directory:
        config, log = Path(directory, "demo.toml"), Path(directory, "server.log")
        with socket.create_server((HOST, 0)) as free:
            port = free.getsockname()[1]
        api_key = write_config(config, port, secure_runtime, instance)
        environ = {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [COMMAND, "--config", config], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ
            )
        try:
            yield Server(process, f"{HOST}:{port}", api_key, log)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            subprocess.run(["docker", "network", "rm", f"opensandboxd-{instance}"], capture_output=True, check=False)


async def until_serving(client: AsyncClient, server: Server, secure_runtime: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise DemoError(f"the server refused to start.{way_out(secure_runtime)}")
        with suppress(SandboxError):
            if await client.health(timeout=1):
                return
        await asyncio.sleep(0.05)
    raise DemoError(f"the server does not serve after {PATIENCE:.0f} s")


def way_out(secure_runtime: str) -> str:
    if not secure_runtime:
        return ""
    return (
        f" If the engine lacks {secure_runtime}, register it (docs/secure-runtimes.md),"
        " or knowingly go without one: make demo SECURE_RUNTIME="
    )


async def life_of_a_sandbox(client: AsyncClient, secure_runtime: str) -> None:
    """Every step of the demo. The sandbox is gone afterwards, also when a step fails."""
    await show_runtime(client, secure_runtime)
    snapshot = asyncio.Event()
    watcher = asyncio.create_task(show_changes(client, snapshot))
    try:
        async with asyncio.timeout(PATIENCE):
            await snapshot.wait()
        done = timed("create")
        sandbox = await client.create(
            IMAGE,
            entrypoint=ENTRYPOINT,
            metadata=LABELS,
            cpu="500m",
            memory="256Mi",
            ports=[PORT],
            ttl=600,
            require_secure_runtime=bool(secure_runtime),
        )
        done(f"{sandbox.id} is {state_of(sandbox)} under {sandbox.status.runtime.oci_runtime or 'the default runtime'}")
        try:
            await look_inside(client, sandbox, secure_runtime)
            endpoint = await inspect(client, sandbox)
            await freeze_and_thaw(client, sandbox, endpoint)
            await renew(client, sandbox)
            await delete(client, sandbox)
            async with asyncio.timeout(PATIENCE):
                await watcher
        finally:
            await client.delete(sandbox.id, allow_missing=True)
    finally:
        watcher.cancel()


async def show_runtime(client: AsyncClient, secure_runtime: str) -> None:
    done = timed("runtime")
    info = await client.runtime_info()
    runtime = info.secure_runtime
    expect(runtime.type == secure_runtime, f"the server runs sandboxes under {runtime.type!r}, not {secure_runtime!r}")
    isolation = Isolation.Name(runtime.isolation).removeprefix("ISOLATION_").replace("_", " ").lower()
    done(f"{runtime.type or 'runc'} on {info.driver} {info.driver_version}; isolation: {isolation}")
    if secure_runtime:
        expect(bool(runtime.kernel), "the server proved no kernel")
        aside("", f"proved at start by a throw-away container, which saw: {runtime.kernel}")


async def show_changes(client: AsyncClient, snapshot: asyncio.Event) -> None:
    """Prints what a watch is told of the demo's sandbox, until it is removed."""
    async with aclosing(client.watch(metadata=LABELS)) as events:
        async for event in events:
            kind = event.WhichOneof("event")
            if event.HasField("bookmark"):
                snapshot.set()
                continue
            sandbox = {"added": event.added, "updated": event.updated, "removed": event.removed}[kind or ""]
            aside(
                "  watch", f"{kind}: {state_of(sandbox)}{f', {sandbox.status.reason}' if sandbox.status.reason else ''}"
            )
            if kind == "removed":
                return


async def look_inside(client: AsyncClient, sandbox: Sandbox, secure_runtime: str) -> None:
    done = timed("logs")
    lines: list[str] = []
    async with asyncio.timeout(PATIENCE), aclosing(client.logs(sandbox.id, follow=True)) as chunks:
        async for chunk in chunks:
            lines.append(chunk.data.decode().rstrip())
            if lines[-1].startswith("Linux "):
                break
    done("what the sandbox printed: its kernel's log, and uname")
    for line in lines:
        aside("", line)
    if secure_runtime == "gvisor":
        expect(any("Starting gVisor" in line for line in lines), "the kernel inside does not say that it is gVisor")


async def inspect(client: AsyncClient, sandbox: Sandbox) -> GetEndpointResponse:
    done = timed("get")
    seen = await client.get(sandbox.id)
    done(f"{state_of(seen)}, metadata {dict(seen.metadata)}, expires in {seconds_left(seen):.0f} s")
    done = timed("list")
    ids = [listed.id async for listed in client.list(metadata=LABELS)]
    done(f"{len(ids)} sandbox with that metadata")
    expect(ids == [sandbox.id], f"the list has {ids}")
    endpoint = await client.endpoint(sandbox.id, PORT)
    done = timed("endpoint")
    greeting = await until_greeted(endpoint)
    done(f"port {PORT} is {endpoint.address}, and says: {greeting}")
    return endpoint


async def freeze_and_thaw(client: AsyncClient, sandbox: Sandbox, endpoint: GetEndpointResponse) -> None:
    done = timed("pause")
    paused = await client.pause(sandbox.id)
    done(f"{state_of(paused)}")
    expect(await greeting_of(endpoint, patience=0.3) == "", "a paused sandbox answered")
    aside("", "its port is silent")
    done = timed("resume")
    resumed = await client.resume(sandbox.id)
    done(f"{state_of(resumed)}")
    aside("", f"its port says: {await until_greeted(endpoint)}")


async def renew(client: AsyncClient, sandbox: Sandbox) -> None:
    done = timed("renew")
    renewed = await client.renew(sandbox.id, ttl=3600)
    done(f"expires in {seconds_left(renewed):.0f} s")
    expect(seconds_left(renewed) > 3500, "the expiry did not move")


async def delete(client: AsyncClient, sandbox: Sandbox) -> None:
    done = timed("delete")
    await client.delete(sandbox.id)
    done("gone")
    try:
        await client.get(sandbox.id)
    except NotFoundError as error:
        aside("", f"get says: {error}")
    else:
        raise DemoError("a deleted sandbox can still be read")
    left = [listed.id async for listed in client.list(metadata=LABELS)]
    expect(not left, f"these are left: {left}")


async def until_greeted(endpoint: GetEndpointResponse) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if greeting := await greeting_of(endpoint, patience=2.0):
            return greeting
        await asyncio.sleep(0.02)
    raise DemoError(f"nothing answers at {endpoint.address}")


async def greeting_of(endpoint: GetEndpointResponse, patience: float) -> str:
    """The first line that the sandbox's port says, or "" when it says none within `patience` seconds."""
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            try:
                return (await reader.readline()).decode().strip()
            finally:
                writer.close()
    except (TimeoutError, OSError):
        return ""


async def demo(server: Server, secure_runtime: str) -> None:
    done = timed("server")
    async with AsyncClient(server.target, api_key=server.api_key) as client:
        await until_serving(client, server, secure_runtime)
        done(f"opensandboxd serves on {server.target}, with an API key")
        await life_of_a_sandbox(client, secure_runtime)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--secure-runtime", default="gvisor", help='[secure_runtime] type; "" is the engine\'s default')
    secure_runtime: str = parser.parse_args().secure_runtime
    began = time.monotonic()
    with running_server(secure_runtime) as server:
        try:
            asyncio.run(demo(server, secure_runtime))
        except (DemoError, SandboxError, TimeoutError) as error:
            print(f"\nfailed: {error or 'it took too long'}", file=sys.stderr)
            print(f"The server's last words:\n{server.last_words()}", file=sys.stderr)
            return 1
    print(f"\ndone in {time.monotonic() - began:.1f} s: the server is stopped; no sandbox and no network is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
