"""A configuration is read whole, or refused with every reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from opensandboxd_server.settings import (
    DockerSettings,
    RuntimeSettings,
    ServerSettings,
    Settings,
    SettingsError,
    StoreSettings,
    load,
)
from opensandboxd_server.settings.opensandbox import FOREIGN_KEYS
from opensandboxd_server.settings.problems import in_file

DOCKER = '[runtime]\ntype = "docker"\n'
KUBERNETES = '[runtime]\ntype = "kubernetes"\n'
Write = Callable[[str], Path]


def writer(directory: Path) -> Write:
    def write(text: str) -> Path:
        path = directory / "sandbox.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


def refusal(path: Path, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {})
    return str(caught.value).splitlines()


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = next(
            (kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(kind)), None
        )
        if below:
            yield from keys_of(below, f"{prefix}{name}.")
        elif prefix:
            yield prefix + name


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


KEYS = list(keys_of(Settings))


def as_toml(key: str, value: str) -> str:
    """A file that sets `key`, and whatever else is required around it."""
    section, _, name = key.rpartition(".")
    required = "" if section == "runtime" else DOCKER
    if section == "ingress.gateway":
        required += '[ingress]\nmode = "gateway"\n'
        required += '[ingress.gateway]\nroute.mode = "uri"\n' if name == "address" else ""
        return f"{required}{name} = {value}\n"
    if section == "ingress.gateway.route":
        required += '[ingress.gateway]\naddress = "a.example"\n'
    return f"{required}[{section}]\n{name} = {value}\n"


# -- where the configuration comes from


def test_the_option_wins_over_the_variable_and_the_variable_over_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ports = {"option.toml": 1001, "variable.toml": 1002, ".sandbox.toml": 1003}
    for name, port in ports.items():
        (tmp_path / name).write_text(f"{DOCKER}[server]\nport = {port}\n")
    variable = {"SANDBOX_CONFIG_PATH": "~/variable.toml"}
    assert load(tmp_path / "option.toml", variable).server.port == 1001
    assert load(None, variable).server.port == 1002
    assert load(None, {"SANDBOX_CONFIG_PATH": ""}).server.port == 1003
    assert load(None, {}).server.port == 1003


def test_a_missing_file_is_refused_with_the_command_that_writes_one(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refusal(path) == [f"{path}: there is no such file; write one with `opensandboxd init-config {path}`"]
    assert refusal(tmp_path / "x", {"SANDBOX_CONFIG_PATH": str(path)}) == [
        f"{tmp_path / 'x'}: there is no such file; write one with `opensandboxd init-config {tmp_path / 'x'}`"
    ]


def test_a_file_that_cannot_be_parsed_is_refused_with_the_place(write: Write, tmp_path: Path) -> None:
    (line,) = refusal(write("[server]\nport = = 1\n"))
    assert "sandbox.toml: is not TOML: " in line
    assert "line 2" in line
    (tmp_path / "latin.toml").write_bytes(b'[server]\nhost = "\xe9"\n')
    assert "is not UTF-8; save it as UTF-8" in refusal(tmp_path / "latin.toml")[0]
    assert "cannot be read: Is a directory" in refusal(tmp_path)[0]


def test_the_environment_says_what_the_file_cannot(write: Write) -> None:
    settings = load(
        write(DOCKER),
        {"OPENSANDBOX_INSECURE_SERVER": "YES", "PENDING_FAILURE_TTL": "2.5", "DOCKER_HOST": "unix:///run/d.sock"},
    )
    assert (settings.insecure_acknowledged, settings.pending_failure_ttl, settings.docker_host) == (
        True,
        2.5,
        "unix:///run/d.sock",
    )
    plain = load(write(DOCKER), {"PENDING_FAILURE_TTL": "", "DOCKER_HOST": ""})
    assert (plain.insecure_acknowledged, plain.pending_failure_ttl, plain.docker_host) == (False, 3600.0, "")


@pytest.mark.parametrize("value", ["yes", "1", "true", " YES", ""])
def test_only_a_plain_yes_acknowledges_an_insecure_server(write: Write, value: str) -> None:
    assert not load(write(DOCKER), {"OPENSANDBOX_INSECURE_SERVER": value}).insecure_acknowledged


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_bad_variable_is_refused_by_its_name(write: Write, value: str) -> None:
    (line,) = refusal(write(DOCKER), {"PENDING_FAILURE_TTL": value})
    assert line.startswith("environment: PENDING_FAILURE_TTL: ")
    assert "; write " in line


@pytest.mark.parametrize("name", ["docker_host", "insecure_acknowledged", "pending_failure_ttl", "ignored_keys"])
def test_what_the_environment_alone_says_is_no_key_of_the_file(write: Write, name: str) -> None:
    (line,) = refusal(write(f'{name} = "YES"\n{DOCKER}'))
    assert f"sandbox.toml: {name}: stands outside of any section" in line


def test_building_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:1")
    monkeypatch.setenv("SERVER", '{"port": 1}')
    settings = Settings(runtime=RuntimeSettings(type="docker"))
    assert (settings.docker_host, settings.server.port) == ("", 8080)


# -- what is accepted


def test_settings_are_frozen(write: Write) -> None:
    settings = load(write(DOCKER), {})
    with pytest.raises(ValidationError):
        settings.docker_host = "x"
    with pytest.raises(ValidationError):
        settings.server.port = 1


def test_empty_strings_are_not_set(write: Write) -> None:
    empty = "".join(
        f'[{key.rpartition(".")[0]}]\n{key.rpartition(".")[2]} = ""\n'
        for key in ("server.port", "docker.pids_limit", "log.file_enabled", "store.path", "egress.mode")
    )
    assert load(write(DOCKER + empty), {}) == load(write(DOCKER), {})


@pytest.mark.parametrize("key", ["server.max_sandboxes", "server.max_sandbox_timeout_seconds", "docker.pids_limit"])
def test_zero_is_no_limit(write: Write, key: str) -> None:
    section, _, name = key.partition(".")
    settings = load(write(f"{DOCKER}[{section}]\n{name} = 0\n"), {})
    assert getattr(getattr(settings, section), name) is None


def test_the_default_instance_is_stable_and_follows_the_store(write: Write) -> None:
    def instance(path: str) -> str:
        return load(write(f'{DOCKER}[store]\npath = "{path}"\n'), {}).server.instance

    assert instance("/a/one.db") == instance("/a/../a/one.db")
    assert instance("/a/one.db") != instance("/a/two.db")
    assert ServerSettings(instance=instance("/a/one.db")).instance.isalnum()
    assert load(write(f'{DOCKER}[server]\ninstance = "mine"\n'), {}).server.instance == "mine"


def test_published_ports_stay_on_this_host_unless_another_is_meant_to_reach_them() -> None:
    assert DockerSettings().effective_publish_host == "127.0.0.1"
    assert DockerSettings(host_ip="192.0.2.1").effective_publish_host == "0.0.0.0"
    assert DockerSettings(host_ip="192.0.2.1", publish_host="172.17.0.1").effective_publish_host == "172.17.0.1"


def test_a_seccomp_profile_is_read_when_the_settings_are(write: Write, tmp_path: Path) -> None:
    profile = tmp_path / "seccomp.json"
    profile.write_text('{ "defaultAction": "SCMP_ACT_ERRNO" }')
    docker = load(write(f'{DOCKER}[docker]\nseccomp_profile = "{profile}"\n'), {}).docker
    profile.unlink()
    assert json.loads(docker.seccomp_json) == {"defaultAction": "SCMP_ACT_ERRNO"}
    assert DockerSettings(seccomp_profile="unconfined").seccomp_json == "unconfined"
    assert DockerSettings().seccomp_json == ""


def test_the_other_name_of_docker_runtime_is_accepted(write: Write) -> None:
    text = f'{DOCKER}[secure_runtime]\ntype = "gvisor"\noci_runtime_name = "runsc-kvm"\n'
    assert load(write(text), {}).secure_runtime.docker_runtime == "runsc-kvm"
    (line,) = refusal(write(text + 'docker_runtime = "runsc"\n'))
    assert "[secure_runtime] oci_runtime_name: is the same key as docker_runtime; keep one of them" in line


def test_capabilities_are_named_as_docker_names_them() -> None:
    assert DockerSettings(drop_capabilities=("cap_net_raw", "ALL")).drop_capabilities == ("NET_RAW", "ALL")


@pytest.mark.parametrize("type", ["kata-fc", "firecracker"])
def test_microvms_are_for_kubernetes(write: Write, type: str) -> None:
    section = f'[secure_runtime]\ntype = "{type}"\n'
    assert load(write(KUBERNETES + section), {}).secure_runtime.type == type
    (line,) = refusal(write(DOCKER + section))
    assert f'[secure_runtime] type: "{type}" does not run on Docker' in line
    assert 'choose "kata-qemu"' in line


def test_a_kubernetes_file_parses_whole(write: Write) -> None:
    settings = load(
        write(
            KUBERNETES
            + '[kubernetes]\nnamespace = "boxes"\nworkload_provider = "agent-sandbox"\ninformer_enabled = false\n'
            + '[agent_sandbox]\nshutdown_policy = "Retain"\n'
            + '[ingress]\nmode = "gateway"\ngateway.address = "*.boxes.example.com"\ngateway.route.mode = "wildcard"\n'
            + '[renew_intent]\nenabled = true\nredis.enabled = true\nredis.dsn = "redis://:pass@r/0"\n'
        ),
        {},
    )
    assert settings.kubernetes.workload_provider == "agent-sandbox"
    assert settings.agent_sandbox.shutdown_policy == "Retain"
    assert settings.ingress.gateway is not None
    assert settings.ingress.gateway.address == "*.boxes.example.com"
    assert settings.renew_intent.redis.dsn == SecretStr("redis://:pass@r/0")


def test_a_section_of_the_other_runtime_may_stand_with_its_defaults(write: Write) -> None:
    assert load(write(f'{DOCKER}[kubernetes]\nnamespace = "default"\n[agent_sandbox]\n'), {}).runtime.type == "docker"


def test_the_store_is_where_the_file_says(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(write(DOCKER), {}).store == StoreSettings(path=tmp_path / ".opensandbox" / "opensandbox.db")
    assert load(write(f'{DOCKER}[store]\npath = "~/x.db"\n'), {}).store.path == tmp_path / "x.db"


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1:8080"), ("::", "[::]:8080"), ("localhost", "localhost:8080")]
)
def test_an_address_is_as_grpc_takes_it(host: str, address: str) -> None:
    assert ServerSettings(host=host).address == address


# -- what is refused


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["[[1]]", "{ a = 1 }"])
def test_every_key_refuses_a_wrong_type(write: Write, key: str, value: str) -> None:
    path = write(as_toml(key, value))
    lines = [line for line in refusal(path) if line.startswith(f"{path}: {in_file(key)}: ")]
    assert len(lines) == 1
    why, _, remedy = lines[0].partition("; ")
    assert why
    assert remedy.startswith("write ")


REFUSED = [
    ("server.port", "0", "0 is below 1; write at least 1, or leave it out for 8080"),
    ("server.port", "65536", "65536 is above 65535; write at most 65535, or leave it out for 8080"),
    ("server.port", '"8080"', "must be a whole number without quotes, not text; write it like port = 8080"),
    ("server.port", "8080.5", "must be a whole number without quotes, not a number with a fraction"),
    ("server.port", "true", "must be a whole number without quotes, not true or false"),
    ("server.host", '"http://a"', "is neither an IP address nor a host name; write it without scheme and port"),
    ("server.host", '"300.1.1.1"', "is neither an IP address nor a host name"),
    ("server.api_key", '" key"', "has characters that gRPC metadata cannot carry"),
    ("server.api_key", '"k\\u00e9y"', "has characters that gRPC metadata cannot carry"),
    ("server.max_sandbox_timeout_seconds", "59", "59 is below 60; write at least 60, or 0 for no limit"),
    ("server.max_sandboxes", "-1", "-1 is below 1; write at least 1, or 0 for no limit"),
    ("server.instance", '"My_Server"', "is not a DNS label"),
    ("server.instance", f'"{"a" * 64}"', "is not a DNS label"),
    ("server.graceful_shutdown_seconds", "-1", "-1 is below 0; write at least 0, or leave it out for 30"),
    ("log.level", '"LOUD"', 'is none of "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"'),
    ("log.level", '"inf"', 'did you mean "INFO"?'),
    ("log.format", '"xml"', 'is none of "auto", "console", "json"'),
    ("log.file_max_bytes", "0", "0 is below 1; write at least 1"),
    ("log.file_backup_count", "-1", "-1 is below 0; write at least 0"),
    ("runtime.type", '"dokcer"', 'did you mean "docker"?'),
    ("docker.network_mode", '"container:abc"', "another container's network is never shared"),
    ("docker.network_mode", '"default"', 'lets sandboxes reach each other on the engine\'s own bridge; write "bridge"'),
    ("docker.host_ip", '"a b"', "is neither an IP address nor a host name"),
    ("docker.publish_host", '"localhost"', "is not an IP address, and Docker resolves no names"),
    ("docker.drop_capabilities", '["NET_RAWW"]', '"NET_RAWW" is not a capability of Linux; did you mean NET_RAW?'),
    ("docker.drop_capabilities", '"NET_RAW"', "must be a list in brackets, not text"),
    ("docker.no_new_privileges", '"false"', "must be true or false without quotes, not text"),
    ("docker.pids_limit", "-1", "-1 is below 1; write at least 1, or 0 for no limit, or leave it out for 4096"),
    ("docker.api_timeout", "0", "0 is below 1"),
    ("docker.seccomp_profile", '"/nowhere.json"', "cannot read /nowhere.json: No such file or directory; name a"),
    ("kubernetes.namespace", '"Boxes"', "is not a DNS label"),
    ("kubernetes.workload_provider", '"batchsandboxes"', 'did you mean "batchsandbox"?'),
    (
        "kubernetes.batchsandbox_template_file",
        '"/t"',
        'is not used by workload_provider = "pod"; set workload_provider',
    ),
    ("kubernetes.sandbox_create_timeout_seconds", "0", "0 is below 1"),
    ("kubernetes.image_pull_policy", '"always"', 'did you mean "Always"?'),
    ("agent_sandbox.shutdown_policy", '"Keep"', 'is none of "Delete", "Retain"'),
    ("secure_runtime.type", '"gviser"', 'did you mean "gvisor"?'),
    ("secure_runtime.docker_runtime", '"runsc"', 'has no effect without a type; set type, for example type = "gvisor"'),
    ("secure_runtime.k8s_runtime_class", '"gvisor"', "has no effect without a type"),
    ("egress.mode", '"nft"', 'is none of "dns+nft", "dns"'),
    ("ingress.mode", '"gatewy"', 'did you mean "gateway"?'),
    ("ingress.gateway.address", '"https://a.example"', "is not a host with an optional port, without a scheme"),
    ("ingress.gateway.address", '"*.a.example"', "is not a host with an optional port"),
    ("ingress.gateway.address", '"a.example:99999"', "is not a host with an optional port"),
    ("ingress.gateway.address", '"a.example/path"', "is not a host with an optional port"),
    ("ingress.gateway.address", '"user@a.example:80"', "is not a host with an optional port"),
    ("storage.allowed_host_paths", '["data"]', '"data" is not an absolute path without ..; write one like'),
    ("storage.allowed_host_paths", '["/data/../etc"]', "is not an absolute path without .."),
    ("storage.volume_default_size", '"one"', '"one" is not a Kubernetes quantity of bytes; write one like "1Gi"'),
    ("store.type", '"postgresql"', 'PostgreSQL is not served by this version; set type = "sqlite" and a path'),
    ("renew_intent.min_interval_seconds", "0", "0 is below 1"),
    ("renew_intent.redis.consumer_concurrency", "0", "0 is below 1"),
]


@pytest.mark.parametrize(("key", "value", "told"), REFUSED)
def test_a_value_that_cannot_be_honoured_is_refused_with_key_reason_and_remedy(
    write: Write, key: str, value: str, told: str
) -> None:
    path = write(as_toml(key, value))
    (line,) = refusal(path)
    assert line.startswith(f"{path}: {in_file(key)}: ")
    assert told in line
    assert "; " in line


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("", "[runtime] type", 'is required; write type = "docker"'),
        ('[runtime]\ntype = ""\n', "[runtime] type", 'is required; write type = "docker"'),
        (f"{DOCKER}[dokcer]\na = 1\n", "[dokcer]", "there is no such section; did you mean [docker]?"),
        (f"{DOCKER}[zzz]\na = 1\n", "[zzz]", "there is no such section; remove it, or use one of runtime, server"),
        (f"docker = 1\n{DOCKER}", "[docker]", "must be a table, not a whole number"),
        (f"{DOCKER}[docker]\nnetwrok_mode = 'x'\n", "[docker] netwrok_mode", "no such key; did you mean network_mode?"),
        (f"{DOCKER}[docker]\nport_range_mim = 1\n", "[docker] port_range_mim", "did you mean port_range_min?"),
        (f"{DOCKER}[server]\nnetwork_mode = 'x'\n", "[server] network_mode", "no such key; it belongs in [docker]"),
        (f"{DOCKER}[proxy]\nresolve = 1\n", "[proxy] resolve", "there is no such key; did you mean resolve_internal?"),
        (f"api_key = 'x'\n{DOCKER}", "api_key", "stands outside of any section; it belongs in [server]"),
        (f"{DOCKER}[kubernetes]\nnamespace = 'x'\n", "[kubernetes]", 'is not used by runtime.type = "docker"; set'),
        (f"{DOCKER}[agent_sandbox]\nshutdown_policy = 'Retain'\n", "[agent_sandbox]", 'runtime.type = "docker"'),
        (
            f"{KUBERNETES}[agent_sandbox]\nshutdown_policy = 'Retain'\n",
            "[agent_sandbox]",
            'is not used by kubernetes.workload_provider = "pod"; set kubernetes.workload_provider = "agent-sandbox"',
        ),
        (
            f"{DOCKER}[ingress]\nmode = 'gateway'\ngateway.address = 'a.example'\ngateway.route.mode = 'uri'\n",
            "[ingress] mode",
            'a gateway needs runtime.type = "kubernetes"; set mode = "direct"',
        ),
        (f"{KUBERNETES}[ingress]\nmode = 'gateway'\n", "[ingress] gateway", 'is required by mode = "gateway"; set'),
        (
            f"{DOCKER}[renew_intent]\nredis.enabled = true\n",
            "[renew_intent.redis] dsn",
            "is required by redis.enabled;",
        ),
        (
            f"{KUBERNETES}[ingress]\ngateway.address = 'a.example'\ngateway.route.mode = 'uri'\n",
            "[ingress] gateway",
            'is not used by mode = "direct"; set mode = "gateway", or remove it',
        ),
        (
            f"{KUBERNETES}[ingress]\nmode = 'gateway'\ngateway.address = 'a.b'\ngateway.route.mode = 'wildcard'\n",
            "[ingress.gateway] address",
            'is not a wildcard domain, which route.mode = "wildcard" needs; write one like "*.sandboxes.example.com"',
        ),
    ],
)
def test_a_structure_that_makes_no_sense_is_refused_with_the_remedy(
    write: Write, text: str, place: str, told: str
) -> None:
    path = write(text)
    (line,) = refusal(path)
    assert line.startswith(f"{path}: {place}: ")
    assert told in line


@pytest.mark.parametrize(
    "address", ["a.example", "a.example:8443", "192.0.2.1:80", "192.0.2.1", "[2001:db8::1]:443", "2001:db8::1"]
)
def test_a_gateway_is_a_host_with_an_optional_port(write: Write, address: str) -> None:
    text = f"{KUBERNETES}[ingress]\nmode = 'gateway'\ngateway.address = '{address}'\ngateway.route.mode = 'header'\n"
    gateway = load(write(text), {}).ingress.gateway
    assert gateway is not None
    assert gateway.address == address


def test_every_problem_is_told_at_once(write: Write) -> None:
    lines = refusal(
        write(f"{DOCKER}[server]\nport = 0\nprot = 1\n[tenants]\n[docker]\nnetwork_mode = 3\n[zzz]\na = 1\n"),
        {"PENDING_FAILURE_TTL": "x"},
    )
    assert len(lines) == 6


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.text(st.characters(codec="ascii", categories=("Ll", "Lu", "Nd"), include_characters="_-"), min_size=1))
def test_an_unknown_key_is_never_accepted(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "unknown.toml"
    known = {key.split(".")[1] for key in [*KEYS, *FOREIGN_KEYS, "secure_runtime.oci_runtime_name"] if "." in key}
    assume(name not in known)
    for section in Settings.SECTIONS:
        path.write_text(f"{DOCKER if section != 'runtime' else ''}[{section}]\n{name} = 1\n")
        assert any(line.startswith(f"{path}: [{section}] {name}: there is no such key; ") for line in refusal(path))


# -- secrets

SECRET = "hunter2-hunter2-hunter2"


def test_secrets_are_in_no_repr(write: Write) -> None:
    text = f'{DOCKER}[server]\napi_key = "{SECRET}"\n[renew_intent]\nredis.dsn = "redis://:{SECRET}@r"\n'
    settings = load(write(text), {})
    assert settings.server.api_key is not None
    assert settings.server.api_key.get_secret_value() == SECRET
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_the_api_key_of_the_environment_wins_unless_it_is_empty(write: Write) -> None:
    path = write(f'{DOCKER}[server]\napi_key = "of-the-file"\n')
    variable = "OPENSANDBOX_SERVER_API_KEY"
    assert load(path, {variable: "of-the-environment"}).server.api_key == SecretStr("of-the-environment")
    assert load(path, {variable: ""}).server.api_key == SecretStr("of-the-file")
    assert load(write(DOCKER), {}).server.api_key is None


@pytest.mark.parametrize(
    "text",
    [
        f'[server]\napi_key = ["{SECRET}"]\n',
        f'[server]\napi_key = "{SECRET} "\n',
        f'[server]\napi_kye = "{SECRET}"\n',
        f'[server]\nport = "{SECRET}"\n',
        f'api_key = "{SECRET}"\n',
        f'[api_key]\nkey = "{SECRET}"\n',
        f'[renew_intent]\nredis.dsn = ["{SECRET}"]\n',
        f'[store]\ntype = "postgresql://u:{SECRET}@db"\n',
        f'[store]\ntype = "postgresql"\npostgresql.dsn = "postgresql://u:{SECRET}@db"\n',
        f'[egress.upstream_proxy]\nurl = "http://p"\nauthorization = "Basic {SECRET}"\n',
        f'[tenants]\nauth_token = "{SECRET}"\n',
        f'[server]\napi_key = "{SECRET}\n',
    ],
)
def test_no_message_tells_a_secret(write: Write, text: str) -> None:
    path = write(text + DOCKER)
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_message_tells_a_secret_of_the_environment(write: Write) -> None:
    (line,) = refusal(write(DOCKER), {"OPENSANDBOX_SERVER_API_KEY": f"{SECRET}\n"})
    assert line.startswith("environment: OPENSANDBOX_SERVER_API_KEY: ")
    assert SECRET not in line
