"""What osbctl prints: tables for people; JSON, YAML and ids for scripts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from opensandboxd.v1.sandbox_pb2 import Isolation, Sandbox, SandboxSpec, SandboxState
from opensandboxd.v1.sandbox_service_pb2 import ListSandboxesResponse

FORMATS = ("table", "json", "yaml", "id")
COLUMNS = ("ID", "IMAGE", "STATE", "AGE", "EXPIRES", "RUNTIME", "METADATA")

COLOURS = {"RUNNING": "green", "FAILED": "red", "TERMINATED": "bright_black", "PAUSED": "cyan"}

_ISOLATIONS = {
    Isolation.ISOLATION_PROCESS: "process",
    Isolation.ISOLATION_USER_SPACE_KERNEL: "user-space kernel",
    Isolation.ISOLATION_VM: "VM",
    Isolation.ISOLATION_MICRO_VM: "microVM",
}


def state_name(sandbox: Sandbox) -> str:
    return SandboxState.Name(sandbox.status.state).removeprefix("SANDBOX_STATE_")


def to_json(message: Message) -> Any:
    """The protobuf JSON mapping, with every field that has a default, so that scripts find what they look for."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def print_data(data: Any, format: str) -> None:
    """`data` as JSON or YAML."""
    if format == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(to_yaml(data), nl=False)


def to_yaml(data: Any) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def print_sandboxes(sandboxes: Sequence[Sandbox], format: str) -> None:
    """A list: rows, ids, or a ListSandboxesResponse."""
    if format == "table":
        print_table(COLUMNS, [row(sandbox) for sandbox in sandboxes])
    elif format == "id":
        for sandbox in sandboxes:
            click.echo(sandbox.id)
    else:
        print_data(to_json(ListSandboxesResponse(sandboxes=sandboxes)), format)


def print_sandbox(sandbox: Sandbox, format: str) -> None:
    """One sandbox: its row, its id, or a Sandbox."""
    if format in ("table", "id"):
        print_sandboxes([sandbox], format)
    else:
        print_data(to_json(sandbox), format)


def print_details(sandbox: Sandbox) -> None:
    """One sandbox, a line for each thing known of it."""
    status, spec = sandbox.status, sandbox.spec
    runtime = status.runtime
    backend = runtime.oci_runtime or runtime.runtime_class
    limits = [f"{name} {value}" for name, value in _limits(spec) if value]
    lines = {
        "ID": sandbox.id,
        "Image": image(spec),
        "State": _coloured(state_name(sandbox)),
        "Reason": status.reason,
        "Message": status.message,
        "Exit code": str(status.exit_code) if status.HasField("exit_code") else "",
        "Created": time(sandbox.create_time),
        "Expires": time(sandbox.expire_time) if sandbox.HasField("expire_time") else "never",
        "Runtime": f"{runtime_name(sandbox)}{f' ({backend})' if backend else ''}, {isolation(runtime.isolation)}",
        "Entrypoint": shlex.join(spec.entrypoint),
        "Resources": ", ".join(limits),
        "Ports": ", ".join(map(str, spec.ports)),
        "Environment": ", ".join(sorted(spec.env)),
        "Metadata": pairs(sandbox.metadata),
    }
    print_lines({label: text for label, text in lines.items() if text})


def print_lines(lines: Mapping[str, str]) -> None:
    """Labels and what they stand for, aligned."""
    width = max(map(len, lines), default=0) + 1
    for label, text in lines.items():
        click.echo(f"{label + ':':<{width}}  {text}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; never cut off, so that a pipe sees everything."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for cells in (header, *rows):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        click.echo("  ".join(map(_coloured, padded)).rstrip())


def row(sandbox: Sandbox) -> tuple[str, ...]:
    """The cells of COLUMNS."""
    now = datetime.now(UTC)
    return (
        sandbox.id,
        image(sandbox.spec) or "-",
        state_name(sandbox),
        span((now - _datetime(sandbox.create_time)).total_seconds()),
        _expiry(sandbox, now),
        runtime_name(sandbox),
        pairs(sandbox.metadata) or "-",
    )


def image(spec: SandboxSpec) -> str:
    return spec.image.uri


def runtime_name(sandbox: Sandbox) -> str:
    return sandbox.status.runtime.secure_runtime or "runc"


def isolation(value: Isolation.ValueType) -> str:
    return _ISOLATIONS.get(value, "unknown")


def pairs(metadata: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(metadata.items()))


def span(seconds: float) -> str:
    """A length of time in its two largest units at most: 45s, 9m30s, 3h, 2d4h."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append((count, unit))
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count}{unit}" for count, unit in parts[first : first + 2] if count]
    return "".join(shown) or "0s"


def _limits(spec: SandboxSpec) -> list[tuple[str, str]]:
    return [("cpu", spec.resources.cpu), ("memory", spec.resources.memory), ("gpu", spec.resources.gpu)]


def _expiry(sandbox: Sandbox, now: datetime) -> str:
    if not sandbox.HasField("expire_time"):
        return "never"
    left = (_datetime(sandbox.expire_time) - now).total_seconds()
    return f"in {span(left)}" if left > 0 else "now"


def time(timestamp: Timestamp) -> str:
    return _datetime(timestamp).isoformat(timespec="seconds").replace("+00:00", "Z")


def _datetime(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _coloured(cell: str) -> str:
    colour = COLOURS.get(cell.strip()) if sys.stdout.isatty() else None
    return click.style(cell, fg=colour) if colour else cell
