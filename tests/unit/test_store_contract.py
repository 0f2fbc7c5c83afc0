"""domain.ports.SandboxStore: one set of checks for every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opensandboxd_server.domain.model import (
    ImageSource,
    Isolation,
    Platform,
    ResourceLimits,
    SandboxRuntime,
    SandboxSpec,
    SandboxState,
)
from opensandboxd_server.domain.ports import FailureRecord, Observation, RequestRecord, SandboxRecord, SandboxStore
from opensandboxd_server.store.memory import MemoryStore
from opensandboxd_server.store.sqlite import SqliteStore

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
RECORD = SandboxRecord("sbx-1", 1, {"a": "b"}, NOW)
SPEC = SandboxSpec(
    ImageSource("img:1"), ("a", "ü"), {"A": "b\n"}, ResourceLimits("1", "1Gi"), platform=Platform("linux", "arm64"),
    ports=(80,),
)  # fmt: skip
OBSERVATION = Observation(
    "sbx-1", SPEC, {"a": "b"}, NOW, NOW + timedelta(hours=1),
    SandboxRuntime("gvisor", Isolation.USER_SPACE_KERNEL, "runsc"),
    SandboxState.FAILED, NOW, "START_FAILED", "no 'program' — ü", None,
)  # fmt: skip


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SandboxStore]:
    store: SandboxStore = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "a" / "b.db")
    await store.open()
    yield store
    await store.close()


async def everything(store: SandboxStore) -> tuple[object, ...]:
    return (await store.load_records(), await store.load_requests(), await store.load_failures())


async def test_a_new_store_is_empty(store: SandboxStore) -> None:
    assert await everything(store) == ([], [], [])


async def test_a_record_is_written_when_none_is_stored_and_zero_is_expected(store: SandboxStore) -> None:
    assert not await store.compare_and_set(replace(RECORD, revision=2), 1)
    assert await store.load_records() == []
    assert await store.compare_and_set(RECORD, 0)
    assert await store.load_records() == [RECORD]
    assert not await store.compare_and_set(RECORD, 0)


async def test_a_record_is_written_only_over_the_revision_expected(store: SandboxStore) -> None:
    second = replace(RECORD, revision=2, metadata={}, expire_time=None)
    await store.compare_and_set(RECORD, 0)

    assert not await store.compare_and_set(second, 2)
    assert await store.load_records() == [RECORD]
    assert await store.compare_and_set(second, 1)
    assert await store.load_records() == [second]
    assert not await store.compare_and_set(replace(second, revision=3), 1)


async def test_nothing_is_written_over_a_claim(store: SandboxStore) -> None:
    claim = replace(RECORD, revision=2, claimed=True)
    await store.compare_and_set(RECORD, 0)
    assert await store.compare_and_set(claim, 1)

    assert not await store.compare_and_set(replace(RECORD, revision=3), 2)
    assert await store.load_records() == [claim]


async def test_of_writers_at_the_same_time_one_wins(store: SandboxStore) -> None:
    for revision in range(5):
        writers = [replace(RECORD, revision=revision + 1, metadata={"writer": str(n)}) for n in range(20)]
        won = await asyncio.gather(*(store.compare_and_set(record, revision) for record in writers))
        assert sum(won) == 1
        assert await store.load_records() == [writers[won.index(True)]]


async def test_requests_and_failures_are_replaced_by_their_keys(store: SandboxStore) -> None:
    await store.put_request(RequestRecord("r", "sbx-1", "hash"))
    await store.put_request(RequestRecord("r", "sbx-2", "other"))
    await store.put_failure(FailureRecord(OBSERVATION, NOW))
    changed = FailureRecord(replace(OBSERVATION, reason="CREATE_FAILED", exit_code=3), NOW + timedelta(seconds=1))
    await store.put_failure(changed)

    assert await everything(store) == ([], [RequestRecord("r", "sbx-2", "other")], [changed])


async def test_dropping_a_failure_drops_nothing_else(store: SandboxStore) -> None:
    other = FailureRecord(replace(OBSERVATION, id="sbx-2"), NOW)
    await store.compare_and_set(RECORD, 0)
    await store.put_request(RequestRecord("r", "sbx-1", "hash"))
    await store.put_failure(FailureRecord(OBSERVATION, NOW))
    await store.put_failure(other)

    for _ in range(2):
        await store.drop_failure("sbx-1")
        assert await everything(store) == ([RECORD], [RequestRecord("r", "sbx-1", "hash")], [other])


async def test_forgetting_drops_every_row_about_a_sandbox_and_no_other(store: SandboxStore) -> None:
    for id in ("sbx-1", "sbx-2", "sbx-3"):
        await store.compare_and_set(replace(RECORD, id=id), 0)
        await store.put_request(RequestRecord(f"r-{id}", id, "hash"))
        await store.put_failure(FailureRecord(replace(OBSERVATION, id=id), NOW))

    for _ in range(2):
        await store.forget(["sbx-1", "sbx-3", "sbx-unknown"])
        await store.forget([])
        records, requests, failures = await everything(store)
        assert records == [replace(RECORD, id="sbx-2")]
        assert requests == [RequestRecord("r-sbx-2", "sbx-2", "hash")]
        assert failures == [FailureRecord(replace(OBSERVATION, id="sbx-2"), NOW)]
    assert await store.compare_and_set(RECORD, 0)


async def test_a_caller_who_goes_away_does_not_break_the_store(store: SandboxStore) -> None:
    for n in range(20):
        write = asyncio.ensure_future(store.compare_and_set(replace(RECORD, id=f"sbx-{n}"), 0))
        await asyncio.sleep(0)
        write.cancel()
    await asyncio.sleep(0.05)

    assert await store.compare_and_set(replace(RECORD, id="after"), 0)


async def test_many_ids_are_forgotten_at_once(store: SandboxStore) -> None:
    for n in range(50):
        await store.put_request(RequestRecord(f"r{n}", f"sbx-{n}", "hash"))
    await store.forget([f"sbx-{n}" for n in range(40_000)])
    assert await store.load_requests() == []


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
times = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))
records = st.builds(
    SandboxRecord, texts, st.integers(1, 2**40), st.dictionaries(texts, texts, max_size=4), st.none() | times,
    st.booleans(),
)  # fmt: skip


@given(st.lists(records, max_size=5, unique_by=lambda record: record.id))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sqlite_gives_back_what_it_was_given(tmp_path: Path, given_records: list[SandboxRecord]) -> None:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.db"

    async def write_and_read() -> list[SandboxRecord]:
        store = SqliteStore(path)
        await store.open()
        for record in given_records:
            assert await store.compare_and_set(record, 0)
        await store.close()
        again = SqliteStore(path)
        await again.open()
        found = await again.load_records()
        await again.close()
        return found

    found = asyncio.run(write_and_read())
    assert sorted(found, key=lambda record: record.id) == sorted(given_records, key=lambda record: record.id)
