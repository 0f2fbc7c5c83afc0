"""What an engine has, read from GET /info: its runtimes, and what sandboxes cannot have on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.runtimes import RUNTIMES, RuntimeAvailability
from opensandboxd_server.drivers.docker.options import NONE, DockerOptions

Info = Mapping[str, Any]

_NETSTACK_ARGUMENT = "--network=host"


def check_runtime(info: Info, options: DockerOptions) -> None:
    """StartupError when the engine does not have the configured runtime."""
    runtime = options.runtime
    if runtime.docker_refusal:
        raise StartupError(f'[secure_runtime] type = "{runtime.type}" does not run on Docker: {runtime.docker_refusal}')
    if not runtime.type or options.oci_runtime in info["Runtimes"]:
        return
    raise StartupError(
        f'[secure_runtime] type = "{runtime.type}" needs the OCI runtime "{options.oci_runtime}", which the Docker '
        f"engine does not have. It has: {_names(info)}. To have it, {runtime.install}; or name one it has in "
        "[secure_runtime] docker_runtime"
    )


def check_hardening(info: Info, options: DockerOptions) -> None:
    """StartupError when the engine would quietly leave out what is configured."""
    if options.apparmor and not any("name=apparmor" in option for option in info.get("SecurityOptions") or []):
        raise StartupError(
            f'[docker] apparmor_profile = "{options.apparmor}", but the Docker engine\'s host has no AppArmor '
            "and would run sandboxes without. Enable AppArmor there, or leave apparmor_profile empty"
        )


def availability(info: Info, options: DockerOptions) -> dict[str, RuntimeAvailability]:
    """Of each secure runtime, whether the engine has it; the configured one goes by its configured name."""
    found = {}
    for type, runtime in RUNTIMES.items():
        name = options.oci_runtime if type == options.runtime.type else runtime.oci_runtime
        if runtime.docker_refusal:
            found[type] = RuntimeAvailability(False, runtime.docker_refusal)
        elif name and name not in info["Runtimes"]:
            reason = f'the Docker engine has no runtime "{name}", only {_names(info)}; {runtime.install}'
            found[type] = RuntimeAvailability(False, reason)
        else:
            found[type] = RuntimeAvailability(True)
    return found


def unsupported(info: Info, options: DockerOptions) -> dict[str, str]:
    """Capabilities that the engine, or the way it is configured, lacks: name -> why, and what to do."""
    lacking = {}
    if not _has_gpus(info):
        lacking["gpu"] = "the Docker engine has no NVIDIA runtime; install the NVIDIA Container Toolkit on its host"
    if not (info.get("MemoryLimit") and info.get("CpuCfsQuota")):
        lacking["resources"] = (
            "the Docker engine's host cannot limit memory or cpu; enable these cgroup controllers on it"
        )
    if options.network_mode == NONE:
        lacking["endpoints"] = '[docker] network_mode is "none", so nothing reaches a sandbox; choose "bridge"'
    return lacking


def warnings(info: Info, options: DockerOptions) -> list[str]:
    """What the administrator should know, though sandboxes run."""
    found = []
    if options.resolves_through_engine and _has_own_netstack(info, options.oci_runtime):
        found.append(
            f'names will not resolve in sandboxes: the runtime "{options.oci_runtime}" brings gVisor\'s own network '
            f'stack, which does not reach Docker\'s resolver; register it with "{_NETSTACK_ARGUMENT}" in runtimeArgs'
        )
    if not info.get("PidsLimit"):
        found.append("pids_limit has no effect: the Docker engine's host lacks the pids cgroup controller")
    if info.get("MemoryLimit") and not info.get("SwapLimit"):
        found.append("memory limits leave swap out: the Docker engine's host does not account for swap (swapaccount=1)")
    return found


def _has_own_netstack(info: Info, oci_runtime: str) -> bool:
    entry = info["Runtimes"].get(oci_runtime, {})
    return "runsc" in entry.get("path", "") and _NETSTACK_ARGUMENT not in (entry.get("runtimeArgs") or [])


def _has_gpus(info: Info) -> bool:
    devices = info.get("DiscoveredDevices") or []
    return "nvidia" in info["Runtimes"] or any("nvidia" in device.get("ID", "") for device in devices)


def _names(info: Info) -> str:
    return ", ".join(sorted(info["Runtimes"]))
