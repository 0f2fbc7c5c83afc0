"""What a wrong value in every field of every request gets: the code, the reason and the field's path; and nothing
is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from opensandboxd.v1 import runtime_service_pb2, sandbox_service_pb2
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.store.memory import MemoryStore
from tests.harness import Server, serving
from tests.refusal import Refusal, drained, refused

INVALID, UNIMPLEMENTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED
PRECONDITION, NOT_FOUND, ABORTED = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
)

EXISTING = "{existing}"
"""Stands for the id of a sandbox that exists."""

IMAGE = {"uri": "img:1"}
LARGE = "x" * (128 * 1024 + 1)
RULE = {"action": "NETWORK_ACTION_ALLOW", "target": "pypi.org"}
FAR = "9999-12-31T23:59:59Z"


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": {"image": IMAGE, **fields}}


def image(**fields: Any) -> dict[str, Any]:
    return {"spec": {"image": {**IMAGE, **fields}}}


def create(**fields: Any) -> dict[str, Any]:
    return {**spec(), **fields}


# request, its body, and the path of the field that must be named
INVALID_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("CreateSandbox", {}, "spec.image"),
    ("CreateSandbox", {"spec": {}}, "spec.image"),
    *(
        ("CreateSandbox", image(uri=uri), "spec.image.uri")
        for uri in (
            "", "img/UPPER", "two words", "x" * 513, "img:tag:tag", "img@sha256:12", "https://a.b/c", "img:\n", "-img",
            "img\u0000", "ïmg", "a//b", "img:" + "t" * 129, "user:pass@host/img",
        )
    ),
    ("CreateSandbox", image(auth={}), "spec.image.auth"),
    ("CreateSandbox", image(auth={"password": "p"}), "spec.image.auth"),
    ("CreateSandbox", image(auth={"username": "u"}), "spec.image.auth"),
    ("CreateSandbox", spec(entrypoint=["x"] * 257), "spec.entrypoint"),
    ("CreateSandbox", spec(entrypoint=["x", LARGE]), "spec.entrypoint"),
    ("CreateSandbox", spec(entrypoint=[""]), "spec.entrypoint[0]"),
    ("CreateSandbox", spec(entrypoint=["a", "b\0c"]), "spec.entrypoint[1]"),
    *(
        ("CreateSandbox", spec(env={name: "x"}), f"spec.env[{name!r}]")
        for name in ("", "1A", "A=B", "A B", "Ä", "A\n", "A\0", "A-B")
    ),
    ("CreateSandbox", spec(env={"A": "x\0y"}), "spec.env['A']"),
    ("CreateSandbox", spec(env={f"A{n}": "" for n in range(1025)}), "spec.env"),
    ("CreateSandbox", spec(env={"A": LARGE}), "spec.env"),
    ("CreateSandbox", spec(env={"A": "ü" * (64 * 1024)}), "spec.env"),
    *(
        ("CreateSandbox", spec(resources={"cpu": cpu}), "spec.resources.cpu")
        for cpu in ("x", "-1", "9m", "0", "65", "1e30", "1e99", "999999999999999999E", "٥", " 1", "1 ", "0x1", "NaN",
                    "Infinity", "1_0", "m", "1mm", "1e", "1" * 100, "1\n")
    ),
    *(
        ("CreateSandbox", spec(resources={"memory": memory}), "spec.resources.memory")
        for memory in ("x", "1Mi", "16777215", "16MB", "16mi", "8Ei", "1e30", "999999999999999999Ei", "-16Mi", "0")
    ),
    *(
        ("CreateSandbox", spec(resources={"gpu": gpu}), "spec.resources.gpu")
        for gpu in ("x", "0", "1.5", "500m", "-1", "1e30", "all")
    ),
    ("CreateSandbox", spec(networkPolicy={"defaultAction": 9}), "spec.network_policy.default_action"),
    *(
        (
            "CreateSandbox",
            spec(networkPolicy={"egress": [RULE, {"action": action, "target": "a.b"}]}),
            "spec.network_policy.egress[1].action",
        )
        for action in (0, 9, -1)
    ),
    (
        "CreateSandbox",
        spec(networkPolicy={"egress": [RULE, {"action": "NETWORK_ACTION_DENY"}]}),
        "spec.network_policy.egress[1].target",
    ),
    ("CreateSandbox", spec(networkPolicy={"egress": [RULE] * 4097}), "spec.network_policy.egress"),
    *(
        ("CreateSandbox", spec(platform=platform), "spec.platform")
        for platform in ({}, {"os": "linux"}, {"arch": "amd64"})
    ),
    ("CreateSandbox", spec(ports=[80, 0]), "spec.ports[1]"),
    ("CreateSandbox", spec(ports=[65536]), "spec.ports[0]"),
    ("CreateSandbox", spec(ports=[2**32 - 1]), "spec.ports[0]"),
    ("CreateSandbox", spec(ports=[80, 81, 80]), "spec.ports[2]"),
    ("CreateSandbox", spec(ports=list(range(1, 66))), "spec.ports"),
    *(
        ("CreateSandbox", create(metadata={key: "v"}), f"metadata[{key!r}]")
        for key in ("", "-a", "a-", "a b", "ä", "a" * 64, "/a", "a/", "A_b/c", "a/b/c", "opensandbox.io/x",
                    "sub.opensandbox.io/x", "a..b/c", "x" * 254 + "/a", "a\n")
    ),
    *(
        ("CreateSandbox", create(metadata={"k": value}), "metadata['k']")
        for value in ("-a", "a b", "ä", "a" * 64, "a/b", "a\n")
    ),
    ("CreateSandbox", create(metadata={f"k{n}": "" for n in range(65)}), "metadata"),
    *(("CreateSandbox", create(ttl=ttl), "ttl") for ttl in ("0s", "59.999999s", "-60s", "-315576000000s")),
    *(
        ("CreateSandbox", create(expireTime=time), "expire_time")
        for time in ("1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z")
    ),
    *(("CreateSandbox", create(requestId=id), "request_id") for id in ("x" * 129, "ü", "a\nb", "a\0", "\x7f")),
    ("CreateSandbox", create(returnWhen=99), "return_when"),
    *(
        (f"{verb}Sandbox", {"id": ""}, "id")
        for verb in ("Get", "Update", "Delete", "Pause", "Resume", "Wait")
    ),
    ("RenewSandbox", {"ttl": "60s"}, "id"),
    ("GetEndpoint", {"port": 80}, "id"),
    ("StreamLogs", {}, "id"),
    ("ListSandboxes", {"pageSize": -1}, "page_size"),
    ("ListSandboxes", {"pageToken": "x"}, "page_token"),
    *(
        (request, {"states": ["SANDBOX_STATE_RUNNING", state], **rest}, "states[1]")
        for request, rest in (("ListSandboxes", {}), ("WaitSandbox", {"id": EXISTING}), ("WatchSandboxes", {}))
        for state in (0, 99, -1)
    ),
    ("UpdateSandbox", {"id": EXISTING, "metadata": {"-": "v"}}, "metadata['-']"),
    ("UpdateSandbox", {"id": EXISTING, "metadata": {"opensandbox.io/id": "v"}}, "metadata['opensandbox.io/id']"),
    ("UpdateSandbox", {"id": EXISTING, "metadata": {f"k{n}": "" for n in range(65)}}, "metadata"),
    *(("RenewSandbox", {"id": EXISTING, "ttl": ttl}, "ttl") for ttl in ("0s", "59s", "-1s")),
    ("RenewSandbox", {"id": EXISTING, "expireTime": "1970-01-01T00:00:00Z"}, "expire_time"),
    ("RenewSandbox", {"id": EXISTING}, "ttl"),
    ("WaitSandbox", {"id": EXISTING, "timeout": "-1s"}, "timeout"),
    ("WatchSandboxes", {"resourceVersion": "x"}, "resource_version"),
    ("GetEndpoint", {"id": EXISTING, "port": 0}, "port"),
    ("GetEndpoint", {"id": EXISTING, "port": 65536}, "port"),
    *(("StreamLogs", {"id": EXISTING, "streams": [1, stream]}, "streams[1]") for stream in (0, 3, -1)),
]  # fmt: skip

# what is well-formed, and not to be had: request, body, code, reason, the field or ""
REFUSED: list[tuple[str, dict[str, Any], grpc.StatusCode, str, str]] = [
    ("CreateSandbox", {"spec": {"snapshot": {"id": "s"}}}, UNIMPLEMENTED, "NOT_SERVED", "spec.snapshot"),
    ("CreateSandbox", {"spec": {"pool": {"name": "p"}}}, UNIMPLEMENTED, "NOT_SERVED", "spec.pool"),
    ("CreateSandbox", spec(networkPolicy={}), UNIMPLEMENTED, "NOT_SERVED", "spec.network_policy"),
    ("CreateSandbox", spec(networkPolicy={"egress": [RULE]}), UNIMPLEMENTED, "NOT_SERVED", "spec.network_policy"),
    *(
        ("CreateSandbox", spec(volumes=[volume]), UNIMPLEMENTED, "NOT_SERVED", "spec.volumes")
        for volume in (
            {},
            {"name": "v", "hostPath": {"path": "/srv"}, "mountPath": "/mnt"},
            {"name": "v", "named": {"name": "n"}, "mountPath": "/mnt", "readOnly": True, "subPath": "s"},
        )
    ),
    ("CreateSandbox", spec(resources={"gpu": "1"}), INVALID, "UNSUPPORTED_BY_DRIVER", "spec.resources.gpu"),
    ("CreateSandbox", spec(requireSecureRuntime=True), PRECONDITION, "SECURE_RUNTIME_REQUIRED", ""),
    *(
        (request, {"id": "sbx-00000000000000000000", **rest}, NOT_FOUND, "SANDBOX_NOT_FOUND", "")
        for request, rest in (
            ("GetSandbox", {}), ("UpdateSandbox", {}), ("DeleteSandbox", {}), ("DeleteSandbox", {"etag": "x"}),
            ("PauseSandbox", {}), ("ResumeSandbox", {}), ("RenewSandbox", {"ttl": "60s"}), ("WaitSandbox", {}),
            ("GetEndpoint", {"port": 80}), ("StreamLogs", {}),
        )
    ),
    *(
        (request, {"id": EXISTING, "etag": "stale", **rest}, ABORTED, "ETAG_MISMATCH", "")
        for request, rest in (("UpdateSandbox", {}), ("DeleteSandbox", {}), ("DeleteSandbox", {"allowMissing": True}),
                              ("RenewSandbox", {"ttl": "60s"}))
    ),
    ("WatchSandboxes", {"resourceVersion": "0-0"}, PRECONDITION, "RESOURCE_VERSION_EXPIRED", ""),
    ("GetEndpoint", {"id": EXISTING, "port": 80}, PRECONDITION, "PORT_NOT_PUBLISHED", ""),
]  # fmt: skip

# fields of which every value is right, and why
FREE = {
    "CreateSandboxRequest.validate_only": "a choice",
    "CreateSandboxRequest.spec.image.auth.username": "any text; that it is there is tested",
    "DeleteSandboxRequest.allow_missing": "a choice",
    "GetEndpointRequest.internal": "a choice",
    "ListSandboxesRequest.metadata": "a filter that matches nothing finds nothing",
    "StreamLogsRequest.follow": "a choice",
    "StreamLogsRequest.tail_lines": "any count",
    "WatchSandboxesRequest.ids": "a filter that matches nothing finds nothing",
    "WatchSandboxesRequest.metadata": "a filter that matches nothing finds nothing",
}

# values that JSON cannot say: request, the path of the field, seconds, nanos
BAD_TIMES: list[tuple[str, str, int, int]] = [
    *(
        (request, field, seconds, nanos)
        for request, fields in (
            ("CreateSandbox", ("ttl", "expire_time")),
            ("RenewSandbox", ("ttl", "expire_time")),
            ("WaitSandbox", ("timeout",)),
            ("StreamLogs", ("since_time",)),
        )
        for field in fields
        for seconds, nanos in ((2**63 - 1, 0), (-(2**63), 0), (3600, -1), (3600, 2_000_000_000), (10**12, 0))
    ),
]


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def server(store: MemoryStore) -> Any:
    async with serving(store=store) as server:
        yield server


def message_of(request: str) -> Message:
    message: Message = getattr(sandbox_service_pb2, f"{request}Request")()
    return message


async def call(server: Server, request: str, message: Message) -> Refusal:
    """Calls and is refused; the server has then just what it had before."""
    existing = (await server.sandboxes.CreateSandbox(ParseDict(spec(), rpc.CreateSandboxRequest()))).sandbox
    if getattr(message, "id", "") == EXISTING:
        message.id = existing.id  # type: ignore[attr-defined]
    before = await snapshot(server)
    method = getattr(server.sandboxes, request)
    refusal = await refused(
        drained(method(message)) if request in ("WatchSandboxes", "StreamLogs") else method(message)
    )
    assert await snapshot(server) == before
    return refusal


async def snapshot(server: Server) -> list[object]:
    """All that anyone could find: in listings, in the backend, in the store."""
    listed = await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest())
    store: MemoryStore = server.app._store  # type: ignore[assignment]
    return [
        listed,
        dict(server.driver.backend.sandboxes),
        await store.load_records(),
        await store.load_requests(),
        await store.load_failures(),
    ]


@pytest.mark.parametrize(("request_name", "body", "field"), INVALID_FIELDS)
async def test_a_malformed_field_is_named(server: Server, request_name: str, body: dict[str, Any], field: str) -> None:
    refusal = await call(server, request_name, ParseDict(body, message_of(request_name)))

    assert (refusal.code, refusal.reason) == (INVALID, "INVALID_FIELD")
    [(named, description)] = refusal.fields.items()
    assert named == field or (len(field) > 120 and field.startswith(named.removesuffix("…")))
    assert description in refusal.message


@pytest.mark.parametrize(("request_name", "field", "seconds", "nanos"), BAD_TIMES)
async def test_a_time_that_is_none_is_named(
    server: Server, request_name: str, field: str, seconds: int, nanos: int
) -> None:
    message: Any = ParseDict(spec() if request_name == "CreateSandbox" else {"id": EXISTING}, message_of(request_name))
    getattr(message, field).seconds, getattr(message, field).nanos = seconds, nanos

    refusal = await call(server, request_name, message)

    assert (refusal.code, refusal.reason, [*refusal.fields]) == (INVALID, "INVALID_FIELD", [field])


@pytest.mark.parametrize("path", ["id", "spec", "metadata.", "metadata.a.b", "status", "", "metadata.`", "expire_time"])
async def test_what_cannot_be_updated_is_named(server: Server, path: str) -> None:
    message = rpc.UpdateSandboxRequest(id=EXISTING)
    message.update_mask.paths.extend(["metadata.ok", path])

    refusal = await call(server, "UpdateSandbox", message)

    assert (refusal.reason, [*refusal.fields]) == ("INVALID_FIELD", ["update_mask.paths[1]"])


@pytest.mark.parametrize(("request_name", "body", "code", "reason", "field"), REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name(
    server: Server, request_name: str, body: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    refusal = await call(server, request_name, ParseDict(body, message_of(request_name)))

    assert (refusal.code, refusal.reason) == (code, reason)
    assert [*refusal.fields] == ([field] if field else [])


async def test_all_malformed_fields_are_named_at_once(server: Server) -> None:
    body = {
        "spec": {"image": {"uri": "X"}, "resources": {"cpu": "x", "memory": "y"}, "ports": [0]},
        "metadata": {"-": "v"},
        "requestId": "ü",
    }

    refusal = await call(server, "CreateSandbox", ParseDict(body, message_of("CreateSandbox")))

    assert set(refusal.fields) == {
        "spec.image.uri", "spec.resources.cpu", "spec.resources.memory", "spec.ports[0]", "metadata['-']", "request_id",
    }  # fmt: skip


@pytest.mark.parametrize("request_name", ["CreateSandbox", "RenewSandbox"])
async def test_an_expiry_beyond_the_servers_maximum_is_named(request_name: str) -> None:
    async with serving(store=MemoryStore(), server={"max_sandbox_timeout_seconds": 300}) as server:
        for field, value in (("ttl", "301s"), ("expireTime", FAR)):
            body = {field: value} | (spec() if request_name == "CreateSandbox" else {"id": EXISTING})
            refusal = await call(server, request_name, ParseDict(body, message_of(request_name)))
            assert [*refusal.fields] == [{"ttl": "ttl", "expireTime": "expire_time"}[field]]


async def test_an_expiry_at_the_end_of_time_is_kept(server: Server) -> None:
    request = ParseDict(create(expireTime=FAR), rpc.CreateSandboxRequest())

    created = (await server.sandboxes.CreateSandbox(request)).sandbox

    assert created.expire_time.ToDatetime(UTC) == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_every_field_of_every_request_is_in_a_table() -> None:
    named = {path for request, body, path in INVALID_FIELDS for path in paths_of(request, body)}
    named |= {path for request, body, *_ in REFUSED for path in paths_of(request, body)}
    named |= {f"{request}Request.{field}" for request, field, _, _ in BAD_TIMES}
    named |= {"UpdateSandboxRequest.update_mask.paths"}

    every = set()
    for module in (sandbox_service_pb2, runtime_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                every |= {f"{method.input_type.name}.{path}" for path in leaves(method.input_type)}

    assert every - named - set(FREE) == set()


def leaves(message: Descriptor, prefix: str = "") -> Iterator[str]:
    for field in message.fields:
        path = prefix + field.name
        below: Descriptor | None = field.message_type
        if below is None or below.GetOptions().map_entry or below.file.package == "google.protobuf":
            yield path + (".paths" if below is not None and below.name == "FieldMask" else "")
        else:
            yield from leaves(below, f"{path}.")


def paths_of(request: str, body: dict[str, Any]) -> Iterator[str]:
    """The leaf paths that a body of the tables sets."""
    message = ParseDict(body, message_of(request))
    yield from (f"{message.DESCRIPTOR.name}.{path}" for path in set_leaves(message))


def set_leaves(message: Message, prefix: str = "") -> Iterator[str]:
    """An empty value of a required field counts as set: that it is missing is what such a row tests."""
    for field in message.DESCRIPTOR.fields:
        path = prefix + field.name
        value = getattr(message, field.name)
        below = field.message_type
        if below is None or below.GetOptions().map_entry:
            if value or path in ("id", "port", "spec.image.uri"):
                yield path
        elif below.file.package == "google.protobuf":
            if message.HasField(field.name):
                yield path
        elif field.is_repeated:
            for item in value:
                yield from set_leaves(item, f"{path}.")
        elif message.HasField(field.name):
            yield from set_leaves(value, f"{path}.")
