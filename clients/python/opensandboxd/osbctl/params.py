"""What is typed on a command line, as Python's types. Each function is a click type, and names its metavar."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from opensandboxd.v1.sandbox_pb2 import SandboxState

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def duration(text: str) -> float:
    """Seconds of 90s, 10m, 2h, 1h30m; a bare number is seconds."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise click.BadParameter(f"{text!r} is not a duration: write it like 90s, 10m, 2h or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def time(text: str) -> datetime:
    """An RFC 3339 time with its zone, 2030-01-31T12:00:00Z."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        value = None
    if value is None or value.tzinfo is None:
        raise click.BadParameter(f"{text!r} is not a time with its zone: write it like 2030-01-31T12:00:00Z")
    return value


def since(text: str) -> datetime:
    """A duration back from now, or a time."""
    return time(text) if "T" in text else datetime.now(UTC) - timedelta(seconds=duration(text))


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE; the value may be empty and may hold more equals signs."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, value


STATES = click.Choice(
    [name.removeprefix("SANDBOX_STATE_").lower() for name in SandboxState.keys()[1:]], case_sensitive=False
)


def to_state(name: str) -> SandboxState.ValueType:
    return SandboxState.Value(f"SANDBOX_STATE_{name.upper()}")
