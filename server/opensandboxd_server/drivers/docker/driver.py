"""Sandboxes as containers of a Docker engine: domain.ports.SandboxDriver.

Every container that is a sandbox carries its `opensandbox.io/instance` label; no other is touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import structlog

from opensandboxd_server.domain.errors import (
    BackendError,
    BackendUnavailable,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SandboxError,
    StartupError,
)
from opensandboxd_server.domain.model import Endpoint, LogChunk, LogOptions, Platform, SandboxState
from opensandboxd_server.domain.policy import SandboxPlan
from opensandboxd_server.domain.ports import DriverEvent, DriverInfo, Observation, Progress
from opensandboxd_server.drivers.docker import container, engine, logs, network
from opensandboxd_server.drivers.docker.api import DockerApi, EngineError
from opensandboxd_server.drivers.docker.events import EngineEvents
from opensandboxd_server.drivers.docker.images import PullProgress
from opensandboxd_server.drivers.docker.options import DockerOptions
from opensandboxd_server.drivers.docker.proof import prove
from opensandboxd_server.drivers.docker.removal import Removals
from opensandboxd_server.drivers.docker.state import ContainerState

_NOT_FOUND, _CONFLICT = 404, 409

log = structlog.get_logger()


class NameTaken(BackendError):
    """The engine has a container of the sandbox's name, which this creation did not make."""


class DockerDriver:
    """`api` is for tests that let the engine's calls fail."""

    def __init__(self, options: DockerOptions, api: DockerApi | None = None) -> None:
        self._options = options
        self._api = api or DockerApi(options.docker_host, options.api_timeout)
        self._removals = Removals(self._api, options.api_timeout)
        self._native = Platform()

    async def start(self) -> DriverInfo:
        try:
            return await self._start()
        except BackendUnavailable as exc:
            raise StartupError(f"{exc.message}. Start the engine, or set DOCKER_HOST to the address of one") from exc
        except SandboxError as exc:
            raise StartupError(f"the Docker engine at {self._api.address} cannot be used: {exc.message}") from exc

    async def close(self) -> None:
        try:
            await self._removals.close()
        finally:
            await self._api.close()

    async def create(self, plan: SandboxPlan, progress: Progress) -> Observation:
        body = container.create_body(plan, self._options)
        try:
            await self._make(plan, body, progress)
            await self._run(plan.id)
        except NameTaken:
            raise
        except BaseException as exc:
            unanswered = any(isinstance(error, BackendUnavailable) for error in (exc, exc.__cause__))
            await self._removals.leave_nothing(plan.id, may_appear=unanswered)
            raise
        return container.observation(body["Labels"], ContainerState(SandboxState.RUNNING, datetime.now(UTC)))

    async def delete(self, id: str) -> bool:
        try:
            found = await self._inspect(id)
        except NotFound:
            return False
        if found["State"]["Paused"]:
            await self._unfreeze(id)
        return await self._removals.remove(id)

    async def pause(self, id: str) -> None:
        await self._switch(id, to_paused=True)

    async def resume(self, id: str) -> None:
        await self._switch(id, to_paused=False)

    def events(self) -> AsyncIterator[DriverEvent]:
        return EngineEvents(self._api, self._options.instance, self._removals.is_doomed).follow()

    async def endpoint(self, id: str, port: int, *, internal: bool) -> Endpoint:
        return network.endpoint(id, await self._inspect(id), port, self._options, internal=internal)

    async def logs(self, id: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        found = await self._inspect(id)
        try:
            async with aclosing(logs.read(self._api, found["Id"], options)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except EngineError as exc:
            raise (NotFound(id) if exc.status == _NOT_FOUND else exc) from exc

    # Start

    async def _start(self) -> DriverInfo:
        await self._api.connect()
        version, info = await asyncio.gather(self._api.version(), self._api.info())
        self._native = Platform(version["Os"], version["Arch"])
        engine.check_runtime(info, self._options)
        engine.check_hardening(info, self._options)
        await network.ensure(self._api, self._options)
        for warning in engine.warnings(info, self._options):
            log.warning(warning)
        secure = bool(self._options.runtime.type)
        return DriverInfo(
            name="docker",
            version=version["Version"],
            runtimes=engine.availability(info, self._options),
            proof=await prove(self._api, self._removals, self._options, info) if secure else None,
            unsupported=engine.unsupported(info, self._options),
            cpus=info["NCPU"],
        )

    # Create

    async def _make(self, plan: SandboxPlan, body: dict[str, Any], progress: Progress) -> None:
        platform = container.platform(plan, self._native)
        try:
            await self._make_of_present_image(plan, body, platform)
        except EngineError as exc:
            if exc.status != _NOT_FOUND:
                raise
            await self._pull(plan, platform, exc.message, progress)
            progress("CREATING", "creating the container")
            await self._make_of_present_image(plan, body, platform)

    async def _make_of_present_image(self, plan: SandboxPlan, body: dict[str, Any], platform: str) -> None:
        try:
            await self._api.create_container(plan.id, body, platform)
        except EngineError as exc:
            if exc.status == _CONFLICT:
                raise NameTaken(exc.message) from exc
            if "no command specified" in exc.message.lower():
                message = "is required here: the image has neither ENTRYPOINT nor CMD"
                raise InvalidArgument.of("spec.entrypoint", message) from exc
            if plan.platform and "unknown operating system or architecture" in exc.message:
                raise InvalidArgument.of("spec.platform", exc.message) from exc
            raise

    async def _pull(self, plan: SandboxPlan, platform: str, why: str, progress: Progress) -> None:
        """`why` is what the engine said of the image it has, or has not."""
        watch = PullProgress(plan.image.uri, progress)
        watch.take([])
        try:
            async with self._api.pull(plan.image.uri, plan.image.auth, platform) as stream:
                while batch := await stream.next_batch():
                    watch.take(batch)
        except EngineError as exc:
            watch.error = exc.message
        if watch.error:
            raise FailedPrecondition(
                "IMAGE_PULL_FAILED",
                f"cannot pull {plan.image.uri} for {platform}: {watch.error} (the engine's own images: {why}). "
                "Check spec.image.uri, and spec.image.auth if the registry wants credentials",
                subject=plan.image.uri,
            )

    async def _run(self, id: str) -> None:
        try:
            await self._start_container(id)
        except EngineError as exc:
            raise FailedPrecondition("START_FAILED", f"the sandbox did not start: {exc.message}", subject=id) from exc

    async def _start_container(self, id: str) -> None:
        try:
            await self._api.start_container(id)
        except EngineError as exc:
            if exc.status != _NOT_FOUND or self._options.network not in exc.message:
                raise
            log.warning("the sandboxes' network is gone", network=self._options.network)
            try:
                await network.ensure(self._api, self._options)
            except StartupError as missing:
                raise FailedPrecondition("START_FAILED", str(missing), subject=id) from exc
            await self._api.start_container(id)

    # Pause and resume

    async def _switch(self, id: str, *, to_paused: bool) -> None:
        if await self._is_paused(id) == to_paused:
            return
        try:
            await (self._api.pause_container if to_paused else self._api.unpause_container)(id)
        except EngineError:
            if await self._is_paused(id) != to_paused:
                raise

    async def _is_paused(self, id: str) -> bool:
        """FailedPrecondition INVALID_STATE when it neither runs nor is paused."""
        state = (await self._inspect(id))["State"]
        if not state["Running"]:
            message = f"sandbox {id} is {state['Status']}; only a running or paused one can be paused or resumed"
            raise FailedPrecondition("INVALID_STATE", message, subject=id)
        return bool(state["Paused"])

    async def _unfreeze(self, id: str) -> None:
        """Under gVisor the engine waits ten seconds for a frozen container to die, in vain."""
        try:
            await self._api.unpause_container(id)
        except (EngineError, ResourceExhausted) as exc:
            log.info("paused sandbox not thawed before its removal", sandbox_id=id, error=exc.message)

    # How

    async def _inspect(self, id: str) -> dict[str, Any]:
        """NotFound also when the container of that name is not this server's, or only carries a sandbox's labels."""
        found = await self._api.inspect_container(id)
        labels = (found["Config"]["Labels"] or {}) if found else {}
        ours = labels.get(container.INSTANCE) == self._options.instance and labels.get(container.ID) == id
        if not found or not ours or found["Name"] != f"/{id}":
            raise NotFound(id)
        return found
