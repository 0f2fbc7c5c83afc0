"""What the administrator decided, read once at start: the only reader of TOML and of the environment.

Precedence of the file: --config, then SANDBOX_CONFIG_PATH, then ~/.sandbox.toml. The keys are OpenSandbox's; what
becomes of those that this server does not have is the table in settings.opensandbox.
"""

from opensandboxd_server.settings.load import DEFAULT_PATH, load
from opensandboxd_server.settings.model import (
    AgentSandboxSettings,
    DockerSettings,
    EgressSettings,
    GatewaySettings,
    IngressSettings,
    KubernetesSettings,
    LogSettings,
    RedisSettings,
    RenewIntentSettings,
    RouteSettings,
    RuntimeSettings,
    SecureRuntimeSettings,
    ServerSettings,
    Settings,
    StorageSettings,
    StoreSettings,
)
from opensandboxd_server.settings.problems import Problem, SettingsError

__all__ = [
    "DEFAULT_PATH",
    "AgentSandboxSettings",
    "DockerSettings",
    "EgressSettings",
    "GatewaySettings",
    "IngressSettings",
    "KubernetesSettings",
    "LogSettings",
    "Problem",
    "RedisSettings",
    "RenewIntentSettings",
    "RouteSettings",
    "RuntimeSettings",
    "SecureRuntimeSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "StorageSettings",
    "StoreSettings",
    "load",
]
