"""A store that forgets everything at the end of the process: for tests, and for trying things out."""

from __future__ import annotations

from opensandboxd_server.domain.ports import FailureRecord, RequestRecord, SandboxRecord


class MemoryStore:
    """domain.ports.SandboxStore in dictionaries."""

    def __init__(self) -> None:
        self._records: dict[str, SandboxRecord] = {}
        self._requests: dict[str, RequestRecord] = {}
        self._failures: dict[str, FailureRecord] = {}

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def load_records(self) -> list[SandboxRecord]:
        return list(self._records.values())

    async def compare_and_set(self, record: SandboxRecord, expected_revision: int) -> bool:
        stored = self._records.get(record.id)
        if (stored.revision if stored else 0) != expected_revision or (stored and stored.claimed):
            return False
        self._records[record.id] = record
        return True

    async def load_requests(self) -> list[RequestRecord]:
        return list(self._requests.values())

    async def put_request(self, record: RequestRecord) -> None:
        self._requests[record.request_id] = record

    async def load_failures(self) -> list[FailureRecord]:
        return list(self._failures.values())

    async def put_failure(self, record: FailureRecord) -> None:
        self._failures[record.observation.id] = record

    async def drop_failure(self, id: str) -> None:
        self._failures.pop(id, None)

    async def forget(self, ids: list[str]) -> None:
        for id in ids:
            self._records.pop(id, None)
            self._failures.pop(id, None)
        self._requests = {key: request for key, request in self._requests.items() if request.sandbox_id not in ids}
