"""ListSandboxes: "oldest first, a page at a time"."""

from __future__ import annotations

import asyncio
import base64

import grpc
import pytest

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from tests.conformance.house import PAUSED, RUNNING, TERMINATED, Work
from tests.conformance.site import Site
from tests.refusal import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def page(site: Site, **how: object) -> rpc.ListSandboxesResponse:
    how.setdefault("metadata", site.mine)
    reply: rpc.ListSandboxesResponse = await site.stub.ListSandboxes(rpc.ListSandboxesRequest(**how))  # type: ignore[arg-type]
    return reply


async def pages(site: Site, size: int) -> list[list[pb.Sandbox]]:
    found, token = [], ""
    while True:
        reply = await page(site, page_size=size, page_token=token)
        found.append(list(reply.sandboxes))
        token = reply.next_page_token
        if not token:
            return found


async def test_sandboxes_are_listed_oldest_first_a_page_at_a_time(site: Site) -> None:
    created = await asyncio.gather(*(site.create() for _ in range(5)))
    oldest_first = sorted(created, key=lambda s: (s.create_time.ToDatetime(), s.id))

    found = await pages(site, 2)

    assert [len(p) for p in found] == [2, 2, 1]
    assert [s for p in found for s in p] == oldest_first


async def test_a_full_last_page_is_followed_by_none(site: Site) -> None:
    await asyncio.gather(*(site.create() for _ in range(2)))

    assert [len(p) for p in await pages(site, 2)] == [2]


async def test_a_sandbox_that_lives_through_the_listing_is_listed_once(site: Site) -> None:
    created = sorted(
        await asyncio.gather(*(site.create() for _ in range(5))), key=lambda s: (s.create_time.ToDatetime(), s.id)
    )
    first = await page(site, page_size=2)
    await site.delete(created[1].id)  # where the page ended
    await site.delete(created[2].id)  # where the next begins
    added = await site.create()
    rest = await page(site, page_size=10, page_token=first.next_page_token)

    assert [s.id for s in first.sandboxes] == [created[0].id, created[1].id]
    assert [s.id for s in rest.sandboxes] == [created[3].id, created[4].id, added.id]


async def test_a_page_token_can_be_used_again(site: Site) -> None:
    await asyncio.gather(*(site.create() for _ in range(3)))
    token = (await page(site, page_size=1)).next_page_token

    assert await page(site, page_size=1, page_token=token) == await page(site, page_size=1, page_token=token)


async def test_filters_must_all_match(site: Site) -> None:
    one, other = await asyncio.gather(
        site.create(metadata={"team": "a", "tier": "1"}), site.create(metadata={"team": "a", "tier": "2"})
    )
    paused = await site.pause(other.id)

    async def ids(**how: object) -> list[str]:
        return [s.id for s in (await page(site, **how)).sandboxes]

    assert set(await ids(metadata={**site.mine, "team": "a"})) == {one.id, other.id}
    assert await ids(metadata={**site.mine, "team": "a", "tier": "1"}) == [one.id]
    assert await ids(metadata={**site.mine, "team": "b"}) == []
    assert await ids(states=[PAUSED]) == [paused.id]
    assert await ids(states=[RUNNING]) == [one.id]
    assert set(await ids(states=[RUNNING, PAUSED])) == {one.id, other.id}
    assert await ids(states=[PAUSED], metadata={**site.mine, "tier": "1"}) == []


async def test_a_sandbox_that_has_ended_is_listed_until_it_is_deleted(site: Site) -> None:
    sandbox = await site.create(Work(exit=0))
    ended = await site.ended(sandbox.id)

    assert list((await page(site, states=[TERMINATED])).sandboxes) == [ended]


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        "💥",
        "=" * 4000,
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        base64.urlsafe_b64encode(b'{"a": 1}').decode(),
        base64.urlsafe_b64encode(b"[1, 2, 3]").decode(),
        base64.urlsafe_b64encode(b'["2026-01-01T00:00:00", "sbx-1", "x"]').decode(),
        base64.urlsafe_b64encode(b'["9999-99-99", "sbx-1", "x"]').decode(),
        base64.urlsafe_b64encode(b'["2026-01-01T00:00:00+00:00", "sbx-1", ["x"]]').decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
    ids=lambda token: token[:12],
)
async def test_a_page_token_that_no_listing_gave_is_refused(site: Site, token: str) -> None:
    refusal = await refused(page(site, page_token=token))

    assert (refusal.code, [*refusal.fields]) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_a_page_token_of_a_listing_with_other_filters_is_refused(site: Site) -> None:
    await asyncio.gather(*(site.create() for _ in range(2)))
    token = (await page(site, page_size=1)).next_page_token

    for how in ({"states": [RUNNING]}, {"metadata": {**site.mine, "a": "b"}}):
        refusal = await refused(page(site, page_token=token, **how))
        assert (refusal.reason, [*refusal.fields]) == ("INVALID_FIELD", ["page_token"])


async def test_page_sizes_are_bounded(site: Site) -> None:
    sandbox = await site.create()

    assert [*(await refused(page(site, page_size=-1))).fields] == ["page_size"]
    for size in (0, 1000, 2**31 - 1):
        assert list((await page(site, page_size=size)).sandboxes) == [sandbox]
