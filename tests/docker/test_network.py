"""What sandboxes reach: not each other, and nobody reaches them but through what they publish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from opensandboxd_server.domain.errors import FailedPrecondition, StartupError
from opensandboxd_server.domain.model import Endpoint
from opensandboxd_server.drivers.docker.container import INSTANCE
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions
from tests.docker.conftest import BOTH_RUNTIMES, Engine, plan_for, unheard

pytestmark = pytest.mark.docker

Start = Callable[[DockerOptions], Any]

SERVE = (
    "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die $!;"
    '$| = 1; print "listening\\n"; while (my $c = $s->accept) { print $c "hello\\n"; close $c }'
)
SERVER = ("perl", "-e", SERVE)
PORT = 8080


def reaches(engine: Engine, id: str, address: str) -> bool:
    """Whether a process in the container gets the greeting of who listens at the address."""
    script = f"exec 3<>/dev/tcp/{address}/{PORT} && head -n 1 <&3"
    code, output = engine.execute(id, "timeout", "2", "bash", "-c", script)
    return code == 0 and "hello" in output


def address_of(engine: Engine, id: str) -> str:
    """Of a container whose server listens; waits until it does."""
    for _ in range(100):
        if reaches(engine, id, "127.0.0.1"):
            [network] = engine.inspect(id)["NetworkSettings"]["Networks"].values()
            return str(network["IPAddress"])
    raise AssertionError("the server in the container does not listen")


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_sandboxes_do_not_reach_each_other(engine: Engine, started: Start, runtime: str) -> None:
    options = engine.options(runtime)
    driver: DockerDriver = await started(options)
    plans = [plan_for(options, *SERVER, ports=(PORT,)) for _ in range(2)]
    for plan in plans:
        await driver.create(plan, unheard)
    here, there = (plan.id for plan in plans)
    assert not reaches(engine, here, address_of(engine, there))
    assert not reaches(engine, there, address_of(engine, here))


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_containers_of_an_ordinary_network_do_reach_each_other(
    engine: Engine, started: Start, runtime: str
) -> None:
    """The control of the test above: it sees a connection where there is one."""
    options = engine.options(runtime)
    network = f"{options.instance}-ordinary"
    engine.client.create_network(network, driver="bridge", labels={INSTANCE: options.instance})
    options = engine.options(runtime, instance=options.instance, network_mode=network)
    driver: DockerDriver = await started(options)
    plans = [plan_for(options, *SERVER) for _ in range(2)]
    for plan in plans:
        await driver.create(plan, unheard)
    here, there = (plan.id for plan in plans)
    assert reaches(engine, here, address_of(engine, there))


@pytest.mark.parametrize("runtime", BOTH_RUNTIMES)
async def test_sandboxes_do_not_reach_other_networks(engine: Engine, started: Start, runtime: str) -> None:
    ours, theirs = engine.options(runtime), engine.options(runtime)
    plans = [plan_for(options, *SERVER) for options in (ours, theirs)]
    for options, plan in zip((ours, theirs), plans, strict=True):
        await (await started(options)).create(plan, unheard)
    here, there = (plan.id for plan in plans)
    assert not reaches(engine, here, address_of(engine, there))


async def test_a_published_port_is_reached_at_its_endpoint(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    plan = plan_for(options, *SERVER, ports=(PORT, 9090))
    await driver.create(plan, unheard)
    address = address_of(engine, plan.id)
    endpoint = await driver.endpoint(plan.id, PORT, internal=False)
    assert endpoint.host == "127.0.0.1"
    assert await greeting(endpoint) == b"hello\n"
    bindings = engine.inspect(plan.id)["NetworkSettings"]["Ports"]
    assert all(binding["HostIp"] == "127.0.0.1" for found in bindings.values() for binding in found)
    internal = await driver.endpoint(plan.id, 1234, internal=True)
    assert internal == Endpoint(address, 1234)
    with pytest.raises(FailedPrecondition, match=r"published: 8080, 9090.*spec\.ports") as caught:
        await driver.endpoint(plan.id, 1234, internal=False)
    assert caught.value.reason == "PORT_NOT_PUBLISHED"


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({"publish_host": "0.0.0.0"}, "127.0.0.1"),
        ({"publish_host": "127.0.0.2"}, "127.0.0.2"),
        ({"publish_host": "0.0.0.0", "host_ip": "203.0.113.7"}, "203.0.113.7"),
    ],
)
async def test_an_endpoint_is_told_with_the_configured_address(
    engine: Engine, started: Start, changes: dict[str, str], host: str
) -> None:
    options = engine.options(**changes)
    driver: DockerDriver = await started(options)
    plan = plan_for(options, ports=(PORT,))
    await driver.create(plan, unheard)
    endpoint = await driver.endpoint(plan.id, PORT, internal=False)
    assert endpoint.host == host
    assert endpoint.port > 1024


async def test_on_the_hosts_network_a_port_is_itself(engine: Engine, started: Start) -> None:
    options = engine.options(network_mode="host")
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    assert engine.inspect(plan.id)["HostConfig"]["NetworkMode"] == "host"
    assert await driver.endpoint(plan.id, 1234, internal=False) == Endpoint("127.0.0.1", 1234)


async def test_without_a_network_there_is_only_loopback(engine: Engine, started: Start) -> None:
    options = engine.options(network_mode="none")
    driver: DockerDriver = await started(options)
    plan = plan_for(options)
    await driver.create(plan, unheard)
    assert "eth0" not in engine.execute(plan.id, "cat", "/proc/net/dev")[1]
    with pytest.raises(FailedPrecondition, match="no network"):
        await driver.endpoint(plan.id, PORT, internal=True)


async def test_a_network_that_does_not_isolate_is_refused(engine: Engine, started: Start) -> None:
    options = engine.options()
    engine.client.create_network(options.network, driver="bridge", labels={INSTANCE: options.instance})
    with pytest.raises(StartupError, match=f"docker network rm {options.network}"):
        await started(options)


async def test_a_network_that_is_not_there_is_refused(engine: Engine, started: Start) -> None:
    with pytest.raises(StartupError, match="docker network create nowhere"):
        await started(engine.options(network_mode="nowhere"))


async def test_the_network_is_made_again_when_it_was_pruned(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    engine.client.remove_network(options.network)
    await driver.create(plan_for(options), unheard)
    assert engine.client.inspect_network(options.network)["Options"] == {
        "com.docker.network.bridge.enable_icc": "false"
    }


async def greeting(endpoint: Endpoint) -> bytes:
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        return await reader.readline()
    finally:
        writer.close()


async def test_a_configured_network_that_is_gone_fails_the_start_and_is_named(engine: Engine, started: Start) -> None:
    options = engine.options()
    options = replace(options, network_mode=options.instance)
    engine.client.create_network(options.network, labels={INSTANCE: options.instance})
    driver: DockerDriver = await started(options)
    engine.client.remove_network(options.network)
    with pytest.raises(FailedPrecondition, match=f"docker network create {options.network}") as caught:
        await driver.create(plan_for(options), unheard)
    assert caught.value.reason == "START_FAILED"
    assert engine.containers() == []
