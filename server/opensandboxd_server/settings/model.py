"""The configuration as values: one frozen model for each section of the file, every attribute named as its key.

Building `Settings` directly reads neither files nor environment, except the files that keys point to. Paths have "~"
expanded; text that is not set is "", everything else None. docs/configuration.md is the reference of the keys.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from opensandboxd_server.settings.problems import Wrong, refuse
from opensandboxd_server.settings.types import (
    AbsolutePaths,
    ApiKey,
    ByteQuantity,
    CapabilityNames,
    Count,
    DnsLabel,
    DockerNetwork,
    ExpandedPath,
    HostOrIp,
    Ip,
    LogLevel,
    Port,
    SandboxTimeout,
    Seconds,
    is_host,
    is_host_with_port,
)

EVERY_INTERFACE = "0.0.0.0"  # noqa: S104 - the documented default of a server that authenticates
LOOPBACK = "127.0.0.1"
TEN_YEARS = 10 * 365 * 86_400

VARIABLES = {
    "server.api_key": "OPENSANDBOX_SERVER_API_KEY",
    "pending_failure_ttl": "PENDING_FAILURE_TTL",
    "docker_host": "DOCKER_HOST",
}
"""Which environment variable says what; each wins over the file."""


class Section(BaseModel):
    """Wrong types and unknown keys are errors; no error message holds a value that was not chosen to be shown."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(Section):
    """`instance` names this server on a shared engine; Settings derives it from the store's path when it is not set."""

    host: HostOrIp = EVERY_INTERFACE
    port: Port = 8080
    api_key: ApiKey = None
    max_sandbox_timeout_seconds: SandboxTimeout = None
    max_sandboxes: Count = None
    instance: DnsLabel = ""
    tls_cert: ExpandedPath | None = None
    tls_key: ExpandedPath | None = None
    tls_client_ca: ExpandedPath | None = None
    graceful_shutdown_seconds: Annotated[int, Field(ge=0)] = 30

    @property
    def address(self) -> str:
        """host:port as gRPC takes it, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if wrongs := list(self._tls_wrongs()):
            refuse(*wrongs)
        return self

    def _tls_wrongs(self) -> Iterator[Wrong]:
        if self.tls_cert and not self.tls_key:
            yield Wrong("tls_key", "is required with tls_cert", "name the certificate's private key file in PEM")
        if self.tls_key and not self.tls_cert:
            yield Wrong("tls_cert", "is required with tls_key", "name the certificate file in PEM")
        if self.tls_client_ca and not (self.tls_cert or self.tls_key):
            yield Wrong("tls_client_ca", "needs tls_cert and tls_key", "set both, or remove it")
        files = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_client_ca": self.tls_client_ca}
        missing = {key: path for key, path in files.items() if path and not path.is_file()}
        for key, path in missing.items():
            yield Wrong(key, f"there is no file {path}", "create it, or correct the path")
        if not missing:
            yield from self._unusable_tls_files()

    def _unusable_tls_files(self) -> Iterator[Wrong]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.tls_cert and self.tls_key:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")
            except (OSError, ValueError):  # SSLError is an OSError
                why = f"{self.tls_cert} and {self.tls_key} are not a certificate and its key"
                yield Wrong(
                    "tls_cert", why, "use readable PEM files that belong together, the key without a passphrase"
                )
        if self.tls_client_ca:
            try:
                context.load_verify_locations(self.tls_client_ca)
            except (OSError, ValueError):
                yield Wrong("tls_client_ca", f"{self.tls_client_ca} has no certificate", "use a readable PEM file")


class LogSettings(Section):
    """`format` auto is console on a terminal and json otherwise. A file takes the place of standard error."""

    level: LogLevel = "INFO"
    format: Literal["auto", "console", "json"] = "auto"
    file_enabled: bool = False
    file_path: ExpandedPath = Field(default=Path("~/logs/opensandbox/opensandboxd.log"), validate_default=True)
    file_max_bytes: Annotated[int, Field(ge=1)] = 100 * 1024 * 1024
    file_backup_count: Annotated[int, Field(ge=0)] = 5


class RuntimeSettings(Section):
    type: Literal["docker", "kubernetes"]
    execd_image: str = ""


class DockerSettings(Section):
    """`pids_limit` None is no limit; `api_timeout` is in seconds; `seccomp_profile` is a file, "unconfined" or ""."""

    network_mode: DockerNetwork = "bridge"
    host_ip: HostOrIp = ""
    publish_host: Ip = ""
    drop_capabilities: CapabilityNames = (
        "AUDIT_WRITE",
        "MKNOD",
        "NET_ADMIN",
        "NET_RAW",
        "SYS_ADMIN",
        "SYS_MODULE",
        "SYS_PTRACE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
    )
    no_new_privileges: bool = True
    pids_limit: Count = 4096
    apparmor_profile: str = ""
    seccomp_profile: str = ""
    api_timeout: Seconds = 60
    _seccomp_json: str = PrivateAttr("")

    @model_validator(mode="after")
    def _read_seccomp(self) -> Self:
        if self.seccomp_profile not in ("", "unconfined"):
            self._seccomp_json = _seccomp(Path(self.seccomp_profile).expanduser())
        return self

    @property
    def seccomp_json(self) -> str:
        """The profile as the engine takes it: compact JSON, "unconfined", or "" for the engine's default."""
        return self._seccomp_json or self.seccomp_profile

    @property
    def effective_publish_host(self) -> str:
        """The address that published ports bind to. With host_ip, others than this host are meant to reach them."""
        return self.publish_host or (EVERY_INTERFACE if self.host_ip else LOOPBACK)


def _seccomp(path: Path) -> str:
    try:
        profile = json.loads(path.read_text("utf-8"))
    except OSError as error:
        why = f"cannot read {path}: {error.strerror}"
        refuse(Wrong("seccomp_profile", why, 'name a readable file, or "unconfined"'))
    except ValueError:  # JSONDecodeError and UnicodeDecodeError
        refuse(Wrong("seccomp_profile", f"{path} is not JSON", "use a profile in Docker's format"))
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        why = f"{path} has no defaultAction, so it is not a seccomp profile"
        refuse(Wrong("seccomp_profile", why, "use a profile in Docker's format"))
    return json.dumps(profile, separators=(",", ":"))


class KubernetesSettings(Section):
    """`kubeconfig_path` None is the configuration inside a cluster."""

    kubeconfig_path: ExpandedPath | None = None
    namespace: DnsLabel = "default"
    workload_provider: Literal["pod", "batchsandbox", "agent-sandbox"] = "pod"
    batchsandbox_template_file: ExpandedPath | None = None
    service_account: str = ""
    sandbox_create_timeout_seconds: Seconds = 60
    informer_enabled: bool = True
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"

    @model_validator(mode="after")
    def _template_is_used(self) -> Self:
        if self.batchsandbox_template_file and self.workload_provider != "batchsandbox":
            why = f'is not used by workload_provider = "{self.workload_provider}"'
            refuse(Wrong("batchsandbox_template_file", why, 'set workload_provider = "batchsandbox", or remove it'))
        return self


class AgentSandboxSettings(Section):
    template_file: ExpandedPath | None = None
    shutdown_policy: Literal["Delete", "Retain"] = "Delete"
    ingress_enabled: bool = True


class SecureRuntimeSettings(Section):
    """`docker_runtime` and `k8s_runtime_class` "" are the type's own names; see domain.runtimes."""

    type: Literal["", "gvisor", "kata", "kata-qemu", "kata-clh", "kata-fc", "firecracker"] = ""
    docker_runtime: str = ""
    k8s_runtime_class: str = ""

    @model_validator(mode="before")
    @classmethod
    def _accept_alias(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "oci_runtime_name" not in data:
            return data
        if "docker_runtime" in data:
            refuse(Wrong("oci_runtime_name", "is the same key as docker_runtime", "keep one of them"))
        return {"docker_runtime" if key == "oci_runtime_name" else key: value for key, value in data.items()}

    @model_validator(mode="after")
    def _names_need_a_type(self) -> Self:
        if not self.type:
            remedy = 'set type, for example type = "gvisor", or remove it'
            names = ("docker_runtime", "k8s_runtime_class")
            wrongs = [Wrong(name, "has no effect without a type", remedy) for name in names if getattr(self, name)]
            if wrongs:
                refuse(*wrongs)
        return self


class EgressSettings(Section):
    image: str = ""
    mode: Literal["dns+nft", "dns"] = "dns+nft"
    disable_ipv6: bool = True


class RouteSettings(Section):
    mode: Literal["wildcard", "uri", "header"]


class GatewaySettings(Section):
    """`address` is a host, perhaps with a port, without a scheme; "*.domain" when the route mode is wildcard."""

    address: str
    route: RouteSettings

    @model_validator(mode="after")
    def _address_fits_route(self) -> Self:
        if self.route.mode == "wildcard":
            domain = self.address.removeprefix("*.")
            if domain == self.address or "." not in domain or not is_host(domain):
                why = 'is not a wildcard domain, which route.mode = "wildcard" needs'
                refuse(Wrong("address", why, 'write one like "*.sandboxes.example.com"'))
        elif not is_host_with_port(self.address):
            why = "is not a host with an optional port, without a scheme"
            refuse(Wrong("address", why, 'write one like "sandboxes.example.com:8443"'))
        return self


class IngressSettings(Section):
    mode: Literal["direct", "gateway"] = "direct"
    gateway: GatewaySettings | None = None

    @model_validator(mode="after")
    def _gateway_fits_mode(self) -> Self:
        if self.mode == "gateway" and not self.gateway:
            refuse(Wrong("gateway", 'is required by mode = "gateway"', "set gateway.address and gateway.route.mode"))
        if self.mode == "direct" and self.gateway:
            refuse(Wrong("gateway", 'is not used by mode = "direct"', 'set mode = "gateway", or remove it'))
        return self


class StorageSettings(Section):
    """`allowed_host_paths` empty: no host path may be mounted."""

    allowed_host_paths: AbsolutePaths = ()
    volume_default_size: ByteQuantity = "1Gi"


class StoreSettings(Section):
    type: Literal["sqlite"] = "sqlite"
    path: ExpandedPath = Field(default=Path("~/.opensandbox/opensandbox.db"), validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _no_postgresql(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") == "postgresql":
            refuse(Wrong("type", "PostgreSQL is not served by this version", 'set type = "sqlite" and a path'))
        return data


class RedisSettings(Section):
    enabled: bool = False
    dsn: SecretStr | None = None
    queue_key: Annotated[str, Field(min_length=1)] = "opensandbox:renew:intent"
    consumer_concurrency: Annotated[int, Field(ge=1)] = 8

    @model_validator(mode="after")
    def _enabled_needs_dsn(self) -> Self:
        if self.enabled and not self.dsn:
            refuse(Wrong("dsn", "is required by redis.enabled", 'set it, for example dsn = "redis://127.0.0.1:6379/0"'))
        return self


class RenewIntentSettings(Section):
    enabled: bool = False
    min_interval_seconds: Seconds = 60
    redis: RedisSettings = RedisSettings()


class Settings(BaseSettings):
    """Everything the server was told. `load` makes it; tests may build it directly.

    `insecure_acknowledged`, `pending_failure_ttl` (seconds) and `docker_host` ("": not set) come from the environment.
    `ignored_keys` are OpenSandbox's keys in the file that mean nothing here.
    """

    model_config = SettingsConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)
    SECTIONS: ClassVar[tuple[str, ...]]

    runtime: RuntimeSettings
    server: ServerSettings = ServerSettings()
    log: LogSettings = Field(default_factory=LogSettings)
    docker: DockerSettings = DockerSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    agent_sandbox: AgentSandboxSettings = AgentSandboxSettings()
    secure_runtime: SecureRuntimeSettings = SecureRuntimeSettings()
    egress: EgressSettings = EgressSettings()
    ingress: IngressSettings = IngressSettings()
    storage: StorageSettings = StorageSettings()
    store: StoreSettings = Field(default_factory=StoreSettings)
    renew_intent: RenewIntentSettings = RenewIntentSettings()

    insecure_acknowledged: bool = False
    pending_failure_ttl: Annotated[float, Field(ge=0, le=TEN_YEARS, allow_inf_nan=False, strict=False)] = 3600.0
    docker_host: str = ""
    ignored_keys: tuple[str, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load` decides what the environment may say, by the names that users know."""
        return (init_settings,)

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        misfits = _docker_misfits if self.runtime.type == "docker" else _kubernetes_misfits
        if wrongs := list(misfits(self)):
            refuse(*wrongs)
        if not self.server.instance:
            server = self.server.model_copy(update={"instance": _instance_of(self.store.path)})
            object.__setattr__(self, "server", server)  # frozen, but not finished: validation is still running
        return self


Settings.SECTIONS = tuple(
    name
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
)


def _instance_of(store: Path) -> str:
    """Stable for a store, different between stores: ten hexadecimal digits."""
    return hashlib.sha256(str(store.resolve()).encode()).hexdigest()[:10]


def _docker_misfits(settings: Settings) -> Iterator[Wrong]:
    other = 'set runtime.type = "kubernetes", or remove it'
    if settings.kubernetes != KubernetesSettings():
        yield Wrong("kubernetes", 'is not used by runtime.type = "docker"', other)
    if settings.agent_sandbox != AgentSandboxSettings():
        yield Wrong("agent_sandbox", 'is not used by runtime.type = "docker"', other)
    if settings.ingress.mode != "direct":
        yield Wrong("ingress.mode", 'a gateway needs runtime.type = "kubernetes"', 'set mode = "direct"')
    if settings.secure_runtime.type in ("kata-fc", "firecracker"):
        why = f'"{settings.secure_runtime.type}" does not run on Docker, which lacks the devmapper snapshotter'
        yield Wrong("secure_runtime.type", why, 'choose "kata-qemu" or "gvisor", or runtime.type = "kubernetes"')


def _kubernetes_misfits(settings: Settings) -> Iterator[Wrong]:
    provider = settings.kubernetes.workload_provider
    if provider != "agent-sandbox" and settings.agent_sandbox != AgentSandboxSettings():
        why = f'is not used by kubernetes.workload_provider = "{provider}"'
        yield Wrong("agent_sandbox", why, 'set kubernetes.workload_provider = "agent-sandbox", or remove it')
