"""StreamLogs: "Streams what the entry point wrote." GetEndpoint: "the address under which a port is reached."."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from tests.conformance.house import Work
from tests.conformance.site import PATIENCE, Site
from tests.refusal import drained, refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

OUT, ERR = rpc.LOG_STREAM_STDOUT, rpc.LOG_STREAM_STDERR
UNKNOWN = "sbx-00000000000000000000"
SPOKEN = (("stdout", "one"), ("stderr", "two"), ("stdout", "three ü"), ("stdout", ""), ("stderr", "five"))


async def logs(site: Site, id: str, **how: object) -> list[rpc.StreamLogsResponse]:
    return await drained(site.stub.StreamLogs(rpc.StreamLogsRequest(id=id, **how), timeout=PATIENCE))  # type: ignore[arg-type]


def text(chunks: list[rpc.StreamLogsResponse]) -> str:
    return b"".join(chunk.data for chunk in chunks).decode()


async def spoken(site: Site) -> pb.Sandbox:
    """A sandbox whose entry point has written SPOKEN and exited."""
    sandbox = await site.create(Work(lines=SPOKEN, exit=0))
    return await site.ended(sandbox.id)


async def test_logs_are_what_the_entry_point_wrote_and_end(site: Site) -> None:
    sandbox = await spoken(site)

    chunks = await logs(site, sandbox.id)

    assert text(chunks) == "".join([*site.house.preamble, *(f"{line}\n" for _, line in SPOKEN)])
    times = [chunk.time.ToDatetime(UTC) for chunk in chunks]
    assert times == sorted(times)
    assert sandbox.create_time.ToDatetime(UTC) <= times[0] <= times[-1] <= datetime.now(UTC)


async def test_logs_tell_their_stream_and_only_those_asked_for_are_sent(site: Site) -> None:
    sandbox = await spoken(site)

    out = await logs(site, sandbox.id, streams=[OUT])
    err = await logs(site, sandbox.id, streams=[ERR])
    both = await logs(site, sandbox.id, streams=[OUT, ERR])

    assert {chunk.stream for chunk in out} == {OUT}
    assert {chunk.stream for chunk in err} == {ERR}
    assert text(err) == "two\nfive\n"
    assert text(out) == "".join([*site.house.preamble, "one\nthree ü\n\n"])
    assert both == await logs(site, sandbox.id)


@pytest.mark.parametrize("lines", [0, 1, 2, 5, 7, 2**32 - 1])
async def test_tail_lines_are_the_last_so_many(site: Site, lines: int) -> None:
    sandbox = await spoken(site)
    whole = text(await logs(site, sandbox.id)).splitlines(keepends=True)

    assert text(await logs(site, sandbox.id, tail_lines=lines)) == "".join(whole[max(0, len(whole) - lines) :])


async def test_tail_lines_count_the_lines_of_both_streams(site: Site) -> None:
    sandbox = await spoken(site)

    assert text(await logs(site, sandbox.id, tail_lines=3, streams=[ERR])) == "five\n"
    assert text(await logs(site, sandbox.id, tail_lines=4, streams=[ERR])) == "two\nfive\n"


async def test_since_time_leaves_out_what_was_written_before(site: Site) -> None:
    sandbox = await spoken(site)
    whole = await logs(site, sandbox.id)

    middle = whole[-3]
    assert text(await logs(site, sandbox.id, since_time=middle.time)) == text(whole[-3:])
    assert await logs(site, sandbox.id, since_time=Timestamp(seconds=4_000_000_000)) == []
    assert await logs(site, sandbox.id, since_time=Timestamp(seconds=1)) == whole
    assert await logs(site, sandbox.id, since_time=Timestamp(seconds=-1)) == whole


async def test_follow_goes_on_with_what_is_written_and_ends_when_the_entry_point_exits(site: Site) -> None:
    lines = tuple(("stdout", f"line {n}") for n in range(5))
    began = datetime.now(UTC)
    sandbox = await site.create(Work(lines=lines, pause=0.2, exit=0))

    call = site.stub.StreamLogs(rpc.StreamLogsRequest(id=sandbox.id, follow=True), timeout=PATIENCE)
    arrived = [(datetime.now(UTC), chunk.data.decode()) async for chunk in call]

    assert "".join(data for _, data in arrived) == "".join([*site.house.preamble, *(f"line {n}\n" for n in range(5))])
    assert (arrived[-1][0] - arrived[0][0]).total_seconds() > 0.4, "the lines came all at once"
    assert (datetime.now(UTC) - began).total_seconds() < 8


async def test_follow_of_a_sandbox_that_has_ended_ends_at_once(site: Site) -> None:
    sandbox = await spoken(site)

    assert await logs(site, sandbox.id, follow=True) == await logs(site, sandbox.id)


async def test_follow_ends_when_the_sandbox_is_deleted(site: Site) -> None:
    sandbox = await site.create()
    following = asyncio.ensure_future(logs(site, sandbox.id, follow=True))
    await asyncio.sleep(0.1)

    await site.delete(sandbox.id)

    async with asyncio.timeout(5):
        await following


async def test_a_caller_may_leave_a_followed_log_at_any_time(site: Site) -> None:
    sandbox = await site.create()
    for _ in range(20):
        call = site.stub.StreamLogs(rpc.StreamLogsRequest(id=sandbox.id, follow=True))
        await asyncio.sleep(0.005)
        call.cancel()

    assert text(await logs(site, sandbox.id)) == "".join(site.house.preamble)
    await site.delete(sandbox.id)


async def test_logs_of_what_never_ran_are_refused(site: Site) -> None:
    failed = await site.accept(entrypoint=["/no/such/program"])
    await site.wait(failed.id)

    assert (await refused(logs(site, failed.id))).reason == "INVALID_STATE"
    assert (await refused(logs(site, UNKNOWN))).reason == "SANDBOX_NOT_FOUND"
    async with site.house.slowly(site.server):
        pending = await site.accept()
        assert (await refused(logs(site, pending.id))).reason == "INVALID_STATE"


# Endpoints


async def endpoint(site: Site, id: str, port: int, **how: bool) -> rpc.GetEndpointResponse:
    reply: rpc.GetEndpointResponse = await site.stub.GetEndpoint(rpc.GetEndpointRequest(id=id, port=port, **how))
    return reply


async def test_a_published_port_has_an_address_of_its_own(site: Site) -> None:
    one, other = await asyncio.gather(*(site.create(spec={"ports": [8080, 9090]}) for _ in range(2)))

    found = [await endpoint(site, s.id, port) for s in (one, other) for port in (8080, 9090)]

    for reply in found:
        assert reply.address == f"{reply.host}:{reply.port}"
        assert 1 <= reply.port <= 65535
    if site.house.runs_processes:
        assert len({reply.address for reply in found}) == 4
    assert await endpoint(site, one.id, 8080) == found[0]


async def test_a_port_that_is_not_published_is_refused_unless_the_address_is_internal(site: Site) -> None:
    sandbox = await site.create(spec={"ports": [8080]})

    refusal = await refused(endpoint(site, sandbox.id, 8081))
    internal = await endpoint(site, sandbox.id, 8081, internal=True)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PORT_NOT_PUBLISHED")
    assert internal.port == 8081
    assert internal.host


async def test_a_paused_sandbox_has_its_endpoint_and_an_ended_one_has_none(site: Site) -> None:
    sandbox = await site.create(spec={"ports": [8080]})
    before = await endpoint(site, sandbox.id, 8080)
    await site.pause(sandbox.id)
    assert await endpoint(site, sandbox.id, 8080) == before
    ended = await site.create(Work(exit=0), spec={"ports": [8080]})
    await site.ended(ended.id)

    for internal in (False, True):
        assert (await refused(endpoint(site, ended.id, 8080, internal=internal))).reason == "INVALID_STATE"
    assert (await refused(endpoint(site, UNKNOWN, 8080))).reason == "SANDBOX_NOT_FOUND"
