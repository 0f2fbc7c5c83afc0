"""The kinds of value that a key may have: what is accepted, how it is normalised, and why it is refused."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from opensandboxd_server.settings.problems import Wrong, did_you_mean, refuse

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_HOST_WITH_PORT = re.compile(r"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_DOCKER_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([kMGTPE]|[KMGTPE]i)?")
_API_KEY = re.compile(r"[!-~]([ -~]*[!-~])?")

CAPABILITIES = frozenset(
    """
    ALL AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH
    FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN
    NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT
    SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM
    """.split()  # noqa: SIM905 - one word a line would fill a screen
)
"""capabilities(7), as Docker names them."""


def is_dns_label(value: str) -> bool:
    return bool(_DNS_LABEL.fullmatch(value))


def is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def is_host(value: str) -> bool:
    """An IP address or a host name, without a port. A name of digits and dots alone is a mistyped address."""
    return is_ip(value) or bool(_HOST_NAME.fullmatch(value) and not re.fullmatch(r"[0-9.]+", value))


def is_host_with_port(value: str) -> bool:
    """A host, perhaps with ":port"; an IPv6 address with a port stands in brackets."""
    if is_host(value):
        return True
    match = _HOST_WITH_PORT.fullmatch(value)
    return bool(match and is_host(match["v6"] or match["host"]) and 1 <= int(match["port"]) <= 65535)


def _path(value: Any) -> Any:
    try:
        return Path(value).expanduser() if isinstance(value, str | Path) else value
    except RuntimeError:
        refuse(Wrong("", "this user has no home directory for ~", "write an absolute path"))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _zero_is_none(value: Any) -> Any:
    return None if type(value) is int and value == 0 else value


def _upper(value: Any) -> Any:
    return {"WARN": "WARNING"}.get(value.upper(), value.upper()) if isinstance(value, str) else value


def _host(value: str) -> str:
    if value and not is_host(value):
        refuse(
            Wrong(
                "", f"{json.dumps(value)} is neither an IP address nor a host name", "write it without scheme and port"
            )
        )
    return value


def _ip(value: str) -> str:
    if value and not is_ip(value):
        refuse(
            Wrong(
                "",
                f"{json.dumps(value)} is not an IP address, and Docker resolves no names",
                'write one like "127.0.0.1"',
            )
        )
    return value


def _dns_label(value: str) -> str:
    if value and not is_dns_label(value):
        why = f"{json.dumps(value)} is not a DNS label"
        refuse(Wrong("", why, "use at most 63 lower-case letters, digits and inner hyphens"))
    return value


def _network(value: str) -> str:
    if value == "default":
        refuse(Wrong("", "lets sandboxes reach each other on the engine's own bridge", 'write "bridge"'))
    if not _DOCKER_NETWORK.fullmatch(value):
        why = f"{json.dumps(value)} is not a network's name, and another container's network is never shared"
        refuse(Wrong("", why, 'write "bridge", "host" or the name of a network'))
    return value


def _capabilities(values: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(value.upper().removeprefix("CAP_") for value in values)
    for name in names:
        if name not in CAPABILITIES:
            close = did_you_mean(name, CAPABILITIES)
            remedy = f"did you mean {close}?" if close else "see capabilities(7) for the names"
            refuse(Wrong("", f"{json.dumps(name)} is not a capability of Linux", remedy))
    return names


def _absolute_paths(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not value.startswith("/") or ".." in value.split("/"):
            refuse(
                Wrong("", f"{json.dumps(value)} is not an absolute path without ..", 'write one like "/data/sandboxes"')
            )
    return values


def _quantity(value: str) -> str:
    if not _QUANTITY.fullmatch(value):
        refuse(Wrong("", f"{json.dumps(value)} is not a Kubernetes quantity of bytes", 'write one like "1Gi"'))
    return value


def _api_key(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not _API_KEY.fullmatch(value.get_secret_value()):
        why = "has characters that gRPC metadata cannot carry"
        refuse(
            Wrong(
                "", why, "use printable ASCII without spaces at the ends, such as the output of `openssl rand -hex 32`"
            )
        )
    return value


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=1)]
Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_zero_is_none)]
"""At least 1; 0 and None are no limit."""
SandboxTimeout = Annotated[Annotated[int, Field(ge=60)] | None, BeforeValidator(_zero_is_none)]
"""Seconds, at least 60; 0 and None are no limit."""
ExpandedPath = Annotated[Path, BeforeValidator(_path)]
HostOrIp = Annotated[str, AfterValidator(_host)]
Ip = Annotated[str, AfterValidator(_ip)]
DnsLabel = Annotated[str, AfterValidator(_dns_label)]
DockerNetwork = Annotated[str, AfterValidator(_network)]
CapabilityNames = Annotated[tuple[str, ...], BeforeValidator(_tuple), AfterValidator(_capabilities)]
AbsolutePaths = Annotated[tuple[str, ...], BeforeValidator(_tuple), AfterValidator(_absolute_paths)]
ByteQuantity = Annotated[str, AfterValidator(_quantity)]
ApiKey = Annotated[SecretStr | None, AfterValidator(_api_key)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
