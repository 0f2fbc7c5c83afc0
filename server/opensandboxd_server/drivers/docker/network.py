"""The network that sandboxes join, and where their ports are reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from opensandboxd_server.domain.errors import FailedPrecondition, StartupError
from opensandboxd_server.domain.model import Endpoint
from opensandboxd_server.drivers.docker.api import DockerApi, EngineError
from opensandboxd_server.drivers.docker.container import INSTANCE
from opensandboxd_server.drivers.docker.options import BRIDGE, HOST, NONE, DockerOptions

_ISOLATED = {"com.docker.network.bridge.enable_icc": "false"}
_CONFLICT = 409


async def ensure(api: DockerApi, options: DockerOptions) -> None:
    """Makes the server's own network unless it is there. StartupError when what is there is not what is configured."""
    name = options.network
    if options.network_mode in (HOST, NONE):
        return
    found = await api.inspect_network(name)
    if options.network_mode != BRIDGE:
        if not found:
            raise StartupError(
                f'[docker] network_mode = "{name}", but the Docker engine has no such network; create it '
                f'(docker network create {name}), or choose "bridge", "host" or "none"'
            )
        return
    if not found:
        try:
            await api.create_network(name, _ISOLATED, {INSTANCE: options.instance})
            return
        except EngineError as exc:
            found = await api.inspect_network(name) if exc.status == _CONFLICT else None
            if not found:
                raise
    _check_isolated(name, found)


def endpoint(id: str, container: Mapping[str, Any], port: int, options: DockerOptions, *, internal: bool) -> Endpoint:
    """`container` is the engine's GET /containers/{id}/json."""
    if not container["State"]["Running"]:
        message = f"sandbox {id} is {container['State']['Status']}; only a running one has endpoints"
        raise FailedPrecondition("INVALID_STATE", message, subject=id)
    if options.network_mode == HOST:
        return Endpoint(_reachable(options), port)
    settings = container["NetworkSettings"]
    if internal:
        return Endpoint(_address(id, settings), port)
    published = {key: bindings for key, bindings in (settings["Ports"] or {}).items() if bindings}
    if bindings := published.get(f"{port}/tcp"):
        return Endpoint(_reachable(options), int(bindings[0]["HostPort"]))
    names = ", ".join(sorted((key.removesuffix("/tcp") for key in published), key=int)) or "none"
    raise FailedPrecondition(
        "PORT_NOT_PUBLISHED",
        f"port {port} of sandbox {id} is not published (published: {names}); add it to spec.ports at creation",
        subject=id,
    )


def _check_isolated(name: str, network: Mapping[str, Any]) -> None:
    options = network["Options"] or {}
    if network["Driver"] == "bridge" and all(options.get(key) == value for key, value in _ISOLATED.items()):
        return
    raise StartupError(
        f"the Docker network {name} does not keep sandboxes apart: it is not a bridge with "
        f"{' '.join(map('='.join, _ISOLATED.items()))}. Remove it to have it made anew: docker network rm {name}"
    )


def _address(id: str, settings: Mapping[str, Any]) -> str:
    for network in settings["Networks"].values():
        if network["IPAddress"]:
            return str(network["IPAddress"])
    raise FailedPrecondition(
        "PORT_NOT_PUBLISHED",
        f"sandbox {id} has no network; [docker] network_mode is {NONE!r} on this server",
        subject=id,
    )


def _reachable(options: DockerOptions) -> str:
    if options.host_ip:
        return options.host_ip
    if options.network_mode == HOST or not options.publish_host:
        return "127.0.0.1"
    address = ipaddress.ip_address(options.publish_host)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return options.publish_host
