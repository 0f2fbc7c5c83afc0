"""The SQLite store: a row that was acknowledged survives kill -9; a file that cannot be used is a failed start."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.ports import SandboxRecord
from opensandboxd_server.store.sqlite import SCHEMA_VERSION, SqliteStore

WRITER = """
import asyncio, sys
from pathlib import Path
from opensandboxd_server.domain.ports import RequestRecord, SandboxRecord
from opensandboxd_server.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    n = 0
    while True:
        n += 1
        assert await store.compare_and_set(SandboxRecord("sbx-1", n, {"n": str(n)}, None), n - 1)
        await store.put_request(RequestRecord(f"r{n}", f"sbx-{n}", "hash"))
        if n % 3 == 0:
            await store.forget([f"sbx-{n - 1}"])
        print(n, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("lifetime", [0.0, 0.05, 0.2])
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, lifetime: float) -> None:
    path = tmp_path / "store.db"
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, path, stdout=asyncio.subprocess.PIPE, limit=2**24
    )
    assert writer.stdout
    first = await writer.stdout.readline()
    await asyncio.sleep(lifetime)
    writer.kill()
    lines = [first, *(await writer.stdout.read()).splitlines(keepends=True)]
    await writer.wait()
    last = int([line for line in lines if line.endswith(b"\n")][-1])

    store = SqliteStore(path)
    await store.open()
    [record] = await store.load_records()
    requests = {request.request_id for request in await store.load_requests()}
    assert last <= record.revision <= last + 1
    assert record.metadata == {"n": str(record.revision)}
    forgotten = {f"r{n}" for n in range(2, last + 2, 3)}
    assert {f"r{n}" for n in range(1, last + 1)} - forgotten <= requests
    assert not requests & {f"r{n}" for n in range(2, last, 3)}
    assert await store.compare_and_set(SandboxRecord("sbx-1", record.revision + 1, {}, None), record.revision)
    await store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "private" / "store.db"
    store = SqliteStore(path)
    await store.open()
    await store.compare_and_set(SandboxRecord("sbx-1", 1, {}, datetime.now(UTC)), 0)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in [path.parent, *path.parent.iterdir()]}
    await store.close()

    assert modes.pop("private") == 0o700
    assert modes
    assert set(modes.values()) == {0o600}


async def test_a_file_of_a_newer_server_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()

    with pytest.raises(StartupError, match="newer"):
        await SqliteStore(path).open()

    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("kind", ["directory", "garbage", "below a file"])
async def test_a_path_that_cannot_be_used_is_a_failed_start_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store.db"
    if kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"this is no database" * 100)
    if kind == "below a file":
        path = path / "store.db"

    with pytest.raises(StartupError, match=r"\[store\] path .*store\.db"):
        await SqliteStore(path).open()


async def test_the_store_can_be_read_while_it_is_open(tmp_path: Path) -> None:
    """For backups: nothing holds the file for itself."""
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    await store.open()
    await store.compare_and_set(SandboxRecord("sbx-1", 1, {}, None), 0)
    db = sqlite3.connect(path)
    assert db.execute("SELECT id FROM records").fetchall() == [("sbx-1",)]
    db.close()
    await store.close()
