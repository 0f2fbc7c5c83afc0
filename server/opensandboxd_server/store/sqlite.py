"""The store on SQLite: one file, one writer thread, write-ahead log.

A row that was acknowledged survives the end of the process at any moment. `synchronous=NORMAL` may lose the last
commits when the machine itself loses power; no container runs on after that. Times are microseconds since 1970.

The file next to it, named like it with ".lock", is locked while the store is open: two servers on one store would
take each other's work for left-overs.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from opensandboxd_server.domain.errors import BackendUnavailable, StartupError
from opensandboxd_server.domain.ports import FailureRecord, Observation, RequestRecord, SandboxRecord

T = TypeVar("T")

SCHEMA_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
  id TEXT PRIMARY KEY, revision INTEGER NOT NULL, metadata TEXT NOT NULL, expire_time INTEGER, claimed INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
  request_id TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL, body_hash TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS requests_by_sandbox ON requests (sandbox_id);
CREATE TABLE IF NOT EXISTS failures (
  id TEXT PRIMARY KEY, observation TEXT NOT NULL, keep_until INTEGER NOT NULL
) STRICT;
"""
_OBSERVATION = TypeAdapter(Observation)


class SqliteStore:
    """domain.ports.SandboxStore in the file at `path`, which is made with mode 0600, its directory with 0700."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection
        self._lock: int

    async def open(self) -> None:
        """StartupError when the file cannot be used."""
        try:
            await self._run(self._open)
        except (OSError, BackendUnavailable) as exc:
            raise StartupError(f"[store] path {self._path} cannot be used: {exc}") from exc

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(self._path)
        try:
            self._path.touch(mode=0o600)
            self._db = _connected(self._path)
        except BaseException:
            os.close(self._lock)
            raise

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        self._db.close()
        os.close(self._lock)

    async def load_records(self) -> list[SandboxRecord]:
        rows = await self._query("SELECT id, revision, metadata, expire_time, claimed FROM records")
        return [
            SandboxRecord(
                id,
                revision,
                json.loads(metadata),
                _time(expire_time) if expire_time is not None else None,
                bool(claimed),
            )
            for id, revision, metadata, expire_time, claimed in rows
        ]

    async def compare_and_set(self, record: SandboxRecord, expected_revision: int) -> bool:
        return await self._run(self._compare_and_set, record, expected_revision)

    def _compare_and_set(self, record: SandboxRecord, expected_revision: int) -> bool:
        """The WHERE of either branch is the comparison: no row is written unless it holds."""
        expire_time = _microseconds(record.expire_time) if record.expire_time else None
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
        return [FailureRecord(_OBSERVATION.validate_json(text), _time(keep_until)) for text, keep_until in rows]

    async def put_failure(self, record: FailureRecord) -> None:
        text = _OBSERVATION.dump_json(record.observation).decode()
        values = (record.observation.id, text, _microseconds(record.keep_until))
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
        """BackendUnavailable STORE_UNAVAILABLE when the file cannot be read or written, as when its disk is full."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
        except sqlite3.Error as exc:
            message = f"the store {self._path} failed: {exc}; see that its disk has room and the file is sound"
            raise BackendUnavailable(message, reason="STORE_UNAVAILABLE") from exc


def _locked(store: Path) -> int:
    """The descriptor of the store's lock file: the lock goes with it, and with the process."""
    lock = os.open(store.with_name(f"{store.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartupError(
            f"another opensandboxd uses the store {store}; stop it, or give this one a [store] path of its own"
        ) from None
    return lock


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"it was written by a newer opensandboxd (schema {version}, this one knows {SCHEMA_VERSION})"
            )
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _microseconds(time: datetime) -> int:
    """Whole: a REAL would round, and the last time there is would become one that there is not."""
    return (time - _EPOCH) // _MICROSECOND


def _time(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND
