from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from opensandboxd import AsyncClient, Client
from tests.client.scripted import ScriptedServer, scripted_server


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPEN_SANDBOX_DOMAIN", raising=False)
    monkeypatch.delenv("OPEN_SANDBOX_API_KEY", raising=False)


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def server(scripted: ScriptedServer) -> ScriptedServer:
    return scripted


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, api_key="k3y") as client:
        yield client


@pytest.fixture
def sync_client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.target, api_key="k3y") as client:
        yield client
