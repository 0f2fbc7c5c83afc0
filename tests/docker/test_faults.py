"""A creation that fails at any call of the engine, or whose caller gives up at any, leaves nothing on the engine.

Asserted of a whole engine that nobody else uses: no container, no volume, no network but the server's own.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import docker
import pytest

from opensandboxd_server.domain.errors import BackendError, BackendUnavailable, SandboxError
from opensandboxd_server.domain.model import ImageSource
from opensandboxd_server.domain.policy import SandboxPlan
from opensandboxd_server.domain.ports import Relisted
from opensandboxd_server.drivers.docker.api import DockerApi
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions
from tests.docker.conftest import Engine, PrivateEngine, plan_for, unheard

pytestmark = pytest.mark.docker

T = TypeVar("T")
Private = tuple[PrivateEngine, Engine]
CREATE, START = 0, 1
SCENARIOS = {"the usual": 2, "the network was pruned": 5}
"""How many calls of the engine a creation takes."""


class FaultyApi(DockerApi):
    """Lets calls fail or wait, by their number since `arm`, before or after they take effect."""

    def __init__(self, options: DockerOptions) -> None:
        super().__init__(options.docker_host, options.api_timeout)
        self.arm(frozenset())

    def arm(self, failing: frozenset[int], after: bool = False, error: SandboxError | None = None) -> None:
        self.calls = 0
        self._failing = failing
        self._after = after
        self._error = error or BackendError("injected")
        self.reached = asyncio.Event()
        self.hold = -1

    async def call(self, work: Callable[[docker.APIClient], T]) -> T:
        number = self.calls
        self.calls += 1
        if number in self._failing and not self._after:
            raise self._error
        if number == self.hold:
            self.reached.set()
        try:
            return await super().call(work)
        finally:
            if number in self._failing:
                raise self._error


@asynccontextmanager
async def faulty(options: DockerOptions) -> AsyncIterator[tuple[DockerDriver, FaultyApi]]:
    api = FaultyApi(options)
    driver = DockerDriver(options, api)
    await driver.start()
    try:
        yield driver, api
    finally:
        await driver.close()


def left_over(engine: Engine, options: DockerOptions) -> list[str]:
    """Everything on the engine that was not there at first."""
    client = engine.client
    containers = [name for found in client.containers(all=True) for name in found["Names"]]
    volumes = [found["Name"] for found in client.volumes()["Volumes"] or []]
    own = {"bridge", "host", "none", options.network}
    networks = [found["Name"] for found in client.networks() if found["Name"] not in own]
    return containers + volumes + networks


def prepare(engine: Engine, options: DockerOptions, scenario: str) -> None:
    if scenario == "the network was pruned":
        engine.client.remove_network(options.network)


async def settle(check: Callable[[], bool], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not check():  # noqa: ASYNC110 # it is the engine that is waited for
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_number_of_calls_is_what_the_tests_below_think(private_engine: Private, scenario: str) -> None:
    _, engine = private_engine
    options = engine.options()
    async with faulty(options) as (driver, api):
        prepare(engine, options, scenario)
        api.arm(frozenset())
        plan = plan_for(options)
        await driver.create(plan, unheard)
        assert api.calls == SCENARIOS[scenario]
        assert len(left_over(engine, options)) == 2, "the container, and the volume that its image declares"
        await driver.delete(plan.id)
        assert left_over(engine, options) == []


@pytest.mark.parametrize("after", [False, True], ids=["before it takes effect", "after it took effect"])
@pytest.mark.parametrize(
    ("scenario", "call"), [(scenario, call) for scenario, calls in SCENARIOS.items() for call in range(calls)]
)
async def test_whichever_call_fails_nothing_is_left(
    private_engine: Private, scenario: str, call: int, after: bool
) -> None:
    _, engine = private_engine
    options = engine.options()
    async with faulty(options) as (driver, api):
        prepare(engine, options, scenario)
        api.arm(frozenset({call}), after)
        with pytest.raises(SandboxError, match="injected"):
            await driver.create(plan_for(options), unheard)
        assert left_over(engine, options) == []


@pytest.mark.parametrize("call", [CREATE, START])
async def test_a_clean_up_that_fails_too_is_tried_again(private_engine: Private, call: int) -> None:
    _, engine = private_engine
    options = engine.options()
    async with faulty(options) as (driver, api):
        api.arm(frozenset({call, call + 1, call + 2}), after=call == CREATE)
        with pytest.raises(SandboxError, match="injected"):
            await driver.create(plan_for(options), unheard)
        assert left_over(engine, options) == []


async def test_a_clean_up_that_goes_on_failing_is_ended_in_the_background_and_not_listed_meanwhile(
    private_engine: Private,
) -> None:
    _, engine = private_engine
    options = engine.options()
    async with faulty(options) as (driver, api):
        api.arm(frozenset(range(START, START + 6)))
        plan = plan_for(options)
        with pytest.raises(SandboxError, match="injected"):
            await driver.create(plan, unheard)
        assert left_over(engine, options) != []
        api.arm(frozenset())
        events = driver.events()
        assert isinstance(listed := await anext(events), Relisted)
        assert listed.sandboxes == ()
        await events.aclose()  # type: ignore[attr-defined]
        await settle(lambda: left_over(engine, options) == [])


async def test_a_creation_that_the_engine_did_not_answer_is_removed_when_it_appears(private_engine: Private) -> None:
    _, engine = private_engine
    options = engine.options(api_timeout=5)
    async with faulty(options) as (driver, api):
        api.arm(frozenset({CREATE}), error=BackendUnavailable("no answer"))
        plan = plan_for(options)
        creation = asyncio.create_task(driver.create(plan, unheard))
        await asyncio.sleep(0.2)
        late = engine.client.create_container(plan.image.uri, ["true"], name=plan.id)
        with pytest.raises(BackendUnavailable, match="no answer"):
            await creation
        assert late["Id"]
        await settle(lambda: left_over(engine, options) == [])


@pytest.mark.parametrize("call", [CREATE, START])
async def test_whichever_call_its_caller_gives_up_in_nothing_is_left(private_engine: Private, call: int) -> None:
    _, engine = private_engine
    options = engine.options()
    async with faulty(options) as (driver, api):
        for delay in (0, 0.005, 0.05):
            api.arm(frozenset())
            api.hold = call
            creation = asyncio.create_task(driver.create(plan_for(options), unheard))
            await api.reached.wait()
            await asyncio.sleep(delay)
            for _ in range(3):  # however often
                creation.cancel()
                await asyncio.sleep(0.01)
            await asyncio.wait([creation])
            assert creation.cancelled()
            assert left_over(engine, options) == []


async def test_a_creation_whose_engine_dies_is_gone_when_it_is_back(private_engine: Private) -> None:
    daemon, engine = private_engine
    options = engine.options(api_timeout=2)
    async with faulty(options) as (driver, _):
        plan: SandboxPlan = plan_for(options)
        with daemon.hanging(), pytest.raises(BackendUnavailable):
            await driver.create(plan, unheard)
        await settle(lambda: not driver._removals.is_doomed(plan.id), within=20)
        assert left_over(engine, options) == []


async def test_a_failed_pull_makes_nothing(private_engine: Private) -> None:
    _, engine = private_engine
    options = engine.options()
    async with faulty(options) as (driver, api):
        api.arm(frozenset())
        with pytest.raises(SandboxError, match="cannot pull"):
            await driver.create(plan_for(options, image=ImageSource("127.0.0.1:1/nothing")), unheard)
        assert left_over(engine, options) == []


CLOSING = """
import asyncio, sys
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions

async def main():
    driver = DockerDriver(DockerOptions(sys.argv[2], docker_host=sys.argv[1], api_timeout=60))
    await driver.start()
    print("started", flush=True)
    sys.stdin.readline()
    call = asyncio.create_task(driver.pause("sbx-of-nobody"))
    removal = asyncio.create_task(driver._removals.leave_nothing("sbx-of-nobody"))
    await asyncio.sleep(0.3)
    call.cancel()
    await driver.close()
    await asyncio.wait([call, removal])

asyncio.run(main())
"""


def test_a_hung_engine_does_not_keep_the_process_from_its_end(private_engine: Private) -> None:
    daemon, engine = private_engine
    arguments = [sys.executable, "-c", CLOSING, daemon.host, engine.options().instance]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"started\n"
        with daemon.hanging():
            try:
                process.communicate(b"\n", timeout=10)
            finally:
                process.kill()
    assert process.returncode == 0
