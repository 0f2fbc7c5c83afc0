"""The command itself, as people and supervisors run it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from opensandboxd_server.settings import load

DOCKER = '[runtime]\ntype = "docker"\n'
APP = """
import asyncio, os, sys
from opensandboxd_server.domain.errors import StartupError
async def serve(settings):
    if os.environ.get("TEST_STARTUP_ERROR"):
        raise StartupError("runtime runsc is not registered;\\ninstall it")
    print("serving on", settings.server.port)
"""
LAUNCHER = f"""
import sys, types
import opensandboxd_server
app = types.ModuleType("opensandboxd_server.app")
exec({APP!r}, app.__dict__)
sys.modules["opensandboxd_server.app"] = opensandboxd_server.app = app
from opensandboxd_server.cli import main
sys.exit(main())
"""
COMMAND = [sys.executable, "-m", "opensandboxd_server"]
WITH_APP = [sys.executable, "-c", LAUNCHER]
"""The real command over an app that serves nothing: what the app does has tests of its own."""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    ours = ("OPENSANDBOX", "SANDBOX_", "DOCKER_HOST", "PENDING_FAILURE_TTL")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {"HOME": str(tmp_path), "COLUMNS": "100"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / ".sandbox.toml"
    path.write_text(DOCKER)
    return path


def run(command: list[str], environ: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environ | more, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )


def test_help_and_version_answer_without_a_configuration(environ: dict[str, str]) -> None:
    shown = run([*COMMAND, "--help"], environ)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "init-config" in shown.stdout
    assert "--config PATH" in shown.stdout
    version = run([*COMMAND, "--version"], environ)
    assert version.stdout == f"opensandboxd {metadata.version('opensandboxd-server')}\n"


def test_help_loads_neither_grpc_nor_docker(environ: dict[str, str]) -> None:
    late = "{'grpc', 'docker', 'opensandboxd_server.app'}"
    check = f"import sys, opensandboxd_server.cli; sys.exit(bool({late} & set(sys.modules)))"
    assert run([sys.executable, "-c", check], environ).returncode == 0


def test_the_installed_command_is_this_one(environ: dict[str, str]) -> None:
    script = Path(sys.executable).parent / "opensandboxd"
    assert run([str(script), "--version"], environ).returncode == 0


def test_bad_arguments_are_refused(environ: dict[str, str]) -> None:
    for arguments in (["serve"], ["--confg", "x"], ["init-config"], ["init-config", "x", "--example", "podman"]):
        refused = run([*COMMAND, *arguments], environ)
        assert refused.returncode == 2
        assert "usage: opensandboxd" in refused.stderr


def test_a_refused_configuration_is_told_line_by_line_without_a_traceback(
    environ: dict[str, str], config: Path
) -> None:
    config.write_text(f"{DOCKER}[server]\nport = 0\nprot = 1\n")
    refused = run(COMMAND, environ)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        f"opensandboxd: {config}: [server] port: 0 is below 1; write at least 1, or leave it out for 8080",
        f"opensandboxd: {config}: [server] prot: there is no such key; did you mean port?",
    ]


def test_a_missing_configuration_is_refused_with_the_remedy(environ: dict[str, str], tmp_path: Path) -> None:
    refused = run(COMMAND, environ)
    assert refused.returncode == 2
    assert f"opensandboxd init-config {tmp_path}/.sandbox.toml" in refused.stderr


def test_the_option_names_the_configuration(environ: dict[str, str], config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(f"{DOCKER}[server]\nport = 1234\napi_key = 'k'\n")
    served = run([*WITH_APP, "--config", str(other)], environ, SANDBOX_CONFIG_PATH=str(config))
    assert (served.returncode, served.stdout) == (0, "serving on 1234\n")


def test_without_a_key_and_a_terminal_the_server_does_not_start(environ: dict[str, str], config: Path) -> None:
    refused = run(WITH_APP, environ)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no API key is set" in refused.stderr
    assert "OPENSANDBOX_SERVER_API_KEY" in refused.stderr
    assert "OPENSANDBOX_INSECURE_SERVER=YES" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("name", ["OPENSANDBOX_SERVER_API_KEY", "OPENSANDBOX_INSECURE_SERVER"])
def test_a_key_or_an_acknowledgement_starts_the_server(environ: dict[str, str], config: Path, name: str) -> None:
    served = run(WITH_APP, environ, **{name: "YES"})
    assert (served.returncode, served.stdout, served.stderr) == (0, "serving on 8080\n", "")


def test_a_failed_start_is_told_without_a_traceback(environ: dict[str, str], config: Path) -> None:
    failed = run(WITH_APP, environ, OPENSANDBOX_INSECURE_SERVER="YES", TEST_STARTUP_ERROR="1")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "opensandboxd: runtime runsc is not registered;\nopensandboxd: install it\n"


def test_what_this_version_does_not_serve_is_a_failed_start(environ: dict[str, str], config: Path) -> None:
    config.write_text('[runtime]\ntype = "kubernetes"\n')
    failed = run(COMMAND, environ, OPENSANDBOX_INSECURE_SERVER="YES")
    assert failed.returncode == 1
    assert failed.stderr.startswith('opensandboxd: [runtime] type = "kubernetes" is not served by this version')
    assert "Traceback" not in failed.stderr


def test_a_log_file_that_cannot_be_written_is_refused(environ: dict[str, str], config: Path) -> None:
    config.write_text(f'{DOCKER}[log]\nfile_enabled = true\nfile_path = "/dev/null/x.log"\n')
    refused = run(WITH_APP, environ, OPENSANDBOX_INSECURE_SERVER="YES")
    assert refused.returncode == 2
    assert "[log] file_path: cannot write /dev/null/x.log: File exists; choose another" in refused.stderr


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self._leader, follower = pty.openpty()
        self._process = subprocess.Popen(
            command, env=environ, stdin=follower, stdout=follower, stderr=follower, start_new_session=True
        )
        os.close(follower)
        self.shown = ""

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._leader], [], [], 0.1)[0]:
                self.shown += os.read(self._leader, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def interrupt(self) -> None:
        self._process.send_signal(2)

    def wait(self) -> int:
        code = self._process.wait(timeout=30)
        while select.select([self._leader], [], [], 0.1)[0]:
            try:
                self.shown += os.read(self._leader, 4096).decode()
            except OSError:  # the terminal hung up: all is read
                break
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._leader)


@pytest.fixture
def terminal(environ: dict[str, str], config: Path) -> Iterator[Terminal]:
    terminal = Terminal(WITH_APP, environ)
    yield terminal
    terminal.close()


def test_on_a_terminal_yes_starts_a_server_without_a_key(terminal: Terminal) -> None:
    terminal.expect("Type YES")
    assert "serving" not in terminal.shown
    terminal.type("YES\n")
    assert terminal.wait() == 0
    assert "serving on 8080" in terminal.shown


@pytest.mark.parametrize("answer", ["yes\n", "\n", "no\n", "\x04"])
def test_on_a_terminal_anything_else_does_not(terminal: Terminal, answer: str) -> None:
    terminal.expect("Type YES")
    terminal.type(answer)
    assert terminal.wait() == 2
    assert "not started without an API key; set [server] api_key" in terminal.shown
    assert "serving" not in terminal.shown


def test_an_interrupted_question_ends_quietly(terminal: Terminal) -> None:
    terminal.expect("Type YES")
    terminal.interrupt()
    assert terminal.wait() == 130
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize(("arguments", "runtime"), [([], "docker"), (["--example", "k8s"], "kubernetes")])
def test_init_config_writes_a_file_that_loads(
    environ: dict[str, str], tmp_path: Path, arguments: list[str], runtime: str
) -> None:
    path = tmp_path / "made" / "for" / "it" / "sandbox.toml"
    written = run([*COMMAND, "init-config", str(path), *arguments], environ)
    assert (written.returncode, written.stderr) == (0, "")
    assert str(path) in written.stdout
    assert load(path, {}).runtime.type == runtime
    assert path.stat().st_mode & 0o777 == 0o600


def test_init_config_overwrites_only_when_forced(environ: dict[str, str], config: Path) -> None:
    command = [*COMMAND, "init-config", str(config)]
    refused = run(command, environ)
    assert refused.returncode == 2
    assert re.search(r"exists; choose another path, or overwrite it with --force$", refused.stderr.strip())
    assert config.read_text() == DOCKER
    assert run([*command, "--force"], environ).returncode == 0
    assert "[secure_runtime]" in config.read_text()


def test_init_config_tells_why_it_cannot_write(environ: dict[str, str]) -> None:
    refused = run([*COMMAND, "init-config", "/dev/null/sandbox.toml"], environ)
    assert refused.returncode == 2
    assert "cannot write /dev/null/sandbox.toml: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_init_config_knows_the_home_directory(environ: dict[str, str], tmp_path: Path) -> None:
    assert run([*COMMAND, "init-config", "~/new.toml"], environ).returncode == 0
    assert (tmp_path / "new.toml").is_file()
