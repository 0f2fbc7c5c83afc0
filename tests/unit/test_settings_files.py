"""The files that people have: OpenSandbox's own, the examples of init-config, and what the reference says of them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from opensandboxd_server.settings import RuntimeSettings, Settings, SettingsError, load
from opensandboxd_server.settings.opensandbox import FOREIGN_KEYS, FOREIGN_VARIABLES, Ignored, Refused
from opensandboxd_server.settings.problems import in_file
from tests.unit.test_settings import DOCKER, KEYS, SECRET, Write, refusal, writer

OPENSANDBOX = Path(__file__).parent / "data" / "opensandbox-1.1.1"
REFERENCE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
EXAMPLES = {
    name: resources.files("opensandboxd_server").joinpath("examples", f"{name}.toml").read_text()
    for name in ("docker", "k8s")
}
OF_THE_OTHER = {
    "docker": r"kubernetes\.|agent_sandbox\.|ingress\.gateway|secure_runtime\.k8s",
    "k8s": r"docker\.|secure_runtime\.docker",
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)


def leaves(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def uncommented(text: str) -> dict[str, Any]:
    """The file with every key that is shown behind "# " set too."""
    return tomllib.loads(re.sub(r"^# (?=[a-z0-9_.]+ = )", "", text, flags=re.MULTILINE))


def section_of_reference(section: str) -> str:
    return REFERENCE.partition(f"### [{section}]\n")[2].partition("\n### ")[0]


def test_opensandbox_s_docker_file_loads_as_it_is() -> None:
    settings = load(OPENSANDBOX / "docker.toml", {})
    assert settings.runtime.execd_image == "opensandbox/execd:v1.1.0"
    assert settings.server.host == "127.0.0.1"
    assert settings.server.max_sandbox_timeout_seconds == 86400
    assert settings.egress.mode == "dns"
    assert settings.docker.seccomp_json == ""
    assert settings.ignored_keys == (
        "docker.port_range_max",
        "docker.port_range_min",
        "egress.readiness_timeout_seconds",
        "proxy.resolve_internal",
    )


def test_opensandbox_s_kubernetes_file_loads_as_it_is() -> None:
    settings = load(OPENSANDBOX / "k8s.toml", {})
    assert settings.runtime.type == "kubernetes"
    assert settings.kubernetes.namespace == "opensandbox"
    assert settings.kubernetes.workload_provider == "batchsandbox"
    assert settings.ignored_keys == (
        "kubernetes.informer_resync_seconds",
        "kubernetes.informer_watch_timeout_seconds",
        "proxy.resolve_internal",
    )


def test_opensandbox_s_skeleton_lacks_nothing_but_the_runtime() -> None:
    path = OPENSANDBOX / "skeleton.toml"
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert str(caught.value) == f'{path}: [runtime] type: is required; write type = "docker"'


@pytest.mark.parametrize("runtime", ["docker", "kubernetes"])
def test_opensandbox_s_skeleton_loads_with_a_runtime(tmp_path: Path, runtime: str) -> None:
    skeleton = (OPENSANDBOX / "skeleton.toml").read_text()
    assert "[runtime]\n# Active sandbox runtime implementation.\ntype = " in skeleton
    path = tmp_path / "sandbox.toml"
    path.write_text(skeleton.replace('implementation.\ntype = ""', f'implementation.\ntype = "{runtime}"'))
    settings = load(path, {})
    expected = Settings(runtime=RuntimeSettings(type=runtime))  # type: ignore[arg-type]
    docker = settings.docker.model_copy(update={"drop_capabilities": expected.docker.drop_capabilities})
    assert settings.docker.drop_capabilities == ()
    assert settings.model_copy(update={"docker": docker}) == expected


def test_every_key_of_opensandbox_is_known() -> None:
    for key in leaves(tomllib.loads((OPENSANDBOX / "skeleton.toml").read_text())):
        assert key in KEYS or any(key == path or key.startswith(f"{path}.") for path in FOREIGN_KEYS), key


@pytest.mark.parametrize("key", [key for key, what in FOREIGN_KEYS.items() if isinstance(what, Ignored)])
def test_a_key_that_means_nothing_here_is_named_and_ignored(write: Write, key: str) -> None:
    section, _, name = key.rpartition(".")
    value = "{ dsn = 'x' }" if key == "store.postgresql" else "1"
    table = "" if section == "runtime" else f"[{section}]\n"
    settings = load(write(f"{DOCKER}{table}{name} = {value}\n"), {})
    assert settings.ignored_keys == ("store.postgresql.dsn" if key == "store.postgresql" else key,)
    assert settings == load(write(DOCKER), {}).model_copy(update={"ignored_keys": settings.ignored_keys})


@pytest.mark.parametrize("key", [key for key, what in FOREIGN_KEYS.items() if isinstance(what, Refused)])
def test_a_key_that_would_protect_is_refused_with_the_reason(write: Write, key: str) -> None:
    refused = FOREIGN_KEYS[key]
    assert isinstance(refused, Refused)
    section, _, name = key.rpartition(".")
    table = f"[{section}]\n" if section else ""
    path = write(f"{table}{name} = {{ a = 1 }}\n{DOCKER}" if section else f"{name} = {{ }}\n{DOCKER}")
    assert refusal(path) == [f"{path}: {in_file(key)}: {refused.why}; {refused.remedy}"]


@pytest.mark.parametrize(
    "text",
    [
        "[docker]\nsandbox_env = {}\nsandbox_binds = []\n",
        "[kubernetes]\nread_qps = 0.0\nwrite_burst = 0\ninsecure_skip_tls_verify = false\n",
        '[ingress.secure_access]\nactive_key = ""\nkeys = []\n',
        '[egress.upstream_proxy]\nurl = ""\n',
    ],
)
def test_a_refused_key_that_asks_for_nothing_is_accepted(write: Write, text: str) -> None:
    assert load(write(DOCKER + text), {}) == load(write(DOCKER), {})


@pytest.mark.parametrize("name", FOREIGN_VARIABLES)
def test_a_variable_that_would_protect_is_refused(write: Write, name: str) -> None:
    (line,) = refusal(write(DOCKER), {name: SECRET})
    assert line.startswith(f"environment: {name}: signs the routes")
    assert SECRET not in line


@pytest.mark.parametrize(("name", "runtime"), [("docker", "docker"), ("k8s", "kubernetes")])
def test_an_example_shows_the_defaults(tmp_path: Path, name: str, runtime: str) -> None:
    path = tmp_path / "sandbox.toml"
    path.write_text(EXAMPLES[name])
    assert load(path, {}) == Settings(runtime=RuntimeSettings(type=runtime))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_shows_every_key_of_its_runtime(name: str) -> None:
    expected = {key for key in KEYS if not re.match(OF_THE_OTHER[name], key)}
    assert set(leaves(uncommented(EXAMPLES[name]))) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_explains_every_key(name: str) -> None:
    explained = False
    for line in EXAMPLES[name].splitlines():
        if re.match(r"(# )?[a-z0-9_.]+ = ", line):
            assert explained, line
        elif line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = False


@pytest.mark.parametrize("key", KEYS)
def test_the_reference_has_every_key(key: str) -> None:
    section, _, name = key.partition(".")
    assert f"`{name}`" in section_of_reference(section)


def test_the_reference_has_every_foreign_key_and_its_reason() -> None:
    for key, what in FOREIGN_KEYS.items():
        row = f"| `{in_file(key)}` | {what.why} |"
        assert (row if isinstance(what, Ignored) else f"{row} {what.remedy} |") in REFERENCE
    for name, refused in FOREIGN_VARIABLES.items():
        assert f"| `{name}` | {refused.why} | {refused.remedy} |" in REFERENCE


@pytest.mark.parametrize(
    "line",
    re.findall(r"^opensandboxd: sandbox\.toml: (.*)$", REFERENCE, re.MULTILINE),
)
def test_the_reference_quotes_what_is_really_said(tmp_path: Path, line: str) -> None:
    path = tmp_path / "sandbox.toml"
    path.write_text('[server]\nport = 99999\n[docker]\nnetwrok_mode = "x"\n[runtime]\ntype = "docker"\n')
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert f"{path}: {line}" in str(caught.value).splitlines()
