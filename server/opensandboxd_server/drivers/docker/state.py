"""What the engine says of a container's life, as a sandbox's state. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opensandboxd_server.domain.model import SandboxState

_SIGNALLED = 128


@dataclass(frozen=True, slots=True)
class ContainerState:
    state: SandboxState
    time: datetime
    reason: str = ""
    message: str = ""
    exit_code: int | None = None


def of_inspected(container: Mapping[str, Any], switched_at: datetime | None = None) -> ContainerState | None:
    """The state in an answer of GET /containers/{id}/json; None while it is being removed.

    The engine does not remember when a container was paused or resumed: without `switched_at` it is as if at its start.
    """
    state = container["State"]
    match state["Status"]:
        case "removing":
            return None
        case "created":
            return ContainerState(SandboxState.PENDING, parse_time(container["Created"]), "CREATING")
        case "paused":
            return ContainerState(SandboxState.PAUSED, switched_at or parse_time(state["StartedAt"]))
        case "exited" | "dead":
            return _ended(container)
        case _:
            return ContainerState(SandboxState.RUNNING, switched_at or parse_time(state["StartedAt"]))


def _ended(container: Mapping[str, Any]) -> ContainerState:
    """The engine may miss that memory ran out, most often under gVisor, whose cgroup goes with it: told as KILLED."""
    state, limit = container["State"], container["HostConfig"]["Memory"]
    code, time = int(state["ExitCode"]), parse_time(state["FinishedAt"])
    if state["OOMKilled"] and code:
        allowed = f"its limit of {limit} bytes; raise spec.resources.memory" if limit else "the host has"
        return ContainerState(SandboxState.FAILED, time, "OOM_KILLED", f"used more memory than {allowed}", code)
    if code == 0:
        return ContainerState(
            SandboxState.TERMINATED, time, "ENTRYPOINT_EXITED", "the entry point exited with code 0", code
        )
    if name := _signal_name(code):
        message = f"the entry point was killed by {name}"
        if limit and name == "SIGKILL":
            message += f"; it may have used more memory than its limit of {limit} bytes"
        return ContainerState(SandboxState.FAILED, time, "KILLED", message, code)
    message = f"the entry point exited with code {code}" + (f": {state['Error']}" if state["Error"] else "")
    return ContainerState(SandboxState.FAILED, time, "ENTRYPOINT_EXITED", message, code)


def _signal_name(code: int) -> str:
    """The signal that an exit code tells of, or ""."""
    try:
        return signal.Signals(code - _SIGNALLED).name
    except ValueError:
        return ""


def parse_time(text: str) -> datetime:
    """The engine's RFC 3339 time; nanoseconds are cut to microseconds."""
    return datetime.fromisoformat(text)
