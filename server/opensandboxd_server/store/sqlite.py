"""The store on SQLite: one file, one writer thread, write-ahead log.

A row that was acknowledged survives the end of the process at any moment. `synchronous=NORMAL` may lose the last
commits when the machine itself loses power; the containers they speak of are then gone as well.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.ports import FailureRecord, Observation, RequestRecord, SandboxRecord

T = TypeVar("T")

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
  id TEXT PRIMARY KEY, revision INTEGER NOT NULL, metadata TEXT NOT NULL, expire_time REAL, claimed INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
  request_id TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL, body_hash TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS requests_by_sandbox ON requests (sandbox_id);
CREATE TABLE IF NOT EXISTS failures (
  id TEXT PRIMARY KEY, observation TEXT NOT NULL, keep_until REAL NOT NULL
) STRICT;
"""
_OBSERVATION = TypeAdapter(Observation)


class SqliteStore:
    """domain.ports.SandboxStore in the file at `path`, which is made with mode 0600, its directory with 0700."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection

    async def open(self) -> None:
        """StartupError when the file cannot be used."""
        try:
            await self._run(self._open)
        except (OSError, sqlite3.Error) as exc:
            raise StartupError(f"[store] path {self._path} cannot be used: {exc}") from exc

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch(mode=0o600)
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"it was written by a newer opensandboxd (schema {version}, this one knows {SCHEMA_VERSION})"
            )
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    async def close(self) -> None:
        await self._run(self._db.close)
        self._thread.shutdown()

    async def load_records(self) -> list[SandboxRecord]:
        rows = await self._query("SELECT id, revision, metadata, expire_time, claimed FROM records")
        return [
            SandboxRecord(id, revision, json.loads(metadata), _time(expire_time), bool(claimed))
            for id, revision, metadata, expire_time, claimed in rows
        ]

    async def compare_and_set(self, record: SandboxRecord, expected_revision: int) -> bool:
        return await self._run(self._compare_and_set, record, expected_revision)

    def _compare_and_set(self, record: SandboxRecord, expected_revision: int) -> bool:
        """The WHERE of either branch is the comparison: no row is written unless it holds."""
        expire_time = record.expire_time.timestamp() if record.expire_time else None
        values = (record.revision, json.dumps(dict(record.metadata)), expire_time, record.claimed, record.id)
        if expected_revision:
            statement = (
                "UPDATE records SET revision = ?, metadata = ?, expire_time = ?, claimed = ? "
                "WHERE id = ? AND revision = ? AND NOT claimed"
            )
            return self._db.execute(statement, (*values, expected_revision)).rowcount == 1
        statement = (
            "INSERT INTO records (revision, metadata, expire_time, claimed, id) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO NOTHING"
        )
        return self._db.execute(statement, values).rowcount == 1

    async def load_requests(self) -> list[RequestRecord]:
        rows = await self._query("SELECT request_id, sandbox_id, body_hash FROM requests")
        return [RequestRecord(*row) for row in rows]

    async def put_request(self, record: RequestRecord) -> None:
        values = (record.request_id, record.sandbox_id, record.body_hash)
        await self._query(
            "INSERT OR REPLACE INTO requests (request_id, sandbox_id, body_hash) VALUES (?, ?, ?)", values
        )

    async def load_failures(self) -> list[FailureRecord]:
        rows = await self._query("SELECT observation, keep_until FROM failures")
        return [
            FailureRecord(_OBSERVATION.validate_json(text), datetime.fromtimestamp(keep_until, UTC))
            for text, keep_until in rows
        ]

    async def put_failure(self, record: FailureRecord) -> None:
        text = _OBSERVATION.dump_json(record.observation).decode()
        values = (record.observation.id, text, record.keep_until.timestamp())
        await self._query("INSERT OR REPLACE INTO failures (id, observation, keep_until) VALUES (?, ?, ?)", values)

    async def drop_failure(self, id: str) -> None:
        await self._query("DELETE FROM failures WHERE id = ?", (id,))

    async def forget(self, ids: list[str]) -> None:
        await self._run(self._forget, ids)

    def _forget(self, ids: list[str]) -> None:
        keys = [(id,) for id in ids]
        self._db.execute("BEGIN")
        with self._db:
            self._db.executemany("DELETE FROM records WHERE id = ?", keys)
            self._db.executemany("DELETE FROM requests WHERE sandbox_id = ?", keys)
            self._db.executemany("DELETE FROM failures WHERE id = ?", keys)

    async def _query(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return await self._run(lambda: self._db.execute(statement, values).fetchall())

    async def _run(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def _time(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)
