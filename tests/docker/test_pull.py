"""Images that the engine does not have, pulled from a registry that wants a password."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from opensandboxd_server.domain.errors import FailedPrecondition
from opensandboxd_server.domain.model import ImageSource, RegistryAuth
from opensandboxd_server.drivers.docker import kernelprobe
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions
from tests.docker import registry
from tests.docker.conftest import Engine, plan_for, unheard
from tests.docker.registry import Registry

pytestmark = pytest.mark.docker

Start = Callable[[DockerOptions], Any]
PROBE = Path(kernelprobe.__file__).with_name("probe-amd64")
AUTH = RegistryAuth(registry.USER, registry.PASSWORD)


@pytest.fixture
def served(engine: Engine) -> Iterator[Registry]:
    """A registry with an image of two layers that the engine has never seen."""
    with registry.serving() as serving:
        serving.put([{"probe": PROBE.read_bytes()}, {"noise": registry.noise(6_000_000)}], ["/probe"])
        yield serving
        engine.clean()
        for image in engine.client.images(serving.image):
            engine.client.remove_image(image["Id"], force=True)


async def test_an_absent_image_is_pulled_with_the_callers_credentials(
    engine: Engine,
    started: Start,
    served: Registry,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    structlog.reset_defaults()
    served.pace = 0.05
    options = engine.options()
    driver: DockerDriver = await started(options)
    heard: list[tuple[str, str]] = []
    plan = plan_for(options, "/probe", image=ImageSource(served.image, AUTH))
    made = await driver.create(plan, lambda reason, message: heard.append((reason, message)))

    assert made.id == plan.id
    assert served.refused, "the registry never asked for credentials"
    pulling = [message for reason, message in heard if reason == "IMAGE_PULLING"]
    assert pulling[0] == f"pulling {served.image}"
    assert any("of 2 layers, " in message and message.endswith("of 6.0 MB") for message in pulling)
    assert 3 <= len(pulling) <= 12, "a quarter of a second apart, for a second and a half"
    assert heard[-1][0] == "CREATING"
    told = caplog.text + "".join(capfd.readouterr()) + str(engine.inspect(plan.id)) + repr(plan) + str(heard)
    assert registry.PASSWORD not in told

    served.requests.clear()
    await driver.create(plan_for(options, "/probe", image=ImageSource(served.image)), unheard)
    assert served.requests == [], "the image was there"


@pytest.mark.parametrize("auth", [None, RegistryAuth("robot", "wrong")], ids=["none", "wrong"])
async def test_without_the_right_credentials_the_pull_fails_and_says_what_to_check(
    engine: Engine, started: Start, served: Registry, auth: RegistryAuth | None
) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    with pytest.raises(FailedPrecondition, match=r"spec\.image\.auth") as caught:
        await driver.create(plan_for(options, image=ImageSource(served.image, auth)), unheard)
    assert (caught.value.reason, caught.value.subject) == ("IMAGE_PULL_FAILED", served.image)
    assert "wrong" not in caught.value.message
    assert engine.containers() == []


async def test_a_registry_out_of_reach_is_a_failed_pull(engine: Engine, started: Start) -> None:
    options = engine.options()
    driver: DockerDriver = await started(options)
    with pytest.raises(FailedPrecondition, match="connection refused") as caught:
        await driver.create(plan_for(options, image=ImageSource("127.0.0.1:1/team/app")), unheard)
    assert caught.value.reason == "IMAGE_PULL_FAILED"


async def test_a_layer_that_breaks_off_is_a_failed_pull(engine: Engine, started: Start, served: Registry) -> None:
    layer = max(served.blobs, key=lambda digest: len(served.blobs[digest]))
    del served.blobs[layer]
    options = engine.options()
    driver: DockerDriver = await started(options)
    with pytest.raises(FailedPrecondition) as caught:
        await driver.create(plan_for(options, image=ImageSource(served.image, AUTH)), unheard)
    assert caught.value.reason == "IMAGE_PULL_FAILED"
    assert engine.containers() == []


@pytest.mark.parametrize("when", ["before the registry answers", "while layers come"])
async def test_a_pull_whose_caller_gives_up_ends_at_once_and_leaves_nothing(
    engine: Engine, started: Start, served: Registry, when: str
) -> None:
    if when == "before the registry answers":
        served.silent.set()
    served.pace = 0.3
    options = engine.options()
    driver: DockerDriver = await started(options)
    pulling = asyncio.Event()

    def progress(reason: str, message: str) -> None:
        if served.silent.is_set() or "layers" in message:
            pulling.set()

    plan = plan_for(options, image=ImageSource(served.image, AUTH))
    creation = asyncio.create_task(driver.create(plan, progress))
    async with asyncio.timeout(10):
        await pulling.wait()
    await asyncio.sleep(0.3)
    creation.cancel()
    await asyncio.wait([creation], timeout=2)
    assert creation.cancelled()
    assert engine.containers() == []
    if when == "while layers come":
        served.pace = 0
        await asyncio.sleep(1.5)
        assert engine.client.images(served.image) == [], "the engine went on pulling"
