"""One sandbox on a real engine, from creation to removal, under runc and gVisor."""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from opensandboxd_server.domain.errors import FailedPrecondition, InvalidArgument, NotFound
from opensandboxd_server.domain.model import ImageSource, LogChunk, LogOptions, LogStream, SandboxState
from opensandboxd_server.domain.names import new_id
from opensandboxd_server.drivers.docker.container import create_body
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions
from tests.docker.conftest import BOTH_RUNTIMES, IMAGE, Engine, plan_for, unheard

pytestmark = pytest.mark.docker

Start = Callable[[DockerOptions], Any]


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_a_created_sandbox_runs_as_planned_and_is_removed(engine: Engine, started: Start, runtime: str) -> None:
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    plan = plan_for(options, nano_cpus=500_000_000, memory_bytes=128 << 20, env={"GREETING": "hi there"})
    made = await driver.create(plan, unheard)

    assert (made.id, made.state, made.spec, made.runtime) == (plan.id, SandboxState.RUNNING, plan.spec, plan.runtime)
    inside = engine.inspect(plan.id)
    assert inside["HostConfig"]["Runtime"] == (options.oci_runtime or "runc")
    assert inside["HostConfig"]["NanoCpus"] == 500_000_000
    assert inside["HostConfig"]["Memory"] == inside["HostConfig"]["MemorySwap"] == 128 << 20
    assert engine.execute(plan.id, "bash", "-c", "echo $GREETING")[1] == "hi there\n"
    dmesg = engine.execute(plan.id, "dmesg")[1]
    assert ("Starting gVisor" in dmesg) == (runtime == "gvisor")

    assert await driver.delete(plan.id) is True
    assert engine.containers() == []
    assert await driver.delete(plan.id) is False


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_the_hardening_holds_inside(engine: Engine, started: Start, runtime: str) -> None:
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    status = engine.execute(plan.id, "cat", "/proc/self/status")[1]
    capabilities = int(re.search(r"CapBnd:\s+(\w+)", status)[1], 16)  # type: ignore[index]
    dropped = {"MKNOD": 27, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "SYS_PTRACE": 19}
    assert set(plan.security.drop_capabilities) == dropped.keys()
    assert capabilities
    assert not any(capabilities >> bit & 1 for bit in dropped.values())
    if runtime == "":
        assert re.search(r"NoNewPrivs:\s+1", status)
        forks = 'for (1..300) { my $p = fork; die "no more: $!" if !defined $p; if (!$p) { sleep 30; exit } }'
        code, output = engine.execute(plan.id, "perl", "-e", forks)
        assert code, "300 processes ran where 256 are allowed"
        assert "no more: Resource temporarily unavailable" in output


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_pause_and_resume_are_idempotent(engine: Engine, started: Start, runtime: str) -> None:
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    await driver.resume(plan.id)
    for _ in range(2):
        await driver.pause(plan.id)
        assert engine.inspect(plan.id)["State"]["Paused"]
    for _ in range(2):
        await driver.resume(plan.id)
        assert not engine.inspect(plan.id)["State"]["Paused"]


async def test_pauses_that_meet_all_succeed(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    await asyncio.gather(*(driver.pause(plan.id) for _ in range(5)))
    assert engine.inspect(plan.id)["State"]["Paused"]
    await asyncio.gather(*(driver.resume(plan.id) for _ in range(5)))
    assert not engine.inspect(plan.id)["State"]["Paused"]


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_a_paused_sandbox_is_removed_at_once(engine: Engine, started: Start, runtime: str) -> None:
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    await driver.pause(plan.id)
    async with asyncio.timeout(5):  # the engine by itself takes ten seconds under gVisor
        assert await driver.delete(plan.id) is True
    assert engine.containers() == []


async def test_what_has_ended_can_be_neither_paused_nor_resumed_nor_reached(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options, "true", ports=(8080,))
    await driver.create(plan, unheard)
    engine.client.wait(plan.id)
    for verb in (driver.pause(plan.id), driver.resume(plan.id), driver.endpoint(plan.id, 8080, internal=False)):
        with pytest.raises(FailedPrecondition, match="exited") as caught:
            await verb
        assert caught.value.reason == "INVALID_STATE"
    assert await driver.delete(plan.id) is True


async def test_what_is_not_there_is_not_found(engine: Engine, started: Start) -> None:
    driver: DockerDriver = await started(engine.options())
    id = new_id()
    for verb in (driver.pause(id), driver.resume(id), driver.endpoint(id, 80, internal=True)):
        with pytest.raises(NotFound):
            await verb
    with pytest.raises(NotFound):
        await read(driver, id)


async def test_another_servers_sandbox_is_not_found(engine: Engine, started: Start) -> None:
    theirs = engine.options()
    plan = plan_for(theirs)
    await (await started(theirs)).create(plan, unheard)
    driver: DockerDriver = await started(engine.options())
    assert await driver.delete(plan.id) is False
    with pytest.raises(NotFound):
        await driver.pause(plan.id)
    assert engine.inspect(plan.id)["State"]["Running"]


async def test_a_copy_of_a_sandboxs_labels_is_not_found(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    copy, original = new_id(), plan_for(options)
    await driver._api.create_container(copy, create_body(original, options))
    await driver._api.start_container(copy)
    container_id = engine.inspect(copy)["Id"]
    for id in (copy, container_id):
        assert await driver.delete(id) is False
        with pytest.raises(NotFound):
            await driver.pause(id)
    assert engine.inspect(copy)["State"]["Running"]


async def test_removals_that_meet_all_succeed(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    assert any(await asyncio.gather(*(driver.delete(plan.id) for _ in range(5))))
    assert engine.containers() == []


async def test_an_entry_point_that_is_not_there_is_told_in_the_engines_words(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    with pytest.raises(FailedPrecondition, match="/nonexistent") as caught:
        await driver.create(plan_for(options, "/nonexistent"), unheard)
    assert caught.value.reason == "START_FAILED"
    assert engine.containers() == []


async def test_an_image_that_says_nothing_to_run_needs_an_entry_point(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    image = f"opensandboxd-test/{options.instance}:silent"
    await driver._api.import_image(empty.getvalue(), *image.split(":"))
    try:
        plan = replace(plan_for(options, image=ImageSource(image)), entrypoint=())
        with pytest.raises(InvalidArgument, match="neither ENTRYPOINT nor CMD") as caught:
            await driver.create(plan, unheard)
    finally:
        engine.client.remove_image(image)
    assert [violation.field for violation in caught.value.violations] == ["spec.entrypoint"]


async def test_a_taken_name_is_left_to_who_has_it(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    with pytest.raises(Exception, match="already in use"):
        await driver.create(plan, unheard)
    assert engine.inspect(plan.id)["State"]["Running"]


async def test_a_platform_that_the_image_is_not_for_is_refused_by_name(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    with pytest.raises(FailedPrecondition, match="linux/s390x") as caught:
        await driver.create(replace(plan, platform=replace(driver._native, arch="s390x")), unheard)
    assert (caught.value.reason, caught.value.subject) == ("IMAGE_PULL_FAILED", IMAGE)


# Logs

WRITER = "echo one; sleep 0.4; echo two >&2; sleep 0.4; printf three"


async def read(driver: DockerDriver, id: str, options: LogOptions | None = None) -> list[LogChunk]:
    return [chunk async for chunk in driver.logs(id, options or LogOptions())]


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_following_logs_gives_each_write_and_ends_with_the_sandbox(
    engine: Engine, started: Start, runtime: str
) -> None:
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    before = datetime.now(UTC)
    plan = plan_for(options, "bash", "-c", WRITER)
    await driver.create(plan, unheard)
    chunks = await read(driver, plan.id, LogOptions(follow=True))
    written = [(LogStream.STDOUT, b"one\n"), (LogStream.STDERR, b"two\n"), (LogStream.STDOUT, b"three")]
    assert [(chunk.stream, chunk.data) for chunk in chunks] == written
    assert before < chunks[0].time < chunks[1].time < chunks[2].time < datetime.now(UTC)

    async def told(**wanted: Any) -> list[bytes]:
        return [chunk.data for chunk in await read(driver, plan.id, LogOptions(**wanted))]

    assert await told() == [b"one\n", b"two\n", b"three"]
    assert await told(tail_lines=1) == [b"three"]
    assert await told(tail_lines=0) == []
    assert await told(since=chunks[1].time) == [b"two\n", b"three"]
    assert await told(streams=frozenset({LogStream.STDERR})) == [b"two\n"]


async def test_many_logs_arrive_whole_though_read_slowly(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options, "bash", "-c", "seq 20000; head -c 100000 /dev/zero | tr '\\0' x; echo; sleep 1000")
    await driver.create(plan, unheard)
    wanted = "".join(f"{n}\n" for n in range(1, 20001)).encode() + b"x" * 100000 + b"\n"
    got = bytearray()
    async with asyncio.timeout(20), aclosing(driver.logs(plan.id, LogOptions(follow=True))) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            got += chunk.data
            if len(got) % 1000 == 0:
                await asyncio.sleep(0.001)
            if len(got) >= len(wanted):
                break
    assert got == wanted


async def test_a_follower_that_leaves_is_gone_from_the_engine(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    follower = asyncio.create_task(read(driver, plan.id, LogOptions(follow=True)))
    await asyncio.sleep(0.3)
    assert driver._api._log_streams._value == 127
    follower.cancel()
    await asyncio.wait([follower], timeout=1)
    assert follower.cancelled()
    assert driver._api._log_streams._value == 128
