"""CreateSandbox: "Idempotent when `request_id` is set: the same body gets the same sandbox."."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import grpc
import pytest

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from tests.conformance.house import RUNNING
from tests.conformance.site import Site, eventually
from tests.refusal import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def request_id() -> str:
    return secrets.token_hex(8)


async def test_the_same_request_id_and_body_get_the_same_sandbox(site: Site, request_id: str) -> None:
    first = await site.create(request_id=request_id)
    again = await site.create(request_id=request_id)

    assert again == first
    assert await site.list() == [first]


async def test_the_same_sandbox_is_returned_as_it_is_by_now(site: Site, request_id: str) -> None:
    first = await site.create(request_id=request_id)
    changed = await site.update(first.id, metadata={"more": "1"})

    assert await site.create(request_id=request_id) == changed


async def test_another_body_under_the_same_request_id_is_refused(site: Site, request_id: str) -> None:
    first = await site.create(request_id=request_id)

    refusal = await refused(site.create(request_id=request_id, spec={"env": {"A": "1"}}))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert refusal.details["ErrorInfo"].metadata["sandbox_id"] == first.id
    assert await site.list() == [first]


async def test_renewed_registry_credentials_are_not_another_body(site: Site, request_id: str) -> None:
    body = site.body(request_id=request_id)
    first = (await site.stub.CreateSandbox(body)).sandbox
    body.spec.image.auth.username, body.spec.image.auth.password = "token", "fresh"

    assert (await site.stub.CreateSandbox(body)).sandbox == first


async def test_calls_at_the_same_time_get_one_sandbox(site: Site, request_id: str) -> None:
    created = await asyncio.gather(*(site.create(request_id=request_id) for _ in range(5)))

    assert {s.id for s in created} == {s.id for s in await site.list()}
    assert len(await site.list()) == 1


async def test_a_joined_creation_outlives_its_first_caller(site: Site, request_id: str) -> None:
    async with site.house.slowly(site.server):
        first = site.stub.CreateSandbox(site.body(request_id=request_id))
        await eventually(lambda: is_begun(site))
        second = asyncio.ensure_future(site.create(request_id=request_id))
        await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.sleep(0.02)

    sandbox = await second
    assert sandbox.status.state == RUNNING
    assert await site.list() == [sandbox]


async def test_a_creation_abandoned_by_all_leaves_nothing_and_its_request_id_serves_again(
    site: Site, request_id: str
) -> None:
    async with site.house.slowly(site.server):
        calls = [site.stub.CreateSandbox(site.body(request_id=request_id)) for _ in range(2)]
        await eventually(lambda: is_begun(site))
        for call in calls:
            call.cancel()
        again = asyncio.ensure_future(site.create(request_id=request_id))
        await asyncio.sleep(0.02)

    sandbox = await again
    assert await site.list() == [sandbox]


async def test_a_failed_creation_may_be_retried_with_the_same_request_id(site: Site, request_id: str) -> None:
    body: dict[str, Any] = {"request_id": request_id, "entrypoint": ["/no/such/program"]}
    first = await refused(site.create(**body))
    second = await refused(site.create(**body))

    assert first.reason == second.reason == "START_FAILED"
    assert (await site.create(request_id=request_id)).status.state == RUNNING


async def test_a_request_id_is_remembered_as_long_as_the_sandbox_lives(site: Site, request_id: str) -> None:
    first = await site.create(request_id=request_id)
    await site.delete(first.id)

    second = await site.create(request_id=request_id, spec={"env": {"ANOTHER": "body"}})

    assert second.id != first.id


async def test_an_accepted_creation_is_found_again_by_its_request_id(site: Site, request_id: str) -> None:
    async with site.house.slowly(site.server):
        first = await site.accept(request_id=request_id)
        again = await site.accept(request_id=request_id)

    assert again.id == first.id


async def test_a_failed_accepted_creation_is_found_again_by_its_request_id(site: Site, request_id: str) -> None:
    body: dict[str, Any] = {"request_id": request_id, "entrypoint": ["/no/such/program"]}
    first = await site.accept(**body)
    failed = (await site.wait(first.id)).sandbox

    assert await site.accept(**body) == failed


async def test_validate_only_does_not_use_up_the_request_id(site: Site, request_id: str) -> None:
    await site.create(request_id=request_id, validate_only=True, spec={"env": {"A": "1"}})

    assert (await site.create(request_id=request_id)).id


async def test_without_a_request_id_every_call_creates(site: Site) -> None:
    assert (await site.create()).id != (await site.create()).id


async def is_begun(site: Site) -> bool:
    return bool(await site.list(states=[pb.SANDBOX_STATE_PENDING]))


async def test_every_part_of_the_body_counts(site: Site, request_id: str) -> None:
    body = site.body(request_id=request_id)
    await site.stub.CreateSandbox(body)
    others: list[dict[str, object]] = [
        {"metadata": {"x": "y"}},
        {"ttl": {"seconds": 60}},
        {"return_when": rpc.RETURN_WHEN_ACCEPTED},
        {"spec": {"ports": [80]}},
        {"spec": {"resources": {"cpu": "1"}}},
        {"entrypoint": ["/bin/other"]},
        {"image": "another/image:1"},
    ]
    for other in others:
        refusal = await refused(site.create(request_id=request_id, **other))  # type: ignore[arg-type]
        assert refusal.reason == "REQUEST_ID_REUSED", other
