"""A sandbox as a container, both ways: a plan as the body of POST /containers/create, labels as an Observation. Pure.

Nothing is decided here: the plan says all. What a label holds is fixed for the container's life.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from opensandboxd_server.domain.model import Platform, SandboxRuntime, SandboxSpec
from opensandboxd_server.domain.names import LABEL_PREFIX
from opensandboxd_server.domain.policy import SandboxPlan
from opensandboxd_server.domain.ports import Observation
from opensandboxd_server.drivers.docker.options import HOST, NONE, DockerOptions
from opensandboxd_server.drivers.docker.state import ContainerState

ID = f"{LABEL_PREFIX}/id"
INSTANCE = f"{LABEL_PREFIX}/instance"
CREATE_TIME = f"{LABEL_PREFIX}/create-time"
EXPIRE_TIME = f"{LABEL_PREFIX}/expire-time"
METADATA = f"{LABEL_PREFIX}/metadata"
SPEC = f"{LABEL_PREFIX}/spec"
RUNTIME = f"{LABEL_PREFIX}/runtime"

LOG_CONFIG = {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "3"}}
"""Bounded: what a sandbox prints is not to fill the host's disk."""

_METADATA = TypeAdapter(dict[str, str])
_SPEC = TypeAdapter(SandboxSpec)
_RUNTIME = TypeAdapter(SandboxRuntime)


def create_body(plan: SandboxPlan, options: DockerOptions) -> dict[str, Any]:
    """What the engine's POST /containers/create takes; the container is to be named by the plan's id."""
    body: dict[str, Any] = {
        "Image": plan.image.uri,
        "Env": [f"{name}={value}" for name, value in plan.env.items()],
        "Labels": labels(plan, options.instance),
        "HostConfig": _host_config(plan, options),
        "Healthcheck": {"Test": ["NONE"]},  # an image's own would be run by the engine, outside of the sandbox's limits
    }
    if plan.entrypoint:
        body |= {"Entrypoint": list(plan.entrypoint), "Cmd": []}
    if bindings := _port_bindings(plan, options):
        body["ExposedPorts"] = {port: {} for port in bindings}
        body["HostConfig"]["PortBindings"] = bindings
    return body


def platform(plan: SandboxPlan, native: Platform) -> str:
    """As `docker pull --platform` takes it. Always said: else the engine runs what another's pull left of the tag."""
    asked = plan.platform or native
    return f"{asked.os or native.os}/{asked.arch or native.arch}"


def labels(plan: SandboxPlan, instance: str) -> dict[str, str]:
    """The caller's metadata is one label: keys of its own would be read by other tools that act on labels. All labels
    are always there, since one left out could come from the image."""
    return {
        ID: plan.id,
        INSTANCE: instance,
        CREATE_TIME: _write_time(plan.create_time),
        EXPIRE_TIME: _write_time(plan.expire_time) if plan.expire_time else "",
        METADATA: _METADATA.dump_json(dict(plan.metadata)).decode(),
        SPEC: _SPEC.dump_json(plan.spec, exclude_defaults=True).decode(),
        RUNTIME: _RUNTIME.dump_json(plan.runtime).decode(),
    }


def observation(labels: Mapping[str, str], state: ContainerState) -> Observation:
    """The sandbox that these labels are of. ValueError when they are not of this server's making."""
    try:
        create_time = _read_time(labels[CREATE_TIME])
        return Observation(
            id=labels[ID],
            spec=_SPEC.validate_json(labels[SPEC]),
            metadata=_METADATA.validate_json(labels[METADATA]),
            create_time=create_time,
            expire_time=_read_time(labels[EXPIRE_TIME]) if labels[EXPIRE_TIME] else None,
            runtime=_RUNTIME.validate_json(labels[RUNTIME]),
            state=state.state,
            state_time=max(state.time, create_time),
            reason=state.reason,
            message=state.message,
            exit_code=state.exit_code,
        )
    except KeyError as exc:
        raise ValueError(f"label {exc} is missing") from None


def _host_config(plan: SandboxPlan, options: DockerOptions) -> dict[str, Any]:
    security = plan.security
    config: dict[str, Any] = {
        "NetworkMode": options.network,
        "IpcMode": "private",
        "RestartPolicy": {"Name": "no"},
        "LogConfig": LOG_CONFIG,
        "CapDrop": list(security.drop_capabilities),
        "SecurityOpt": _security_options(plan),
    }
    if plan.runtime.secure_runtime and not plan.runtime.oci_runtime:
        raise ValueError(f"plan {plan.id} names no OCI runtime for {plan.runtime.secure_runtime}")
    if plan.runtime.oci_runtime:
        config["Runtime"] = plan.runtime.oci_runtime
    if security.pids_limit is not None:
        config["PidsLimit"] = security.pids_limit
    if plan.nano_cpus:
        config["NanoCpus"] = plan.nano_cpus
    if plan.memory_bytes:
        config |= {"Memory": plan.memory_bytes, "MemorySwap": plan.memory_bytes}
    if plan.gpus:
        config["DeviceRequests"] = [{"Driver": "", "Count": plan.gpus, "Capabilities": [["gpu"]]}]
    return config


def _security_options(plan: SandboxPlan) -> list[str]:
    security = plan.security
    options = ["no-new-privileges"] if security.no_new_privileges else []
    if security.seccomp:
        options.append(f"seccomp={security.seccomp}")
    if security.apparmor:
        options.append(f"apparmor={security.apparmor}")
    return options


def _port_bindings(plan: SandboxPlan, options: DockerOptions) -> dict[str, Any]:
    """The engine chooses the host's ports. The host's own network needs no publishing, no network allows none."""
    if options.network_mode in (HOST, NONE):
        return {}
    return {f"{port}/tcp": [{"HostIp": options.publish_host, "HostPort": ""}] for port in plan.ports}


def _read_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} is a time without a zone")
    return time


def _write_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
