"""A handle that owns a sandbox leaves none behind; one that does not leaves it alone."""

from __future__ import annotations

import grpc
import pytest

import opensandboxd
from opensandboxd import AsyncClient, Sandbox
from opensandboxd.v1 import sandbox_service_pb2 as pb2
from tests.client.scripted import Fault, ScriptedServer

CREATED = pb2.CreateSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="1"))
DELETED = pb2.DeleteSandboxResponse()
DENIED = Fault(grpc.StatusCode.PERMISSION_DENIED, "not yours")


async def test_a_sandbox_lives_as_long_as_its_block(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("DeleteSandbox", DELETED)
    async with client.sandbox("img", ttl=60) as sbx:
        assert (sbx.id, sbx.info.etag) == ("sbx-1", "1")
        assert not server.received["DeleteSandbox"]
    assert server.requests("CreateSandbox")[0].ttl.seconds == 60
    assert server.requests("DeleteSandbox") == [pb2.DeleteSandboxRequest(id="sbx-1", allow_missing=True)]


async def test_it_is_deleted_when_the_block_raises(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("DeleteSandbox", DELETED)
    with pytest.raises(ZeroDivisionError):
        async with client.sandbox("img"):
            raise ZeroDivisionError
    assert len(server.received["DeleteSandbox"]) == 1


async def test_a_failed_deletion_does_not_hide_the_blocks_exception(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("DeleteSandbox", DENIED)
    with pytest.raises(ZeroDivisionError) as raised:
        async with client.sandbox("img"):
            raise ZeroDivisionError
    assert raised.value.__notes__ == ["sandbox sbx-1 was not deleted: not yours"]


async def test_a_failed_deletion_alone_is_raised(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("DeleteSandbox", DENIED)
    with pytest.raises(opensandboxd.PermissionDeniedError):
        async with client.sandbox("img"):
            pass


async def test_a_failed_creation_deletes_nothing(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", DENIED)
    with pytest.raises(opensandboxd.PermissionDeniedError):
        async with client.sandbox("img"):
            pytest.fail("entered")
    assert not server.received["DeleteSandbox"]


async def test_an_attached_handle_does_not_own(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("GetSandbox", pb2.GetSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="7")))
    async with client.attach("sbx-1") as sbx:
        assert sbx.info.etag == "7"
    assert not server.received["DeleteSandbox"]


async def test_its_verbs_carry_its_id_and_keep_info_fresh(server: ScriptedServer, client: AsyncClient) -> None:
    sbx = client.attach(Sandbox(id="sbx-1"))
    server.expect("GetSandbox", pb2.GetSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="1")))
    server.expect("PauseSandbox", pb2.PauseSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="2")))
    server.expect("ResumeSandbox", pb2.ResumeSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="3")))
    server.expect("RenewSandbox", pb2.RenewSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="4")))
    server.expect("UpdateSandbox", pb2.UpdateSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="5")))
    server.expect("WaitSandbox", pb2.WaitSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="6"), reached=True))
    server.expect("GetEndpoint", pb2.GetEndpointResponse(host="h"))
    server.expect("StreamLogs", pb2.StreamLogsResponse(data=b"x"))
    server.expect("DeleteSandbox", DELETED)
    for call, etag in [
        (sbx.refresh(), "1"),
        (sbx.pause(), "2"),
        (sbx.resume(), "3"),
        (sbx.renew(60), "4"),
        (sbx.update_metadata({"a": "b"}), "5"),
        (sbx.wait(timeout=1), "6"),
    ]:
        assert (await call).etag == sbx.info.etag == etag
    assert (await sbx.endpoint(80)).host == "h"
    assert [chunk.data async for chunk in sbx.logs()] == [b"x"]
    await sbx.delete()
    assert {received[0].request.id for received in server.received.values()} == {"sbx-1"}


async def test_a_sandbox_that_is_not_made_yet_has_no_id(server: ScriptedServer, client: AsyncClient) -> None:
    sbx = client.sandbox("img")
    with pytest.raises(RuntimeError, match="async with"):
        _ = sbx.id


async def test_a_handle_is_entered_once(server: ScriptedServer, client: AsyncClient) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("DeleteSandbox", DELETED)
    async with client.sandbox("img") as sbx:
        pass
    with pytest.raises(RuntimeError, match="make another"):
        await sbx.__aenter__()
