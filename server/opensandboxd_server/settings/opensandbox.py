"""OpenSandbox 1.1.1's keys that this server does not have: each is ignored, or refused, for a reason.

Ignored: it tunes a part that does not exist here, so leaving it out weakens nothing. Refused: an administrator who
set it relies on something that would silently be missing. A path covers all that is below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ignored:
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """`harmless` are values that ask for nothing, so that a file full of OpenSandbox's defaults loads."""

    why: str
    remedy: str
    harmless: tuple[object, ...] = ()


_HTTP = Ignored("tunes OpenSandbox's HTTP server")
_PORTS = Ignored("Docker chooses the published ports")
_OTEL = Ignored("no OpenTelemetry export here")
_INFORMER = Ignored("the watch needs no tuning here")
_FAST_SANDBOX = Ignored("the fast-sandbox backend is not part of this server")
_POSTGRESQL = Ignored("the store is SQLite")
_API_RATE = Refused(
    "limits requests to the Kubernetes API, which this server does not",
    "remove it, and limit the server's service account with API Priority and Fairness",
    harmless=(0,),
)
_RESOURCES = Refused(
    "limits a helper container, which this server does not",
    "remove it, and set a LimitRange on the namespace",
    harmless=({},),
)

FOREIGN_KEYS: Mapping[str, Ignored | Refused] = {
    "proxy.resolve_internal": Ignored("no reverse proxy here"),
    "otel.enabled": _OTEL,
    "otel.endpoint": _OTEL,
    "otel.service_name": _OTEL,
    "otel.export_interval_millis": _OTEL,
    "tenants": Refused(
        "separates tenants, which this server does not: every key holder would see every sandbox",
        "remove the section, and run one server for each tenant",
    ),
    "server.timeout_keep_alive": _HTTP,
    "server.limit_concurrency": _HTTP,
    "server.timeout_graceful_shutdown": Ignored("the key here is graceful_shutdown_seconds"),
    "server.backlog": _HTTP,
    "server.thread_pool_size": _HTTP,
    "server.loop": _HTTP,
    "server.http": _HTTP,
    "server.eip": Refused(
        "rewrites the host of endpoints, which is another key here", "move its value to [docker] host_ip"
    ),
    "log.access_file_path": Ignored("requests are in the one log"),
    "runtime.execd_run_as_init": Ignored("execd is not the init process here"),
    "docker.port_range_min": _PORTS,
    "docker.port_range_max": _PORTS,
    "docker.sandbox_env": Refused(
        "gives every sandbox environment variables, which this server does not",
        "remove it, and set the variables in the image or in each request's spec.env",
        harmless=({},),
    ),
    "docker.sandbox_binds": Refused(
        "mounts host paths into every sandbox, which this server does not",
        "remove it, and put the files in the image",
        harmless=([],),
    ),
    "kubernetes.insecure_skip_tls_verify": Refused(
        "turns off verification of the Kubernetes API, which this server never does",
        "remove it, and put the cluster's CA in the kubeconfig",
        harmless=(False,),
    ),
    "kubernetes.informer_resync_seconds": _INFORMER,
    "kubernetes.informer_watch_timeout_seconds": _INFORMER,
    "kubernetes.sandbox_create_poll_interval_seconds": _INFORMER,
    "kubernetes.pool_acquisition_timeout_seconds": Ignored("the key here is sandbox_create_timeout_seconds"),
    "kubernetes.read_qps": _API_RATE,
    "kubernetes.read_burst": _API_RATE,
    "kubernetes.write_qps": _API_RATE,
    "kubernetes.write_burst": _API_RATE,
    "kubernetes.fastpath_endpoint": _FAST_SANDBOX,
    "kubernetes.fastpath_timeout_seconds": _FAST_SANDBOX,
    "kubernetes.fastpath_wait_ready_seconds": _FAST_SANDBOX,
    "kubernetes.fastpath_resource_pool": _FAST_SANDBOX,
    "kubernetes.template_s3_publish_secret": _FAST_SANDBOX,
    "kubernetes.execd_init_resources": _RESOURCES,
    "ingress.secure_access": Refused(
        "signs the routes to sandboxes, which this server does not: its endpoints would be open",
        "remove it, and restrict access at the gateway",
        harmless=({"keys": []},),
    ),
    "egress.otlp_endpoint": _OTEL,
    "egress.readiness_timeout_seconds": Ignored("the wait for the sidecar is part of the creation's own deadline"),
    "egress.requests": _RESOURCES,
    "egress.limits": _RESOURCES,
    "egress.upstream_proxy": Refused(
        "sends all egress through a proxy, which this server does not: traffic would bypass it",
        "remove it, and force the proxy at the network",
    ),
    "storage.ossfs_mount_root": Ignored("no OSSFS volumes here"),
    "store.postgresql": _POSTGRESQL,
}

FOREIGN_VARIABLES: Mapping[str, Refused] = {
    name: Refused(
        "signs the routes to sandboxes, which this server does not: its endpoints would be open",
        "unset it, and restrict access at the gateway",
    )
    for name in ("OPENSANDBOX_SECURE_ACCESS_KEYS", "OPENSANDBOX_SECURE_ACCESS_ACTIVE_KEY")
}

FOREIGN_SECTIONS = ("proxy", "otel")
"""Sections of OpenSandbox's that have keys above and none of ours."""


def take_foreign(table: dict[str, Any]) -> dict[str, Any]:
    """Removes the foreign keys from a parsed file and returns them by path."""
    taken: dict[str, Any] = {}
    for path in FOREIGN_KEYS:
        *sections, key = path.split(".")
        holder: Any = table
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and key in holder:
            taken[path] = holder.pop(key)
    for section in FOREIGN_SECTIONS:
        if table.get(section) == {}:
            del table[section]
    return taken
