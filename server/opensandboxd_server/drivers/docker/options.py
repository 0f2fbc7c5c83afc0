"""What the Docker driver needs of the server's settings."""

from __future__ import annotations

from dataclasses import dataclass

from opensandboxd_server.domain.runtimes import RUNC, SecureRuntime

BRIDGE, HOST, NONE = "bridge", "host", "none"


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """`instance` marks what this server owns on the engine. `docker_host` "" is the platform's default address.

    `network_mode` is bridge (a network of the server's own), host, none, or the name of a network that exists.
    `publish_host` is the address that published ports bind to; `host_ip`, when set, is the one endpoints are told with.
    `api_timeout` is in seconds. `oci_runtime` is the engine's name of `runtime`, "" for its default.
    `apparmor` is the profile that sandboxes are to run under, "" for the engine's default.
    """

    instance: str
    docker_host: str = ""
    network_mode: str = BRIDGE
    host_ip: str = ""
    publish_host: str = "127.0.0.1"
    api_timeout: int = 60
    runtime: SecureRuntime = RUNC
    oci_runtime: str = ""
    apparmor: str = ""

    @property
    def network(self) -> str:
        """The engine's name of the network that sandboxes join."""
        return f"opensandboxd-{self.instance}" if self.network_mode == BRIDGE else self.network_mode

    @property
    def resolves_through_engine(self) -> bool:
        """Whether sandboxes find Docker's own resolver in their resolv.conf: so it is on every user-defined network."""
        return self.network_mode not in (HOST, NONE)
