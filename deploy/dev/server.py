"""The server on a generated configuration, loopback only: `make run`, and the server of `make demo`."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tomllib
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("opensandboxd"))
HOST = "127.0.0.1"
API_KEY_VARIABLE = "OPENSANDBOX_SERVER_API_KEY"
"""Wins over the file, so it is kept from servers whose key is the file's."""


def write_config(path: Path, port: int, secure_runtime: str, instance: str = "") -> str:
    """Writes a configuration for Docker with its store beside it, readable by its owner alone; returns the API key.

    A key that the file already has is kept, so that clients configured before go on working.
    """
    api_key = _api_key_in(path) or secrets.token_urlsafe(24)
    sections: dict[str, dict[str, str | int]] = {
        "server": {"host": HOST, "port": port, "api_key": api_key, "instance": instance},
        "runtime": {"type": "docker"},
        "secure_runtime": {"type": secure_runtime},
        "store": {"path": str(path.with_suffix(".db").resolve())},
    }
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()) + "\n"
        for name, keys in sections.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return api_key


def _api_key_in(path: Path) -> str:
    try:
        return str(tomllib.loads(path.read_text())["server"]["api_key"])
    except (FileNotFoundError, KeyError, tomllib.TOMLDecodeError):
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(".cache/dev.toml"))
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--secure-runtime", default="gvisor")
    args = parser.parse_args()
    api_key = write_config(args.config, args.port, args.secure_runtime)
    runtime = args.secure_runtime or "none, the engine's default"
    print(f"==> {args.config}: secure runtime {runtime}; choose another with make run SECURE_RUNTIME=NAME")
    print("==> for osbctl and the Python client, in another shell:")
    print(f"source {Path(sys.executable).parent}/activate")
    print(f"export OPEN_SANDBOX_DOMAIN={HOST}:{args.port} OPEN_SANDBOX_API_KEY={api_key}", flush=True)
    os.environ.pop(API_KEY_VARIABLE, None)
    os.execv(COMMAND, [COMMAND, "--config", str(args.config)])


if __name__ == "__main__":
    main()
