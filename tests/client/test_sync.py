"""The synchronous client is the asynchronous one, blocking: from any thread, under a running loop, interruptible."""

from __future__ import annotations

import gc
import inspect
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import opensandboxd
from opensandboxd import AsyncClient, AsyncSandboxHandle, Client, Sandbox, SandboxHandle
from opensandboxd.v1 import runtime_service_pb2 as runtime_pb2
from opensandboxd.v1 import sandbox_service_pb2 as pb2
from tests.client.scripted import Fault, Hang, ScriptedServer

CREATED = pb2.CreateSandboxResponse(sandbox=Sandbox(id="sbx-1"))
GOT = pb2.GetSandboxResponse(sandbox=Sandbox(id="sbx-1", etag="2"))
DELETED = pb2.DeleteSandboxResponse()


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "original"), [(Client, AsyncClient), (SandboxHandle, AsyncSandboxHandle)])
def test_it_has_every_method_with_signature_and_docstring(blocking: type, original: type) -> None:
    assert public(blocking) - {"target"} == public(original) - {"target"}
    for name in public(original) - {"id", "info", "target", "close"}:
        assert inspect.signature(getattr(blocking, name)) == inspect.signature(getattr(original, name))
        assert inspect.getdoc(getattr(blocking, name)) == inspect.getdoc(getattr(original, name))


def test_calls_and_streams_block(server: ScriptedServer, sync_client: Client) -> None:
    server.expect("GetSandbox", GOT)
    server.expect("ListSandboxes", pb2.ListSandboxesResponse(sandboxes=[Sandbox(id="a")], next_page_token="2"))
    server.expect("ListSandboxes", pb2.ListSandboxesResponse(sandboxes=[Sandbox(id="b")]))
    server.expect("StreamLogs", pb2.StreamLogsResponse(data=b"1"), pb2.StreamLogsResponse(data=b"2"))
    server.expect("GetRuntimeInfo", runtime_pb2.GetRuntimeInfoResponse(driver="fake"))
    server.expect(
        "ListSecureRuntimes",
        runtime_pb2.ListSecureRuntimesResponse(secure_runtimes=[runtime_pb2.SecureRuntime(type="gvisor")]),
    )
    assert sync_client.get("sbx-1").etag == "2"
    assert [sandbox.id for sandbox in sync_client.list()] == ["a", "b"]
    assert [chunk.data for chunk in sync_client.logs("sbx-1", tail=2)] == [b"1", b"2"]
    assert sync_client.runtime_info().driver == "fake"
    assert [runtime.type for runtime in sync_client.secure_runtimes()] == ["gvisor"]


def test_errors_are_the_same(server: ScriptedServer, sync_client: Client) -> None:
    server.expect("GetSandbox", Fault(grpc.StatusCode.NOT_FOUND, "gone"))
    server.expect("StreamLogs", Fault(grpc.StatusCode.NOT_FOUND, "gone"))
    with pytest.raises(opensandboxd.NotFoundError):
        sync_client.get("sbx-1")
    with pytest.raises(opensandboxd.NotFoundError):
        next(sync_client.logs("sbx-1"))


def test_a_sandbox_lives_as_long_as_its_block(server: ScriptedServer, sync_client: Client) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("GetSandbox", GOT)
    server.expect("DeleteSandbox", DELETED)
    with sync_client.sandbox("img", ttl=60) as sbx:
        assert (sbx.id, sbx.refresh().etag, sbx.info.etag) == ("sbx-1", "2", "2")
    assert server.requests("DeleteSandbox") == [pb2.DeleteSandboxRequest(id="sbx-1", allow_missing=True)]


def test_an_attached_handle_does_not_own(server: ScriptedServer, sync_client: Client) -> None:
    server.expect("GetSandbox", GOT)
    with sync_client.attach("sbx-1") as sbx:
        assert sbx.info.etag == "2"


def test_threads_share_one_client(server: ScriptedServer, sync_client: Client) -> None:
    for _ in range(200):
        server.expect("GetSandbox", GOT)
    with ThreadPoolExecutor(8) as pool:
        assert {sandbox.id for sandbox in pool.map(lambda _: sync_client.get("sbx-1"), range(200))} == {"sbx-1"}


async def test_it_works_while_an_event_loop_runs(server: ScriptedServer) -> None:
    server.expect("CreateSandbox", CREATED)
    server.expect("DeleteSandbox", DELETED)
    with Client(server.target) as client, client.sandbox("img") as sbx:
        assert sbx.id == "sbx-1"


def test_several_clients_live_side_by_side(server: ScriptedServer, sync_client: Client) -> None:
    for _ in range(3):
        server.expect("GetSandbox", GOT)
    with Client(server.target) as other:
        assert other.get("sbx-1") == sync_client.get("sbx-1")
    assert sync_client.get("sbx-1").id == "sbx-1"


def test_leaving_a_stream_early_hangs_up(server: ScriptedServer, sync_client: Client) -> None:
    gone = threading.Event()
    server.expect("StreamLogs", pb2.StreamLogsResponse(data=b"1"), Hang(gone))
    logs = sync_client.logs("sbx-1", follow=True)
    assert next(logs).data == b"1"
    logs.close()
    assert gone.wait(5)


def test_ctrl_c_hangs_up(server: ScriptedServer, sync_client: Client) -> None:
    gone, main = threading.Event(), threading.current_thread()
    server.expect("CreateSandbox", Hang(gone))

    def interrupt() -> None:
        while not server.received["CreateSandbox"]:
            time.sleep(0.01)
        assert main.ident
        signal.pthread_kill(main.ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        sync_client.create("img")
    assert gone.wait(5)


def test_closing_ends_its_thread_and_is_final(server: ScriptedServer) -> None:
    server.expect("GetSandbox", GOT)
    before = threading.active_count()
    client = Client(server.target)
    client.get("sbx-1")
    assert threading.active_count() == before + 1
    client.close()
    client.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.get("sbx-1")
    with pytest.raises(RuntimeError, match="this client is closed"):
        next(client.list())


def test_a_forgotten_client_closes_itself(server: ScriptedServer) -> None:
    server.expect("GetSandbox", GOT)
    before = threading.active_count()
    client = Client(server.target)
    client.get("sbx-1")
    ref = weakref.ref(client)
    del client
    gc.collect()
    assert ref() is None
    assert threading.active_count() == before
