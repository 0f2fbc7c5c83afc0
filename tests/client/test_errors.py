"""Errors: from google.rpc.Status in the trailing metadata to the exception tree."""

from __future__ import annotations

import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo

import opensandboxd
from opensandboxd import AsyncClient, FieldViolation, Resource, SandboxError
from opensandboxd import errors as errors_module
from opensandboxd.errors import ERRORS, NotReachedError
from opensandboxd.v1.sandbox_pb2 import Sandbox
from tests.client.scripted import Fault, ScriptedServer

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
async def test_every_status_code_has_its_class(
    server: ScriptedServer, client: AsyncClient, code: grpc.StatusCode
) -> None:
    attempts = 4 if code is grpc.StatusCode.UNAVAILABLE else 1
    for _ in range(attempts):
        server.expect("GetSandbox", Fault(code, "no"))
    with pytest.raises(SandboxError) as raised:
        await client.get("sbx-1")
    assert type(raised.value) is ERRORS.get(code, SandboxError)
    assert raised.value.code is code


async def test_an_error_carries_every_detail_the_server_sent(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect(
        "CreateSandbox",
        Fault(
            grpc.StatusCode.INVALID_ARGUMENT,
            "spec.resources.cpu: too small",
            details=[
                ErrorInfo(domain="opensandbox.io", reason="INVALID_FIELD", metadata={"minimum": "10m"}),
                BadRequest(
                    field_violations=[BadRequest.FieldViolation(field="spec.resources.cpu", description="too small")]
                ),
                RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
                ResourceInfo(resource_type="sandbox", resource_name="sbx-1"),
            ],
            trailing=[("x-request-id", "r-42")],
        ),
    )
    with pytest.raises(opensandboxd.InvalidArgumentError) as raised:
        await client.create("img", cpu="1m")
    error = raised.value
    assert error.message == "spec.resources.cpu: too small"
    assert error.reason == "INVALID_FIELD"
    assert error.metadata == {"minimum": "10m"}
    assert error.field_violations == (FieldViolation("spec.resources.cpu", "too small"),)
    assert error.retry_after == 1.5
    assert error.resource == Resource("sandbox", "sbx-1")
    assert error.request_id == "r-42"
    assert str(error) == "spec.resources.cpu: too small (INVALID_FIELD, request r-42)"
    assert isinstance(error.__cause__, grpc.aio.AioRpcError)


async def test_an_error_without_details_still_has_code_and_message(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("GetSandbox", Fault(grpc.StatusCode.NOT_FOUND, "gone"))
    with pytest.raises(opensandboxd.NotFoundError) as raised:
        await client.get("sbx-1")
    error = raised.value
    assert (error.message, error.reason, error.field_violations) == ("gone", "", ())
    assert (error.retry_after, error.resource, error.request_id) == (None, None, "")


async def test_details_that_cannot_be_read_do_not_hide_the_error(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect(
        "GetSandbox",
        Fault(grpc.StatusCode.NOT_FOUND, "gone", trailing=[("grpc-status-details-bin", b"\xff\xff\xff")]),
    )
    with pytest.raises(opensandboxd.NotFoundError, match="gone"):
        await client.get("sbx-1")


async def test_a_stream_raises_the_same_errors(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("StreamLogs", Fault(grpc.StatusCode.NOT_FOUND, "gone"))
    with pytest.raises(opensandboxd.NotFoundError):
        async for _ in client.logs("sbx-1"):
            pass


async def test_a_refused_connection_names_the_address() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(opensandboxd.UnavailableError, match=r"cannot reach 127\.0\.0\.1:1: .*refused"):
            await client.get("sbx-1")


def test_errors_survive_pickling() -> None:
    details = errors_module.ErrorDetails(code=grpc.StatusCode.NOT_FOUND, reason="SANDBOX_NOT_FOUND", request_id="r")
    error = pickle.loads(pickle.dumps(opensandboxd.NotFoundError("gone", details)))
    assert type(error) is opensandboxd.NotFoundError
    assert (str(error), error.code) == ("gone (SANDBOX_NOT_FOUND, request r)", grpc.StatusCode.NOT_FOUND)
    unreached = pickle.loads(pickle.dumps(NotReachedError("late", Sandbox(id="sbx-1"), True)))
    assert (unreached.message, unreached.sandbox.id, unreached.timed_out) == ("late", "sbx-1", True)


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn = {line.split()[1] for line in (errors_module.__doc__ or "").splitlines() if line.startswith(("├", "└"))}
    assert drawn == {subclass.__name__ for subclass in SandboxError.__subclasses__()}
    for line in (errors_module.__doc__ or "").splitlines():
        for code, error in ERRORS.items():
            if error.__name__ in line:
                assert f"{code.name}:" in line
