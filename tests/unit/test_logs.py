"""Logs: one pipeline, the right shape for who reads it, and no secret in a line.

What is configured is the whole process, so every case runs in one of its own.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opensandboxd_server import logs

PREAMBLE = """
import logging, structlog
from pathlib import Path
from opensandboxd_server import logs
from opensandboxd_server.settings import LogSettings
def configure(**keys): logs.configure(LogSettings(**keys))
log = structlog.get_logger()
"""


def run(script: str) -> str:
    """What `script` writes to standard error, which is no terminal."""
    done = subprocess.run([sys.executable, "-c", PREAMBLE + script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def run_lines(script: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(script).splitlines()]


def run_on_terminal(script: str) -> str:
    leader, follower = pty.openpty()
    done = subprocess.run([sys.executable, "-c", PREAMBLE + script], stderr=follower, timeout=30)
    os.close(follower)
    assert done.returncode == 0
    with open(leader, "rb", buffering=0) as terminal:
        return terminal.read(65536).decode()


def test_without_a_terminal_a_line_is_json() -> None:
    (line,) = run_lines("configure(); log.info('created', sandbox_id='sb-1', duration_ms=3)")
    time = line.pop("timestamp")
    assert line == {"event": "created", "level": "info", "sandbox_id": "sb-1", "duration_ms": 3}
    assert time.endswith("Z")


def test_on_a_terminal_a_line_is_for_people() -> None:
    shown = run_on_terminal("configure(); log.info('created', sandbox_id='sb-1')")
    assert "created" in shown
    assert "\x1b[" in shown
    assert "{" not in shown


def test_the_format_can_be_chosen() -> None:
    assert json.loads(run_on_terminal("configure(format='json'); log.info('created')"))["event"] == "created"
    shown = run("configure(format='console'); log.info('created')")
    assert "created" in shown
    assert "\x1b[" not in shown
    assert not shown.startswith("{")


@pytest.mark.parametrize(
    ("level", "expected"), [("DEBUG", ["d", "i", "w"]), ("INFO", ["i", "w"]), ("WARNING", ["w"]), ("CRITICAL", [])]
)
def test_lines_below_the_level_are_not_written(level: str, expected: list[str]) -> None:
    script = f"configure(level='{level}')\nfor each in ({{}}): each.debug('d'); each.info('i'); each.warning('w')"
    for logger in ("log", "logging.getLogger('docker')"):
        assert [line["event"] for line in run_lines(script.format(f"{logger},"))] == expected


def test_a_call_below_the_level_renders_nothing() -> None:
    script = """
configure(level='{level}')
class Costly:
    def __repr__(self): print("rendered", file=sys.stderr); return "costly"
import sys
log.debug("x", value=Costly())
"""
    assert run(script.format(level="INFO")) == ""
    assert run(script.format(level="DEBUG")).startswith("rendered")


def test_bound_context_is_in_every_line() -> None:
    (line,) = run_lines("configure(); structlog.contextvars.bind_contextvars(request_id='r-1'); log.info('x')")
    assert line["request_id"] == "r-1"


def test_libraries_are_in_the_same_stream_under_their_names() -> None:
    line, odd = run_lines(
        "configure(); logging.getLogger('urllib3.pool').warning('lost %s', 'it'); logging.getLogger('x').log(33, 'odd')"
    )
    assert (line["event"], line["level"], line["logger"]) == ("lost it", "warning", "urllib3.pool")
    assert odd["level"] == "warning"


def test_a_record_of_a_library_that_cannot_be_rendered_stops_nothing() -> None:
    written = run("configure(); logging.getLogger('x').warning('%d', 'text'); log.info('alive')")
    assert "Logging error" in written
    assert '"event": "alive"' in written


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("logger", ["log", "logging.getLogger('x')"])
def test_a_traceback_has_no_local_variables(format: str, logger: str) -> None:
    written = run(
        f"""
configure(format='{format}')
def fail(key): raise ValueError("it broke")
try: fail("hunter" + str(2))
except ValueError: {logger}.exception("failed")
"""
    )
    assert "Traceback" in written
    assert "it broke" in written
    assert "hunter2" not in written


def test_a_file_rotates_and_takes_the_place_of_standard_error(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "server.log"
    assert (
        run(
            f"configure(file_enabled=True, file_path=Path('{path}'), file_max_bytes=2000, file_backup_count=2)\n"
            "for i in range(100): log.info('line', i=i)\n"
            "logging.getLogger('docker').warning('of a library')"
        )
        == ""
    )
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["server.log", "server.log.1", "server.log.2"]
    assert all(file.stat().st_size <= 2000 for file in files)
    last, library = (json.loads(line) for line in path.read_text().splitlines()[-2:])
    assert last["i"] == 99
    assert library["event"] == "of a library"


@pytest.mark.parametrize(
    "key",
    [
        *("password", "passwd", "api_key", "apiKey", "open-sandbox-api-key", "auth", "registry_auth", "token"),
        *("accessToken", "env", "ENV", "spec.env", "secret", "client_secret", "credentials", "dsn", "private_key"),
    ],
)
def test_values_of_keys_that_look_like_secrets_are_replaced(key: str) -> None:
    assert logs.redact(None, "info", {"event": "x", key: "hunter2"})[key] == logs.REDACTED
    assert "hunter2" not in str(logs.redact(None, "info", {"spec": {"images": [{key: "hunter2"}]}}))


@pytest.mark.parametrize("key", ["event", "author", "key", "sandbox_id", "request_id", "envelope", "path", "method"])
def test_other_values_are_kept(key: str) -> None:
    assert logs.redact(None, "info", {key: "kept"}) == {key: "kept"}


@given(
    st.recursive(
        st.builds(dict, api_key=st.just("hunter2"), n=st.integers()),
        lambda below: st.lists(below) | st.dictionaries(st.sampled_from(["a", "b"]), below),
    )
)
def test_no_depth_hides_a_secret(value: object) -> None:
    assert "hunter2" not in str(logs.redact(None, "info", {"value": value}))


def test_redaction_leaves_the_caller_s_values_alone() -> None:
    spec = {"env": {"A": "1"}}
    logs.redact(None, "info", {"spec": spec})
    assert spec == {"env": {"A": "1"}}


def test_no_secret_of_a_log_call_is_written() -> None:
    written = run("configure(); log.info('x', password='hunter2', spec={'env': {'A': 'hunter2'}})")
    assert "hunter2" not in written
    assert written.count(logs.REDACTED) == 2
