"""What the driver tells of sandboxes that change, also behind its back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from opensandboxd_server.domain.model import SandboxState
from opensandboxd_server.domain.ports import DriverEvent, Gone, Lost, Observation, Relisted, Seen
from opensandboxd_server.drivers.docker.api import DockerApi
from opensandboxd_server.drivers.docker.container import create_body
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions
from tests.docker.conftest import BOTH_RUNTIMES, IMAGE, Engine, PrivateEngine, plan_for, unheard

pytestmark = pytest.mark.docker

Start = Callable[[DockerOptions], Any]


class Heard:
    """The events of one driver, in order."""

    def __init__(self) -> None:
        self.events: list[DriverEvent] = []
        self._came = asyncio.Event()

    def add(self, event: DriverEvent) -> None:
        self.events.append(event)
        self._came.set()

    async def until(self, matches: Callable[[DriverEvent], bool], within: float = 10.0) -> Any:
        """The first event that matches and has not been waited for; those before it are forgotten."""
        async with asyncio.timeout(within):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    if matches(event):
                        return event
                self._came.clear()
                await self._came.wait()

    async def state(self, id: str, state: SandboxState, within: float = 10.0) -> Observation:
        def matches(event: DriverEvent) -> bool:
            return isinstance(event, Seen) and event.sandbox.id == id and event.sandbox.state is state

        found: Observation = (await self.until(matches, within)).sandbox
        return found

    async def relisted(self, within: float = 10.0) -> dict[str, Observation]:
        event: Relisted = await self.until(lambda event: isinstance(event, Relisted), within)
        return {sandbox.id: sandbox for sandbox in event.sandboxes}


@asynccontextmanager
async def hearing(driver: DockerDriver) -> AsyncIterator[Heard]:
    heard = Heard()

    async def listen() -> None:
        async for event in driver.events():
            heard.add(event)

    task = asyncio.create_task(listen())
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), task.exception()


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_a_sandboxs_life_is_told_in_order(engine: Engine, started: Start, runtime: str) -> None:
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    plan = plan_for(options, metadata={"team": "blue"})
    async with hearing(driver) as heard:
        assert await heard.relisted() == {}
        made = await driver.create(plan, unheard)
        seen = await heard.state(plan.id, SandboxState.RUNNING)
        assert replace(seen, state_time=made.state_time) == made
        await driver.pause(plan.id)
        paused = await heard.state(plan.id, SandboxState.PAUSED)
        await driver.resume(plan.id)
        resumed = await heard.state(plan.id, SandboxState.RUNNING)
        assert seen.state_time < paused.state_time < resumed.state_time
        await driver.delete(plan.id)
        await heard.until(lambda event: event == Gone(plan.id))


GREEDY = "exec perl -e 'sleep 1; $x = q(a) x 200_000_000; sleep 1000'"  # one process, so that it is the one killed
ENDINGS = {
    "exit 0": ("true", SandboxState.TERMINATED, "ENTRYPOINT_EXITED", 0),
    "exit 3": ("exit 3", SandboxState.FAILED, "ENTRYPOINT_EXITED", 3),
    "out of memory": (GREEDY, SandboxState.FAILED, "OOM_KILLED", 137),
}


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
@pytest.mark.parametrize("ending", ENDINGS)
async def test_an_end_is_told_with_its_reason(engine: Engine, started: Start, ending: str, runtime: str) -> None:
    script, state, reason, code = ENDINGS[ending]
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    plan = plan_for(options, "bash", "-c", script, memory_bytes=32 << 20)
    async with hearing(driver) as heard:
        await driver.create(plan, unheard)
        ended = await heard.state(plan.id, state, within=30)
        if ending == "out of memory":
            assert "more memory than its limit of 33554432 bytes" in ended.message
        if (runtime, reason, ended.reason) != ("gvisor", "OOM_KILLED", "KILLED"):  # the engine may miss it there
            assert ended.reason == reason
        assert ended.exit_code == code
    async with hearing(driver) as heard:  # a late start event does not bring it back
        assert (await heard.relisted())[plan.id] == ended
        await asyncio.sleep(0.3)
        assert all(event.sandbox == ended for event in heard.events if isinstance(event, Seen))


async def test_what_others_do_is_told_within_a_second(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plans = [plan_for(options) for _ in range(2)]
    for plan in plans:
        await driver.create(plan, unheard)
    async with hearing(driver) as heard:
        assert set(await heard.relisted()) == {plan.id for plan in plans}
        engine.client.kill(plans[0].id)
        killed = await heard.state(plans[0].id, SandboxState.FAILED, within=1)
        assert (killed.reason, killed.exit_code) == ("KILLED", 137)
        engine.client.remove_container(plans[1].id, force=True)
        await heard.until(lambda event: event == Gone(plans[1].id), within=1)


async def test_servers_on_one_engine_hear_only_of_their_own(engine: Engine, started: Start) -> None:
    ours, theirs = engine.options(), engine.options()
    our_driver, their_driver = await started(ours), await started(theirs)
    async with hearing(our_driver) as we_hear, hearing(their_driver) as they_hear:
        await we_hear.relisted()
        await they_hear.relisted()
        plan = plan_for(ours)
        await our_driver.create(plan, unheard)
        await we_hear.state(plan.id, SandboxState.RUNNING)
        await asyncio.sleep(0.3)
        assert they_hear.events == []
    async with hearing(their_driver) as they_hear:
        assert await they_hear.relisted() == {}


async def test_a_container_that_only_carries_the_label_is_passed_over(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    label = {"opensandbox.io/instance": options.instance}
    made = engine.client.create_container(IMAGE, ["sleep", "100"], labels=label)
    engine.client.start(made["Id"])
    async with hearing(driver) as heard:
        assert await heard.relisted() == {}
        engine.client.kill(made["Id"])
        await asyncio.sleep(0.3)
        assert heard.events == []


async def test_a_creation_that_never_started_is_listed_as_pending(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver._api.create_container(plan.id, create_body(plan, options))
    async with hearing(driver) as heard:
        listed = (await heard.relisted())[plan.id]
        assert (listed.state, listed.reason) == (SandboxState.PENDING, "CREATING")


# An engine that goes away

TRAPPING = ("bash", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # docker-py: sockets that did not connect
async def test_a_restarted_engine_is_lost_once_and_listed_again(
    private_engine: tuple[PrivateEngine, Engine], started: Start
) -> None:
    daemon, engine = private_engine
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options, *TRAPPING)
    async with hearing(driver) as heard:
        await heard.relisted()
        await driver.create(plan, unheard)
        await heard.state(plan.id, SandboxState.RUNNING)
        await asyncio.to_thread(daemon.stop)
        await heard.until(lambda event: isinstance(event, Lost))
        await asyncio.sleep(1)
        assert not [event for event in heard.events if isinstance(event, Lost)]
        await asyncio.to_thread(daemon.start)
        found = (await heard.relisted())[plan.id]
        assert (found.state, found.exit_code) == (SandboxState.FAILED, 3)
        again = plan_for(options)
        await driver.create(again, unheard)
        await heard.state(again.id, SandboxState.RUNNING)


async def test_an_engine_that_hangs_is_lost(private_engine: tuple[PrivateEngine, Engine], started: Start) -> None:
    daemon, engine = private_engine
    driver: DockerDriver = await started(engine.options(api_timeout=1))
    async with hearing(driver) as heard:
        await heard.relisted()
        with daemon.hanging():
            await heard.until(lambda event: isinstance(event, Lost), within=10)
        await heard.relisted()


async def test_a_copy_of_a_sandboxs_labels_is_not_the_sandbox(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    async with hearing(driver) as heard:
        await heard.relisted()
        await driver.create(plan, unheard)
        await heard.state(plan.id, SandboxState.RUNNING)
        copy = create_body(plan, options) | {"Entrypoint": ["false"]}
        name = f"copy-of-{plan.id}"
        await driver._api.create_container(name, copy)
        await driver._api.start_container(name)
        await driver._api.wait_container(name, timeout=10)
        await driver._api.remove_container(name)
        await driver.pause(plan.id)

        told = [await heard.until(lambda event: True)]
    assert [(type(event), event.sandbox.state) for event in told] == [(Seen, SandboxState.PAUSED)]


@pytest.mark.parametrize("label", ["opensandbox.io/create-time", "opensandbox.io/spec", "opensandbox.io/runtime"])
async def test_a_container_with_odd_labels_is_no_sandbox_and_hides_none(
    engine: Engine, started: Start, label: str
) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    odd, plan = plan_for(options), plan_for(options)
    body = create_body(odd, options)
    body["Labels"][label] = "2026-01-01T00:00:00"
    await driver._api.create_container(odd.id, body)
    await driver._api.start_container(odd.id)
    async with hearing(driver) as heard:
        assert await heard.relisted() == {}
        await driver.create(plan, unheard)
        await heard.state(plan.id, SandboxState.RUNNING)


class OddApi(DockerApi):
    """Of an engine whose first listing lacks a key."""

    listings = 0

    async def list_containers(self, label: str) -> list[dict[str, Any]]:
        self.listings += 1
        listed = await super().list_containers(label)
        return [{"Id": "odd"}] if self.listings == 1 else listed


async def test_an_odd_answer_is_a_loss_and_not_the_end_of_the_events(engine: Engine) -> None:
    options = engine.options()
    driver = DockerDriver(options, OddApi(options.docker_host, options.api_timeout))
    await driver.start()
    try:
        async with hearing(driver) as heard:
            await heard.until(lambda event: isinstance(event, Lost))
            assert await heard.relisted() == {}
    finally:
        await driver.close()
