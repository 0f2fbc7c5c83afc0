"""Every class of error: its code, and details that arrive whole however large the input was."""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain import errors
from opensandboxd_server.domain.errors import SandboxError
from opensandboxd_server.rpc.errors import CODES
from tests.harness import Server, serving
from tests.refusal import Refusal, drained, refused

Code = grpc.StatusCode
RECEIVED_AT_MOST = 8192
"""Bytes of trailing metadata that a gRPC peer takes by default."""

EACH: list[tuple[SandboxError, grpc.StatusCode, set[str]]] = [
    (errors.InvalidArgument.of("a.b", "is wrong"), Code.INVALID_ARGUMENT, {"BadRequest"}),
    (errors.Unauthenticated("API_KEY_INVALID", "no"), Code.UNAUTHENTICATED, set()),
    (errors.NotFound("sbx-1"), Code.NOT_FOUND, {"ResourceInfo"}),
    (errors.AlreadyExists("REQUEST_ID_REUSED", "again"), Code.ALREADY_EXISTS, set()),
    (errors.FailedPrecondition("INVALID_STATE", "no", subject="s"), Code.FAILED_PRECONDITION, {"PreconditionFailure"}),
    (errors.Aborted("ETAG_MISMATCH", "stale", etag='"1"'), Code.ABORTED, set()),
    (
        errors.ResourceExhausted("BACKEND_EXHAUSTED", "full", subject="memory", retry_after=1.5),
        Code.RESOURCE_EXHAUSTED,
        {"QuotaFailure", "RetryInfo"},
    ),
    (errors.Unsupported("UNSUPPORTED_BY_DRIVER", "no pause"), Code.UNIMPLEMENTED, set()),
    (errors.Unsupported("NOT_SERVED", "no", field="spec.pool"), Code.UNIMPLEMENTED, {"BadRequest"}),
    (errors.BackendUnavailable("away"), Code.UNAVAILABLE, {"RetryInfo"}),
    (errors.BackendError("boom"), Code.INTERNAL, set()),
]


@pytest.fixture
async def server() -> Any:
    async with serving() as server:
        yield server


async def create(server: Server, **fields: Any) -> pb.Sandbox:
    request = rpc.CreateSandboxRequest(spec=pb.SandboxSpec(image=pb.ImageSource(uri="img:1")), **fields)
    sandbox: pb.Sandbox = (await server.sandboxes.CreateSandbox(request)).sandbox
    return sandbox


async def failing_with(server: Server, error: Exception) -> Refusal:
    sandbox = await create(server)
    server.driver.inject_error("pause", error)
    return await refused(server.sandboxes.PauseSandbox(rpc.PauseSandboxRequest(id=sandbox.id)))


def test_every_class_of_error_is_in_the_tables() -> None:
    classes = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, SandboxError)}
    assert set(CODES) == classes - {SandboxError} == {type(error) for error, *_ in EACH}


@pytest.mark.parametrize(("error", "code", "details"), EACH, ids=lambda value: type(value).__name__)
async def test_an_error_arrives_with_its_code_and_details(
    server: Server, error: SandboxError, code: grpc.StatusCode, details: set[str]
) -> None:
    refusal = await failing_with(server, error)

    assert (refusal.code, refusal.reason, refusal.message) == (code, error.reason, error.message)
    assert set(refusal.details) == details | {"ErrorInfo"}
    assert dict(refusal.details["ErrorInfo"].metadata) == dict(error.details)


async def test_what_is_worth_a_retry_says_when(server: Server) -> None:
    for error in (
        errors.BackendUnavailable("away", retry_after=2.5),
        errors.ResourceExhausted("BACKEND_EXHAUSTED", "full", subject="memory", retry_after=2.5),
    ):
        delay = (await failing_with(server, error)).details["RetryInfo"].retry_delay
        assert (delay.seconds, delay.nanos) == (2, 500_000_000)


async def test_an_unforeseen_error_is_internal_and_tells_nothing_but_the_request_id(server: Server) -> None:
    refusal = await failing_with(server, RuntimeError("password=hunter2 at /srv/secret"))

    assert (refusal.code, refusal.reason) == (Code.INTERNAL, "INTERNAL")
    assert "hunter2" not in str(refusal)
    assert str(refusal.trailing["x-request-id"]) in refusal.message


async def test_a_subclass_of_an_error_has_its_code(server: Server) -> None:
    """Drivers refine errors: NameTaken is a BackendError."""

    class Refined(errors.BackendError):
        pass

    refusal = await failing_with(server, Refined("refined"))

    assert (refusal.code, refusal.reason, refusal.message) == (Code.INTERNAL, "BACKEND_ERROR", "refined")


async def test_errors_in_streams_carry_their_details_too(server: Server) -> None:
    sandbox = await create(server)
    server.driver.inject_error("logs", errors.ResourceExhausted("TOO_MANY_STREAMS", "too many", subject="logs"))

    refusal = await refused(drained(server.sandboxes.StreamLogs(rpc.StreamLogsRequest(id=sandbox.id))))

    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
    assert set(refusal.details) == {"ErrorInfo", "QuotaFailure", "RetryInfo"}


async def test_the_limit_of_sandboxes_is_told_as_a_quota() -> None:
    async with serving(server={"max_sandboxes": 2}) as server:
        one, _ = await create(server), await create(server)

        refusal = await refused(create(server))
        assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "SANDBOX_LIMIT")
        assert refusal.details["QuotaFailure"].violations[0].subject == "max_sandboxes"
        assert len(server.driver.backend.sandboxes) == 2
        await server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=one.id))
        assert (await create(server)).id


# Huge inputs: what is echoed is bounded, so that the status arrives as itself


@pytest.mark.parametrize("letter", ["x", "\n", "ü", "漢", "💥", "\x7f", "%"])
@pytest.mark.parametrize("verb", ["GetSandbox", "PauseSandbox", "DeleteSandbox"])
async def test_an_id_of_any_length_is_not_found(server: Server, verb: str, letter: str) -> None:
    request = getattr(rpc, f"{verb}Request")(id=letter * 100_000)

    refusal = await refused(getattr(server.sandboxes, verb)(request))

    assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "SANDBOX_NOT_FOUND")
    assert weight(refusal) < RECEIVED_AT_MOST


@pytest.mark.parametrize("letter", ["x", "ü", "💥"])
async def test_any_number_of_violations_arrives_as_invalid_argument(server: Server, letter: str) -> None:
    spec = pb.SandboxSpec(image=pb.ImageSource(uri=letter * 10_000 + "!"), ports=[0] * 5000)
    spec.env.update({f"{letter * 1000}-{n}": letter for n in range(500)})
    spec.resources.cpu = spec.resources.memory = spec.resources.gpu = letter * 10_000
    request = rpc.CreateSandboxRequest(
        spec=spec, metadata={f"{letter * 1000}-{n}": letter * 1000 for n in range(200)}, request_id=letter * 10_000
    )

    refusal = await refused(server.sandboxes.CreateSandbox(request))

    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    assert "spec.image.uri" in refusal.fields
    assert any("more" in description for description in refusal.fields.values())
    assert weight(refusal) < RECEIVED_AT_MOST


async def test_a_driver_that_says_too_much_is_cut_short(server: Server) -> None:
    for error in (
        errors.BackendError("💥" * 100_000, detail="💥" * 100_000),
        errors.FailedPrecondition("START_FAILED", "💥" * 100_000, subject="💥" * 100_000, more="漢" * 9000),
    ):
        refusal = await failing_with(server, error)
        assert refusal.reason == error.reason
        assert weight(refusal) < RECEIVED_AT_MOST


@pytest.mark.parametrize("field", ["update_mask", "request_id", "resource_version", "etag"])
async def test_other_long_texts_are_refused_briefly(server: Server, field: str) -> None:
    sandbox, long = await create(server), "💥" * 100_000
    update = rpc.UpdateSandboxRequest(id=sandbox.id)
    update.update_mask.paths.append(long)
    watch = rpc.WatchSandboxesRequest(resource_version=long)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "update_mask": lambda: server.sandboxes.UpdateSandbox(update),
        "request_id": lambda: create(server, request_id=long),
        "resource_version": lambda: drained(server.sandboxes.WatchSandboxes(watch)),
        "etag": lambda: server.sandboxes.DeleteSandbox(rpc.DeleteSandboxRequest(id=sandbox.id, etag=long)),
    }

    refusal = await refused(calls[field]())

    assert refusal.code in (Code.INVALID_ARGUMENT, Code.ABORTED)
    assert weight(refusal) < RECEIVED_AT_MOST


async def test_a_message_larger_than_the_limit_is_refused_and_the_server_lives_on(server: Server) -> None:
    request = rpc.CreateSandboxRequest(spec=pb.SandboxSpec(env={"A": "x" * (5 * 1024 * 1024)}))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.sandboxes.CreateSandbox(request)

    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert (await create(server)).id


async def test_bytes_that_are_no_message_are_refused_and_the_server_lives_on(server: Server) -> None:
    call: Any = server.channel.unary_unary("/opensandboxd.v1.SandboxService/CreateSandbox")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff\xff")

    assert caught.value.code() in (Code.INTERNAL, Code.INVALID_ARGUMENT, Code.UNKNOWN)  # gRPC decides, before us
    assert (await create(server)).id


async def test_the_largest_sandboxes_allowed_are_created_and_listed(server: Server) -> None:
    text = "x" * (127 * 1024)
    for _ in range(20):
        spec = pb.SandboxSpec(image=pb.ImageSource(uri="img:1"), entrypoint=["x", text], env={"A": text})
        await server.sandboxes.CreateSandbox(rpc.CreateSandboxRequest(spec=spec))

    listed, token = 0, ""
    while True:
        page = await server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest(page_size=1000, page_token=token))
        listed, token = listed + len(page.sandboxes), page.next_page_token
        if not token:
            break
    assert listed == 20
    watch = server.sandboxes.WatchSandboxes(rpc.WatchSandboxesRequest())
    while not (await watch.read()).bookmark.snapshot_end:
        pass
    watch.cancel()


def weight(refusal: Refusal) -> int:
    """Bytes of the trailing metadata as HTTP/2 counts them: names, values and 32 for each entry (RFC 9113, 6.5.2)."""
    message = urllib.parse.quote(refusal.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    entries = {"grpc-status": "13", "grpc-message": message}
    for key, value in refusal.trailing.items():
        entries[key] = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    return sum(len(key) + len(value) + 32 for key, value in entries.items())
