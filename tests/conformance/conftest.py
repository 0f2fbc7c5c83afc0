from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.conformance.house import HOUSES, House, JumpingClock
from tests.conformance.site import Site
from tests.harness import Server

_MARKS = {"fake": [], "docker": [pytest.mark.docker], "gvisor": [pytest.mark.docker, pytest.mark.gvisor]}


@pytest.fixture(scope="session", params=[pytest.param(name, marks=_MARKS[name]) for name in HOUSES])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    house = HOUSES[request.param]()
    if why := house.missing():
        pytest.skip(why)
    yield house
    house.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(house: House) -> AsyncIterator[Server]:
    async with house.open(instance="shared") as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def site(house: House, shared: Server, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A place on a server that other tests use, too."""
    site = Site(house, shared, _label(request), instance="shared")
    yield site
    await site.clean()


Opener = Callable[..., AbstractAsyncContextManager[Site]]


@pytest.fixture
def opened(house: House, request: pytest.FixtureRequest) -> Opener:
    """Opens a server that only this test uses, and gives a site on it. `store`, `clock` and `[server]` keys as given;
    sandboxes are left to the next server unless `keep` is false."""

    @asynccontextmanager
    async def open_one(instance: str = "own", keep: bool = False, **how: Any) -> AsyncIterator[Site]:
        async with house.open(instance=instance, **how) as server:
            site = Site(house, server, _label(request), instance=instance)
            try:
                yield site
            finally:
                if not keep:
                    await site.clean()

    return open_one


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


def _label(request: pytest.FixtureRequest) -> str:
    return str(request.node.originalname)[:63].strip("_")
