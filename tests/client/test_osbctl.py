"""The real command against a real server over the fake driver."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import yaml
from google.protobuf.json_format import ParseDict

from opensandboxd import AsyncClient, SandboxState
from opensandboxd.osbctl.failure import Exit
from opensandboxd.v1.sandbox_pb2 import Sandbox
from opensandboxd.v1.sandbox_service_pb2 import ListSandboxesResponse, WatchSandboxesResponse
from opensandboxd_server.domain.errors import FailedPrecondition
from tests.client.scripted import Fault, ScriptedServer
from tests.harness import Server, serving

OSBCTL = str(Path(sys.executable).with_name("osbctl"))
KEY = "k3y"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass
class Cli:
    address: str
    key: str = KEY
    stdin: bytes | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def env(self) -> dict[str, str]:
        own = {"OPEN_SANDBOX_DOMAIN": self.address, "OPEN_SANDBOX_API_KEY": self.key, "TERM": "xterm"}
        return {"PATH": os.environ["PATH"], **own, **self.environment}

    async def start(self, *args: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(OSBCTL, *args, env=self.env(), stdin=pipe, stdout=pipe, stderr=pipe)

    async def __call__(self, *args: str, code: Exit = Exit.OK) -> Done:
        process = await self.start(*args)
        out, err = await asyncio.wait_for(process.communicate(self.stdin), 30)
        done = Done(process.returncode or 0, out.decode(), err.decode())
        assert "Traceback" not in done.err
        assert done.code == code, done
        return done

    async def create(self, *args: str) -> str:
        return (await self("create", "-o", "id", "debian", *args)).out.strip()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(server={"api_key": KEY}) as server:
        yield server


@pytest.fixture
def osbctl(server: Server) -> Cli:
    return Cli(server.address)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, api_key=KEY) as client:
        yield client


async def test_create_sends_what_is_typed(osbctl: Cli, client: AsyncClient) -> None:
    options = [
        "--ttl",
        "1h30m",
        "-e",
        "A=1=2",
        "--cpu",
        "500m",
        "--memory",
        "64Mi",
        "-p",
        "80",
        "-p",
        "81",
        "-l",
        "k=v",
    ]
    id = await osbctl.create(*options, "--", "sh", "-c", "sleep 9")
    sandbox = await client.get(id)
    spec = sandbox.spec
    assert (spec.image.uri, list(spec.entrypoint), dict(spec.env)) == ("debian", ["sh", "-c", "sleep 9"], {"A": "1=2"})
    assert (spec.resources.cpu, spec.resources.memory, list(spec.ports)) == ("500m", "64Mi", [80, 81])
    assert dict(sandbox.metadata) == {"k": "v"}
    assert sandbox.expire_time.seconds - sandbox.create_time.seconds == 5400
    assert sandbox.status.state == SandboxState.SANDBOX_STATE_RUNNING


async def test_a_detached_create_does_not_wait(osbctl: Cli, server: Server, client: AsyncClient) -> None:
    gate = server.driver.hold("create")
    id = await osbctl.create("--detach")
    assert (await client.get(id)).status.state == SandboxState.SANDBOX_STATE_PENDING
    gate.set()


async def test_a_registry_password_is_read_from_stdin(scripted: ScriptedServer) -> None:
    scripted.expect("CreateSandbox", Fault(grpc.StatusCode.UNIMPLEMENTED, "enough"))
    await Cli(scripted.target, stdin=b"s3cret\n")("create", "img", "--registry-user", "me", code=Exit.FAILED)
    auth = scripted.requests("CreateSandbox")[0].spec.image.auth
    assert (auth.username, auth.password) == ("me", "s3cret")


async def test_a_dry_run_creates_nothing(osbctl: Cli) -> None:
    done = await osbctl("create", "--dry-run", "img", "-o", "json")
    assert ParseDict(json.loads(done.out), Sandbox()).spec.image.uri == "img"
    assert (await osbctl("list", "-o", "id")).out == ""


async def test_list_filters_and_prints_in_every_format(osbctl: Cli) -> None:
    first = await osbctl.create("-l", "team=a", "--ttl", "10m")
    second = await osbctl.create("-l", "team=b")
    await osbctl("pause", second)
    header, *rows = (await osbctl("list")).out.splitlines()
    assert header.split() == ["ID", "IMAGE", "STATE", "AGE", "EXPIRES", "RUNTIME", "METADATA"]
    assert [row.split()[0] for row in rows] == [first, second]
    assert rows[1].split()[1:3] == ["debian", "PAUSED"]
    assert rows[1].split()[4:] == ["never", "runc", "team=b"]
    assert (await osbctl("list", "-o", "id", "-l", "team=a")).out.split() == [first]
    assert (await osbctl("-o", "id", "list", "--state", "paused")).out.split() == [second]
    as_json = ParseDict(json.loads((await osbctl("list", "-o", "json")).out), ListSandboxesResponse())
    as_yaml = ParseDict(yaml.safe_load((await osbctl("list", "-o", "yaml")).out), ListSandboxesResponse())
    assert [sandbox.id for sandbox in as_json.sandboxes] == [first, second]
    assert as_json == as_yaml


async def test_json_always_has_every_plain_field(osbctl: Cli) -> None:
    sandbox = json.loads((await osbctl("create", "img", "-o", "json")).out)
    assert (sandbox["metadata"], sandbox["spec"]["env"], sandbox["status"]["message"]) == ({}, {}, "")


async def test_a_sandboxs_life(osbctl: Cli, client: AsyncClient) -> None:
    id = await osbctl.create("-p", "8000", "-l", "old=1", "-e", "TOKEN=secret")
    details = (await osbctl("get", id)).out
    assert "State:        RUNNING\n" in details
    assert "TOKEN" in details
    assert "secret" not in details
    assert "PAUSED" in (await osbctl("pause", id)).out
    assert "PAUSED" in (await osbctl("wait", id, "--for", "paused", "--timeout", "5s")).out
    assert "RUNNING" in (await osbctl("resume", id)).out
    assert "in 2h" in (await osbctl("renew", id, "--ttl", "2h")).out
    assert "never" not in (await osbctl("renew", id, "--expire-time", "2999-01-01T00:00:00Z", code=Exit.OK)).out
    assert "a.b/c=2" in (await osbctl("update", id, "-l", "a.b/c=2", "--remove", "old")).out
    assert dict((await client.get(id)).metadata) == {"a.b/c": "2"}
    assert (await osbctl("endpoint", id, "8000")).out == "127.0.0.1:48000\n"
    assert json.loads((await osbctl("endpoint", id, "8000", "-o", "json")).out)["port"] == 48000
    assert (await osbctl("logs", id, "--tail", "5", "--since", "1h")).out == "started\n"
    assert (await osbctl("delete", id)).out == f"{id}\n"
    await osbctl("get", id, code=Exit.NOT_FOUND)


async def test_wait_for_deleted(osbctl: Cli, client: AsyncClient) -> None:
    id = await osbctl.create()
    late = await osbctl("wait", id, "--for", "deleted", "--timeout", "200ms", code=Exit.TIMED_OUT)
    assert "still there" in late.err
    waiting = asyncio.create_task(osbctl("wait", id, "--for", "deleted"))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await client.delete(id)
    assert (await waiting).out == f"{id}\n"
    assert (await osbctl("wait", id, "--for", "deleted")).out == f"{id}\n"


async def test_a_wait_that_cannot_end_well_fails(osbctl: Cli, server: Server) -> None:
    id = await osbctl.create()
    server.driver.exit(id, 137, "OOM_KILLED")
    done = await osbctl("wait", id, "--for", "paused", code=Exit.FAILED)
    assert "FAILED" in done.err
    assert "OOM_KILLED" in done.err


async def test_delete_takes_many_all_or_those_with_metadata(osbctl: Cli) -> None:
    ids = [await osbctl.create("-l", f"team={team}") for team in "aab"]
    assert (await osbctl("delete", "--all", "-l", "team=a")).out.split() == ids[:2]
    partly = await osbctl("delete", ids[2], "sbx-unknown", code=Exit.NOT_FOUND)
    assert partly.out.split() == [ids[2]]
    assert "sbx-unknown" in partly.err
    await osbctl("delete", "sbx-unknown", "--allow-missing")
    await osbctl("delete", code=Exit.USAGE)
    await osbctl("delete", "--all", ids[0], code=Exit.USAGE)


async def test_watch_prints_a_line_for_each_change(osbctl: Cli, client: AsyncClient) -> None:
    id = await osbctl.create()
    table, lines = await osbctl.start("watch"), await osbctl.start("watch", "-o", "json", id)
    assert table.stdout
    assert lines.stdout
    assert (await asyncio.wait_for(table.stdout.readline(), 10)).decode().split()[:2] == ["ADDED", id]
    events = [await asyncio.wait_for(lines.stdout.readline(), 10) for _ in range(2)]
    kinds = [ParseDict(json.loads(line), WatchSandboxesResponse()).WhichOneof("event") for line in events]
    assert kinds == ["added", "bookmark"]
    await client.delete(id)
    while (line := (await asyncio.wait_for(table.stdout.readline(), 10)).decode().split())[0] != "REMOVED":
        assert line[:2] == ["UPDATED", id]
    for process in (table, lines):
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 10)
        assert (process.returncode, err) == (Exit.INTERRUPTED, b"")


async def test_runtime_and_health(osbctl: Cli, server: Server) -> None:
    shown = (await osbctl("runtime")).out
    assert "Driver:   fake 1" in shown
    assert "gvisor" in shown
    data = json.loads((await osbctl("runtime", "-o", "json")).out)
    assert data["runtimeInfo"]["driver"] == "fake"
    assert "gvisor" in [runtime["type"] for runtime in data["secureRuntimes"]]
    assert (await osbctl("health")).out == "SERVING\n"
    assert (await Cli(server.address, key="wrong")("health")).out == "SERVING\n"
    server.driver.lose()
    for _ in range(50):
        if not await AsyncClient(server.address).health():
            break
        await asyncio.sleep(0.05)
    assert (await osbctl("health", code=Exit.UNAVAILABLE)).out == "NOT_SERVING\n"


async def test_errors_say_what_why_and_which_request(osbctl: Cli) -> None:
    done = await osbctl("create", "img", "--cpu", "much", "--ttl", "5s", code=Exit.FAILED)
    said = done.err.splitlines()
    assert said[0] == "error: the server refused the request"
    assert said[1].startswith("  spec.resources.cpu: 'much' is not")
    assert said[-2] == "reason: INVALID_FIELD"
    assert said[-1].startswith("request id: ")
    missing = await osbctl("get", "sbx-unknown", code=Exit.NOT_FOUND)
    assert missing.err.splitlines()[:2] == ["error: there is no sandbox 'sbx-unknown'", "reason: SANDBOX_NOT_FOUND"]


async def test_a_wrong_key_says_where_to_put_the_right_one(server: Server) -> None:
    done = await Cli(server.address, key="wrong")("list", code=Exit.UNAUTHENTICATED)
    assert "--api-key or in OPEN_SANDBOX_API_KEY" in done.err
    assert (await Cli(server.address, key="wrong")("list", "--api-key", KEY)).err == ""
    assert (await Cli(server.address, key="wrong")("--api-key", KEY, "list")).err == ""


async def test_a_refused_connection_says_which_address_and_how_to_choose_another() -> None:
    done = await Cli("127.0.0.1:1")("list", code=Exit.UNAVAILABLE)
    assert done.err.startswith("error: cannot reach 127.0.0.1:1: ")
    assert "OPEN_SANDBOX_DOMAIN" in done.err


async def test_a_slow_server_is_a_time_out(server: Server, osbctl: Cli) -> None:
    server.driver.hold("create")
    done = await osbctl("create", "img", "--timeout", "200ms", code=Exit.TIMED_OUT)
    assert "--timeout" in done.err
    assert (await osbctl("list", "-o", "id")).out == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["create", "img", "--ttl", "soon"], "write it like 90s, 10m, 2h"),
        (["create", "img", "--env", "A"], "is not KEY=VALUE"),
        (["create", "img", "--ttl", "60s", "--expire-time", "2030-01-01T00:00:00Z"], "exclude each other"),
        (["create", "img", "--expire-time", "2030-01-01T00:00:00"], "with its zone"),
        (["create", "img", "--platform", "arm64"], "os/arch"),
        (["renew", "sbx-1"], "--ttl DURATION or --expire-time TIME"),
        (["update", "sbx-1"], "nothing to change"),
        (["list", "--domain", "http://localhost"], "give host:port"),
        (["list", "--tls-key", __file__], "cert and key go together"),
    ],
)
async def test_wrong_usage_is_exit_code_2_and_says_what_is_right(args: list[str], said: str) -> None:
    assert said in (await Cli("127.0.0.1:1")(*args, code=Exit.USAGE)).err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_prints_a_script(shell: str) -> None:
    assert "_OSBCTL_COMPLETE" in (await Cli("127.0.0.1:1")("completion", shell)).out


class Terminal:
    """osbctl on a pseudo-terminal."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self.seen = ""
        self._process = process
        self._fd = fd

    @classmethod
    async def open(cls, cli: Cli, *args: str) -> Terminal:
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        env = cli.env() | {"COLUMNS": "120"}
        process = await asyncio.create_subprocess_exec(
            OSBCTL, *args, env=env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        return cls(process, ours)

    async def until(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.seen:
                assert self._read(), f"it ended without {text!r}: {self.seen}"
                await asyncio.sleep(0.02)

    def ctrl_c(self) -> None:
        self._process.send_signal(signal.SIGINT)

    async def end(self) -> int:
        async with asyncio.timeout(20):
            while self._read():  # noqa: ASYNC110 - a full terminal would stop the command
                await asyncio.sleep(0.02)
            os.close(self._fd)
            return await self._process.wait()

    def _read(self) -> bool:
        try:
            self.seen += os.read(self._fd, 65536).decode(errors="replace")
        except BlockingIOError:
            return True
        except OSError:  # Linux says EIO when the other end is closed
            return False
        return True


async def test_on_a_terminal_create_shows_the_pull_and_then_the_table(server: Server, osbctl: Cli) -> None:
    gate = server.driver.hold("create")
    terminal = await Terminal.open(osbctl, "create", "debian")
    await terminal.until("pulling debian: 1 of 2 layers")
    gate.set()
    assert await terminal.end() == Exit.OK
    assert "\x1b[32mRUNNING" in terminal.seen
    assert "RUNTIME" in terminal.seen


async def test_ctrl_c_deletes_what_was_begun(server: Server, osbctl: Cli) -> None:
    server.driver.hold("create")
    terminal = await Terminal.open(osbctl, "create", "debian")
    await terminal.until("1 of 2 layers")
    terminal.ctrl_c()
    assert await terminal.end() == Exit.INTERRUPTED
    assert "deleting sbx-" in terminal.seen
    assert (await osbctl("list", "-o", "id")).out == ""


async def test_a_failed_pull_on_a_terminal_says_why_and_leaves_nothing(server: Server, osbctl: Cli) -> None:
    server.driver.inject_error("pull", FailedPrecondition("IMAGE_PULL_FAILED", "no such image: debian"))
    terminal = await Terminal.open(osbctl, "create", "debian")
    assert await terminal.end() == Exit.FAILED
    assert "no such image: debian" in terminal.seen
    assert "reason: IMAGE_PULL_FAILED" in terminal.seen
    assert (await osbctl("list", "-o", "id")).out == ""


async def test_watch_on_a_terminal_is_a_live_table(osbctl: Cli, client: AsyncClient) -> None:
    first = await osbctl.create()
    terminal = await Terminal.open(osbctl, "watch")
    await terminal.until(first)
    second = await osbctl.create()
    await terminal.until(second)
    terminal.ctrl_c()
    assert await terminal.end() == Exit.INTERRUPTED
    assert "METADATA" in terminal.seen
