"""The Makefile and deploy/dev: what they refuse, and with which words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = ("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "--no-verify", "-a", "-m", "t")


def run(*command: str | Path, cwd: Path = ROOT, **environ: str) -> tuple[int, str]:
    """Exit code, and both outputs in one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE"))}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**clean, "VENV": sys.prefix, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the proto checks read, in a git repository with one commit."""
    for part in ("protos", "deploy/dev", "clients/python/opensandboxd/v1"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    run("git", "init", "-q", cwd=tmp_path)
    run("git", "add", ".", cwd=tmp_path)
    assert run("git", *COMMIT, cwd=tmp_path) == (0, "")
    return tmp_path


def test_make_lists_every_target_but_those_of_its_own() -> None:
    phony = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code, shown = run("make", "--no-print-directory")
    assert code == 0
    assert set(re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE)) == phony - {"engine"}


def test_generated_code_that_is_as_committed_passes(checkout: Path) -> None:
    assert run("deploy/dev/protos-check", cwd=checkout) == (0, "==> generated code\n")


@pytest.mark.parametrize("change", ["edited", "missing", "left over"])
def test_generated_code_that_differs_fails_with_the_difference_and_the_remedy(checkout: Path, change: str) -> None:
    generated = checkout / "clients/python/opensandboxd/v1"
    match change:
        case "edited":
            with (generated / "sandbox_pb2.pyi").open("a") as file:
                file.write("SURPLUS: int\n")
        case "missing":
            (generated / "sandbox_pb2.pyi").unlink()
        case _:
            (generated / "forgotten_pb2.pyi").write_text("SURPLUS: int\n")
    code, said = run("deploy/dev/protos-check", cwd=checkout)
    assert code == 1
    assert "_pb2.pyi" in said
    assert "run: make protos" in said


def test_a_change_that_breaks_callers_of_the_previous_commit_fails(checkout: Path) -> None:
    proto = checkout / "protos/opensandboxd/v1/sandbox.proto"
    proto.write_text(proto.read_text().replace("string id = 1;", "string id = 99;", 1))
    assert run("git", *COMMIT, cwd=checkout) == (0, "")
    code, said = run("deploy/dev/protos-breaking", cwd=checkout)
    assert code != 0
    assert "sandbox.proto" in said


def test_a_first_commit_breaks_nobody_and_says_so(checkout: Path) -> None:
    code, said = run("deploy/dev/protos-breaking", cwd=checkout)
    assert code == 0
    assert "no protos at HEAD~1" in said


def test_an_old_python_is_refused_with_the_version_that_is_needed(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    code, said = run("deploy/dev/venv", PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert code == 1
    assert "Python 3.11 or newer is needed" in said


def test_a_remote_engine_that_does_not_answer_is_not_replaced_by_a_local_one() -> None:
    code, said = run("deploy/dev/engine", "up", DOCKER_HOST="tcp://127.0.0.1:1")
    assert code == 1
    assert said == "error: no Docker engine answers at DOCKER_HOST=tcp://127.0.0.1:1; start it, or unset DOCKER_HOST\n"


@pytest.mark.skipif(not os.access("/run", os.W_OK), reason="writing a pid file to /run needs root")
def test_down_leaves_a_process_alone_that_up_did_not_start(tmp_path: Path) -> None:
    name = f"opensandboxd-test-{os.getpid()}"
    pidfile = Path("/run", f"{name}.pid")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            pidfile.write_text(str(stranger.pid))
            assert run("deploy/dev/engine", "down", OPENSANDBOXD_ENGINE_DIR=str(tmp_path / name)) == (0, "")
            assert stranger.poll() is None
        finally:
            pidfile.unlink()
            stranger.kill()
