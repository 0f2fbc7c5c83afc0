"""CreateSandbox: "Creates a sandbox and starts it. All or nothing."."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd.v1.runtime_service_pb2 import GetRuntimeInfoRequest
from tests.conformance.house import FAILED, PENDING, RUNNING
from tests.conformance.site import Site, eventually
from tests.refusal import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_created_sandbox_is_running_and_get_returns_the_same(site: Site) -> None:
    sandbox = await site.create()

    assert sandbox.status.state == RUNNING
    assert await site.get(sandbox.id) == sandbox


async def test_an_id_is_sbx_and_twenty_lower_case_letters_or_digits(site: Site) -> None:
    one, other = await asyncio.gather(site.create(), site.create())

    assert re.fullmatch(r"sbx-[a-z0-9]{20}", one.id)
    assert one.id != other.id


async def test_create_time_is_when_the_server_accepted_the_request(site: Site) -> None:
    before = datetime.now(UTC)
    sandbox = await site.create()

    created = sandbox.create_time.ToDatetime(UTC)
    assert before <= created <= datetime.now(UTC)
    assert created <= sandbox.status.last_transition_time.ToDatetime(UTC) <= datetime.now(UTC)


async def test_without_an_expiration_it_stays_until_deleted(site: Site) -> None:
    assert not (await site.create()).HasField("expire_time")


async def test_ttl_counts_from_acceptance(site: Site) -> None:
    sandbox = await site.create(ttl=Duration(seconds=90, nanos=500_000_000))

    left = sandbox.expire_time.ToDatetime(UTC) - sandbox.create_time.ToDatetime(UTC)
    assert left == timedelta(seconds=90.5)


async def test_expire_time_is_kept_as_given(site: Site) -> None:
    at = Timestamp()
    at.FromDatetime(datetime.now(UTC) + timedelta(hours=3))

    assert (await site.create(expire_time=at)).expire_time == at


async def test_the_spec_is_returned_as_asked_but_for_the_registry_credentials(site: Site) -> None:
    asked = pb.SandboxSpec(
        image=pb.ImageSource(uri=site.house.image),
        entrypoint=["/bin/sleep", "infinity"],
        env={"GREETING": "hello = world", "EMPTY": "", "_x1": "ü\n\t'\"$HOME"},
        resources=pb.ResourceLimits(cpu="500m", memory="64Mi"),
        ports=[8080, 9090],
    )
    request = rpc.CreateSandboxRequest(spec=asked, metadata={**site.mine, "example.com/a.b-c_d": ""})
    request.spec.image.auth.username = "user"
    request.spec.image.auth.password = "secret"

    created = (await site.stub.CreateSandbox(request)).sandbox

    assert created.spec == asked
    assert (await site.get(created.id)).spec == asked
    assert [s.spec for s in await site.list()] == [asked]
    assert created.metadata == request.metadata


async def test_the_status_tells_the_runtime_that_the_sandbox_was_created_under(site: Site) -> None:
    runtime = (await site.create()).status.runtime

    info = (await site.server.runtime.GetRuntimeInfo(GetRuntimeInfoRequest())).secure_runtime
    assert runtime.secure_runtime == info.type == site.house.secure_runtime
    assert runtime.isolation == info.isolation
    assert runtime.oci_runtime == info.oci_runtime


async def test_require_secure_runtime_is_refused_without_one_and_granted_with_one(site: Site) -> None:
    call = site.create(spec={"require_secure_runtime": True})
    if site.house.secure_runtime:
        assert (await call).spec.require_secure_runtime
        return
    refusal = await refused(call)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SECURE_RUNTIME_REQUIRED")
    await site.nothing_remains()


async def test_accepted_replies_with_pending_and_the_sandbox_becomes_running_by_itself(site: Site) -> None:
    async with site.house.slowly(site.server):
        sandbox = await site.accept()
        assert sandbox.status.state == PENDING
        assert sandbox.status.reason in ("CREATING", "IMAGE_PULLING")
        assert await site.state(sandbox.id) == PENDING

    assert (await site.wait(sandbox.id)).sandbox.status.state == RUNNING


async def test_validate_only_creates_nothing_and_returns_the_sandbox_without_id(site: Site) -> None:
    sandbox = await site.create(validate_only=True, ttl=Duration(seconds=60), request_id="validate-only")

    assert sandbox.id == ""
    assert sandbox.status.state == PENDING
    assert sandbox.metadata == site.mine
    assert sandbox.HasField("expire_time")
    await site.nothing_remains()


async def test_validate_only_refuses_what_a_creation_would(site: Site) -> None:
    refusal = await refused(site.create(validate_only=True, image="Not An Image"))

    assert (refusal.reason, [*refusal.fields]) == ("INVALID_FIELD", ["spec.image.uri"])


async def test_an_image_that_cannot_be_pulled_is_refused_and_nothing_remains(site: Site) -> None:
    refusal = await refused(site.create(image=site.house.absent_image))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IMAGE_PULL_FAILED")
    assert refusal.details["PreconditionFailure"].violations[0].type == "IMAGE_PULL_FAILED"
    await site.nothing_remains()


async def test_an_entry_point_that_cannot_be_started_is_refused_and_nothing_remains(site: Site) -> None:
    refusal = await refused(site.create(entrypoint=["/no/such/program"]))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "START_FAILED")
    await site.nothing_remains()


@pytest.mark.parametrize("reason", ["IMAGE_PULL_FAILED", "START_FAILED"])
async def test_an_accepted_creation_that_fails_can_be_read_and_leaves_nothing_else(site: Site, reason: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "IMAGE_PULL_FAILED": {"image": site.house.absent_image},
        "START_FAILED": {"entrypoint": ["/no/such/program"]},
    }
    accepted = await site.accept(**bodies[reason])

    reply = await site.wait(accepted.id)

    assert reply.reached
    assert (reply.sandbox.status.state, reply.sandbox.status.reason) == (FAILED, reason)
    assert reply.sandbox.status.message
    assert await site.list(states=[FAILED]) == [reply.sandbox]
    assert accepted.id not in await site.house.remains(site.server, "shared")
    await site.delete(accepted.id)
    await site.nothing_remains()


async def test_a_caller_that_hangs_up_leaves_nothing_behind(site: Site) -> None:
    async with site.house.slowly(site.server):
        for delay in (0.0, 0.01, 0.05, 0.1, 0.15):
            call = site.stub.CreateSandbox(site.body())
            await asyncio.sleep(delay)
            call.cancel()
        await eventually(lambda: no_sandboxes(site))

    await site.nothing_remains()


async def test_a_caller_that_runs_out_of_its_deadline_leaves_nothing_behind(site: Site) -> None:
    async with site.house.slowly(site.server):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.stub.CreateSandbox(site.body(), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: no_sandboxes(site))

    await site.nothing_remains()


async def test_an_accepted_creation_goes_on_when_its_caller_hangs_up(site: Site) -> None:
    async with site.house.slowly(site.server):
        sandbox = await site.accept()

    assert (await site.wait(sandbox.id)).sandbox.status.state == RUNNING


async def test_each_of_several_at_once_is_created(site: Site) -> None:
    created = await asyncio.gather(*(site.create(metadata={"n": str(n)}) for n in range(6)))

    assert {s.id for s in created} == {s.id for s in await site.list(states=[RUNNING])}
    assert {s.metadata["n"] for s in created} == {str(n) for n in range(6)}


async def no_sandboxes(site: Site) -> bool:
    return await site.list() == []
