"""The composition root: builds the house from the settings, starts it, stops it. The only place that wires."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import structlog

from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.model import SandboxRuntime
from opensandboxd_server.domain.policy import Policy
from opensandboxd_server.domain.ports import Clock, SandboxDriver, SandboxStore
from opensandboxd_server.domain.runtimes import RUNTIMES, capabilities_of
from opensandboxd_server.rpc.runtime_service import RuntimeServicer
from opensandboxd_server.rpc.sandbox_service import SandboxServicer
from opensandboxd_server.rpc.server import RpcServer, Tls
from opensandboxd_server.service.creation import Creations
from opensandboxd_server.service.feed import Feed
from opensandboxd_server.service.following import Following
from opensandboxd_server.service.index import SandboxIndex
from opensandboxd_server.service.reaper import Reaper
from opensandboxd_server.service.runtime import RuntimeInfo
from opensandboxd_server.service.sandboxes import Sandboxes
from opensandboxd_server.service.tasks import Tasks
from opensandboxd_server.settings import Settings
from opensandboxd_server.store.sqlite import SqliteStore

_LEAST_PATIENCE = 2.0
"""Seconds that each part of the end is given, however short the grace is."""

log = structlog.get_logger()


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class App:
    """A running server. `await App.start(settings)`, then `port`, then `await stop()`."""

    def __init__(
        self, settings: Settings, driver: SandboxDriver, store: SandboxStore, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._store = store
        self._clock = clock or SystemClock()
        self._health = Tasks()
        self._open = AsyncExitStack()
        self._stopped = False
        self.port = 0
        """What it listens on."""

    @classmethod
    async def start(
        cls,
        settings: Settings,
        *,
        driver: SandboxDriver | None = None,
        store: SandboxStore | None = None,
        clock: Clock | None = None,
        address: str | None = None,
    ) -> App:
        """Builds and starts a server; returns when it serves. What is not given is made from the settings.
        StartupError when the settings cannot be honoured; nothing is left running then."""
        app = cls(settings, driver or driver_for(settings), store or SqliteStore(settings.store.path), clock)
        try:
            await app._start(address or settings.server.address)
        except BaseException:
            await app._open.aclose()
            raise
        return app

    async def _start(self, address: str) -> None:
        settings, driver, store, clock = self._settings, self._driver, self._store, self._clock
        await store.open()  # first: it keeps a second server away from what the first is doing
        self._open.push_async_callback(store.close)
        self._open.push_async_callback(driver.close)
        info = await driver.start()
        runtime = sandbox_runtime(settings)
        capabilities = capabilities_of(RUNTIMES[runtime.secure_runtime], info.unsupported)
        policy = Policy(settings, runtime, capabilities, info.cpus)
        index = SandboxIndex(clock)
        self._creations = Creations(
            driver,
            store,
            index,
            policy,
            clock,
            limit=settings.server.max_sandboxes or 0,
            failure_ttl=settings.pending_failure_ttl,
        )
        sandboxes = Sandboxes(driver, store, index, self._creations, policy, clock)
        reaper = Reaper(index, sandboxes, self._creations, clock)
        feed = Feed(driver, store, index, self._creations, self._on_health)
        self._rpc = RpcServer(
            SandboxServicer(self._creations, sandboxes, Following(index)),
            RuntimeServicer(RuntimeInfo(server_version(), info, runtime, capabilities)),
            api_key=settings.server.api_key.get_secret_value() if settings.server.api_key else "",
            driver=info.name,
            tls=_tls(settings),
        )
        await self._rpc.set_serving(False)
        self._open.push_async_callback(self._health.drain)
        self._open.push_async_callback(feed.close)
        await feed.start()
        self._open.push_async_callback(reaper.close)
        reaper.start()
        self._open.push_async_callback(sandboxes.drain)
        self.port = await self._rpc.start(address)
        log.info(
            "serving",
            address=address,
            port=self.port,
            driver=info.name,
            secure_runtime=runtime.secure_runtime or "runc",
        )

    async def stop(self) -> None:
        """Ends the server within `[server] graceful_shutdown_seconds`; sandboxes keep running. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        await self._rpc.begin_shutdown()
        self._creations.begin_shutdown()
        grace = self._settings.server.graceful_shutdown_seconds
        stopping = asyncio.create_task(self._rpc.stop(grace))
        await asyncio.gather(asyncio.wait([stopping], timeout=grace * 0.8), self._creations.finish(grace * 0.8))
        await _within(max(grace * 0.2, _LEAST_PATIENCE), self._roll_back(stopping))
        await _within(_LEAST_PATIENCE, self._open.aclose())
        log.info("stopped")

    async def _roll_back(self, stopping: asyncio.Task[None]) -> None:
        await self._creations.close()  # while those who wait for them can still be told
        await stopping

    def _on_health(self, healthy: bool) -> None:
        self._health.begin(self._rpc.set_serving(healthy))


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """The backend may be away, and the server ends all the same."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        log.warning("not everything ended in time; the next start sweeps what is left")


async def serve(settings: Settings) -> None:
    """Runs a server until SIGTERM or SIGINT. StartupError when the settings cannot be honoured."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    if settings.ignored_keys:
        log.info("keys of OpenSandbox that mean nothing here", keys=", ".join(settings.ignored_keys))
    if settings.runtime.execd_image:
        log.warning("[runtime] execd_image is accepted, and not injected by this version")
    app = await App.start(settings)
    await stopping.wait()
    log.info("shutting down", grace_seconds=settings.server.graceful_shutdown_seconds)
    await app.stop()


def driver_for(settings: Settings) -> SandboxDriver:
    """The driver of the configured `[runtime] type`. StartupError for what this version does not serve."""
    if settings.renew_intent.enabled:
        raise StartupError("[renew_intent] enabled: renewal on access is not served by this version; set it to false")
    if settings.runtime.type != "docker":
        raise StartupError(
            f'[runtime] type = "{settings.runtime.type}" is not served by this version; use type = "docker"'
        )
    from opensandboxd_server.drivers.docker.driver import DockerDriver
    from opensandboxd_server.drivers.docker.options import DockerOptions

    runtime = sandbox_runtime(settings)
    return DockerDriver(
        DockerOptions(
            instance=settings.server.instance,
            docker_host=settings.docker_host,
            network_mode=settings.docker.network_mode,
            host_ip=settings.docker.host_ip,
            publish_host=settings.docker.effective_publish_host,
            api_timeout=settings.docker.api_timeout,
            runtime=RUNTIMES[runtime.secure_runtime],
            oci_runtime=runtime.oci_runtime,
            apparmor=settings.docker.apparmor_profile,
        )
    )


def sandbox_runtime(settings: Settings) -> SandboxRuntime:
    """What every sandbox of a server with these settings runs under."""
    secure = settings.secure_runtime
    runtime = RUNTIMES[secure.type]
    if settings.runtime.type == "docker":
        if runtime.docker_refusal:
            raise StartupError(f'[secure_runtime] type = "{secure.type}": {runtime.docker_refusal}')
        return SandboxRuntime(secure.type, runtime.isolation, oci_runtime=secure.docker_runtime or runtime.oci_runtime)
    return SandboxRuntime(
        secure.type, runtime.isolation, runtime_class=secure.k8s_runtime_class or runtime.runtime_class
    )


def server_version() -> str:
    return version("opensandboxd-server")


def _tls(settings: Settings) -> Tls | None:
    server = settings.server
    return Tls(server.tls_cert, server.tls_key, server.tls_client_ca) if server.tls_cert and server.tls_key else None
