"""The command `opensandboxd`: arguments, `init-config`, and the way to a served configuration or a clear refusal.

Exit codes: 0 normal, 1 the server could not start on its backend, 2 the configuration or the arguments are refused,
130 interrupted before it served.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path

from opensandboxd_server import logs
from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.settings import DEFAULT_PATH, Settings, SettingsError, load

STARTUP_FAILED = 1
REFUSED = 2
INTERRUPTED = 130
EXAMPLES = ("docker", "k8s")

_NO_KEY = "no API key is set, so everyone who reaches this server can run code on it"
_REMEDIES = (
    "set [server] api_key or OPENSANDBOX_SERVER_API_KEY, "
    "or accept it with OPENSANDBOX_INSECURE_SERVER=YES in the environment"
)


class RefusedError(Exception):
    """What was asked for is refused; the message is complete for the terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "init-config":
            return _init_config(arguments.path, arguments.example, force=arguments.force)
        return _serve(arguments.config)
    except (RefusedError, SettingsError) as error:
        return _fail(str(error), REFUSED)
    except StartupError as error:
        return _fail(str(error), STARTUP_FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(message: str, code: int) -> int:
    sys.stderr.write("".join(f"opensandboxd: {line}\n" for line in message.splitlines()))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="opensandboxd",
        description="Serves sandboxes for untrusted code over gRPC.",
        epilog="The configuration is docs/configuration.md; write a first one with `opensandboxd init-config PATH`.",
    )
    parser.add_argument(
        "--version", action="version", version=f"opensandboxd {metadata.version('opensandboxd-server')}"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help=f"the configuration file (default: SANDBOX_CONFIG_PATH, or else {DEFAULT_PATH})",
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    init = commands.add_parser("init-config", help="write a commented configuration file and exit")
    init.add_argument("path", type=Path, metavar="PATH", help="the file to write; parent directories are made")
    init.add_argument("--example", choices=EXAMPLES, default=EXAMPLES[0], help="what to write (default: %(default)s)")
    init.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    return parser


def _init_config(path: Path, example: str, *, force: bool) -> int:
    """Readable by its owner alone: the file is where an API key goes."""
    path = path.expanduser()
    text = resources.files("opensandboxd_server").joinpath("examples", f"{example}.toml").read_bytes()
    if path.exists() and not force:
        raise RefusedError(f"{path} exists; choose another path, or overwrite it with --force")
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, flags, 0o600), "wb") as file:
            file.write(text)
    except OSError as error:
        raise RefusedError(f"cannot write {path}: {error.strerror}; choose another path") from None
    sys.stdout.write(f"wrote {path}; start the server with `opensandboxd --config {path}`\n")
    return 0


def _serve(config: Path | None) -> int:
    settings = load(config)
    _require_key_or_consent(settings)
    try:
        logs.configure(settings.log)
    except OSError as error:
        why = f"cannot write {settings.log.file_path}: {error.strerror}"
        raise RefusedError(f"[log] file_path: {why}; choose another, or set file_enabled = false") from None

    from opensandboxd_server import app  # late, so that --help and a refused configuration answer at once

    asyncio.run(app.serve(settings))
    return 0


def _require_key_or_consent(settings: Settings) -> None:
    if settings.server.api_key or settings.insecure_acknowledged:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(f"{_NO_KEY}; {_REMEDIES}")
    sys.stderr.write(f"opensandboxd: {_NO_KEY}.\nType YES to serve without a key: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != "YES":
        raise RefusedError(f"not started without an API key; {_REMEDIES}")
