"""Whether a request is well-formed: all its violations at once, each with its field path. No I/O, no settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from opensandboxd_server.domain import names, quantities
from opensandboxd_server.domain.errors import FieldViolation, InvalidArgument
from opensandboxd_server.domain.model import (
    CreateRequest,
    ImageSource,
    NetworkPolicy,
    ResourceLimits,
    SandboxSpec,
)

MAX_METADATA = 64
MAX_PORTS = 64
MAX_EGRESS_RULES = 4096
MAX_ENTRYPOINT_ITEMS = 256
MAX_ENV_ENTRIES = 1024
MAX_TEXT_BYTES = 128 * 1024
"""Of an entry point's, and of an environment's text: the backend's labels have to carry both."""

MIN_NANO_CPUS = 10_000_000
MIN_MEMORY_BYTES = 16 * 1024 * 1024


def check_create(request: CreateRequest) -> None:
    """InvalidArgument that names all that is malformed in a CreateSandbox."""
    violations = [*_spec(request.spec), *metadata_violations(request.metadata), *_request_id(request.request_id)]
    if violations:
        raise InvalidArgument(violations)


def check_metadata(metadata: Mapping[str, str]) -> None:
    """InvalidArgument that names all that is malformed in a sandbox's metadata."""
    violations = list(metadata_violations(metadata))
    if violations:
        raise InvalidArgument(violations)


def check_id(id: str) -> None:
    """InvalidArgument when `id` is missing. What cannot be an id of ours is left to be not found."""
    if not id:
        raise InvalidArgument.of("id", "is required: the id that CreateSandbox returned")


def check_port(port: int, field: str = "port") -> None:
    """InvalidArgument when `port` is not a port's number."""
    problem = _port_problem(port)
    if problem:
        raise InvalidArgument.of(field, problem)


def metadata_violations(metadata: Mapping[str, str]) -> Iterator[FieldViolation]:
    if len(metadata) > MAX_METADATA:
        yield FieldViolation("metadata", f"has {len(metadata)} entries; at most {MAX_METADATA} are kept")
    for key, value in metadata.items():
        if problem := names.label_key_problem(key):
            yield FieldViolation(f"metadata[{key!r}]", f"key {problem}")
        if problem := names.label_value_problem(value):
            yield FieldViolation(f"metadata[{key!r}]", f"value {problem}")


def _request_id(request_id: str) -> Iterator[FieldViolation]:
    if not names.is_request_id(request_id):
        yield FieldViolation("request_id", "must be at most 128 printable ASCII characters; a UUID will do")


def _spec(spec: SandboxSpec) -> Iterator[FieldViolation]:
    if spec.source is None:
        yield FieldViolation("spec.image", "is required: say which image to run")
    if isinstance(spec.source, ImageSource):
        yield from _image(spec.source)
    yield from _entrypoint(spec.entrypoint)
    yield from _env(spec.env)
    yield from _resources(spec.resources)
    yield from _ports(spec.ports)
    if spec.network_policy:
        yield from _network_policy(spec.network_policy)
    if spec.platform and not (names.is_platform_part(spec.platform.os) and names.is_platform_part(spec.platform.arch)):
        yield FieldViolation("spec.platform", "needs an os and an arch such as linux and amd64")


def _image(image: ImageSource) -> Iterator[FieldViolation]:
    if not image.uri:
        yield FieldViolation("spec.image.uri", "is required: an image reference such as 'python:3.12-slim'")
    elif not names.is_image_reference(image.uri):
        yield FieldViolation(
            "spec.image.uri", f"{image.uri[:80]!r} is not an image reference such as 'python:3.12-slim'"
        )
    if image.auth and not (image.auth.username and image.auth.password):
        yield FieldViolation("spec.image.auth", "needs both username and password")


def _entrypoint(entrypoint: tuple[str, ...]) -> Iterator[FieldViolation]:
    if len(entrypoint) > MAX_ENTRYPOINT_ITEMS or _size(entrypoint) > MAX_TEXT_BYTES:
        yield FieldViolation(
            "spec.entrypoint", f"takes at most {MAX_ENTRYPOINT_ITEMS} items and {MAX_TEXT_BYTES} bytes"
        )
    if entrypoint and not entrypoint[0]:
        yield FieldViolation("spec.entrypoint[0]", "must name the program to run")
    for i, item in enumerate(entrypoint):
        if "\0" in item:
            yield FieldViolation(f"spec.entrypoint[{i}]", "must not contain NUL")


def _env(env: Mapping[str, str]) -> Iterator[FieldViolation]:
    if len(env) > MAX_ENV_ENTRIES or _size(env) + _size(env.values()) > MAX_TEXT_BYTES:
        yield FieldViolation("spec.env", f"takes at most {MAX_ENV_ENTRIES} entries and {MAX_TEXT_BYTES} bytes")
    for name, value in env.items():
        if not names.is_env_name(name):
            yield FieldViolation(f"spec.env[{name!r}]", "the name must match [A-Za-z_][A-Za-z0-9_]*")
        if "\0" in value:
            yield FieldViolation(f"spec.env[{name!r}]", "the value must not contain NUL")


def _resources(resources: ResourceLimits) -> Iterator[FieldViolation]:
    for name, parse, least, least_text in (
        ("cpu", quantities.nano_cpus, MIN_NANO_CPUS, "10m"),
        ("memory", quantities.memory_bytes, MIN_MEMORY_BYTES, "16Mi"),
        ("gpu", quantities.count, 1, "1"),
    ):
        text: str = getattr(resources, name)
        if not text:
            continue
        field = f"spec.resources.{name}"
        try:
            value = parse(text)
        except ValueError as exc:
            yield FieldViolation(field, str(exc))
            continue
        if value < least:
            yield FieldViolation(field, f"{text!r} is too small: at least {least_text!r}")
        elif value >= 2**63:
            yield FieldViolation(field, f"{text!r} is more than any machine has")


def _ports(ports: tuple[int, ...]) -> Iterator[FieldViolation]:
    if len(ports) > MAX_PORTS:
        yield FieldViolation("spec.ports", f"takes at most {MAX_PORTS} ports")
    for i, port in enumerate(ports):
        if problem := _port_problem(port):
            yield FieldViolation(f"spec.ports[{i}]", problem)
        elif port in ports[:i]:
            yield FieldViolation(f"spec.ports[{i}]", f"{port} is there twice")


def _network_policy(policy: NetworkPolicy) -> Iterator[FieldViolation]:
    if len(policy.egress) > MAX_EGRESS_RULES:
        yield FieldViolation("spec.network_policy.egress", f"takes at most {MAX_EGRESS_RULES} rules")
    for i, rule in enumerate(policy.egress):
        if rule.action is None:
            yield FieldViolation(f"spec.network_policy.egress[{i}].action", "is required: ALLOW or DENY")
        if not rule.target:
            yield FieldViolation(f"spec.network_policy.egress[{i}].target", "is required: a domain, IP or CIDR")


def _port_problem(port: int) -> str:
    return "" if 1 <= port <= 65535 else f"{port} is not a port: 1 to 65535"


def _size(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)
