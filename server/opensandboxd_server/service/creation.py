"""Creating sandboxes: admission, request ids, and the promise that a failed or abandoned creation leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from enum import Enum

import structlog

from opensandboxd_server.domain.errors import (
    Aborted,
    AlreadyExists,
    BackendError,
    BackendUnavailable,
    ResourceExhausted,
    SandboxError,
)
from opensandboxd_server.domain.model import CreateRequest, ReturnWhen, Sandbox, SandboxState, SandboxStatus
from opensandboxd_server.domain.names import new_id
from opensandboxd_server.domain.policy import Policy, SandboxPlan
from opensandboxd_server.domain.ports import (
    Clock,
    FailureRecord,
    Observation,
    RequestRecord,
    SandboxDriver,
    SandboxStore,
)
from opensandboxd_server.service.index import SandboxIndex
from opensandboxd_server.service.tasks import Tasks

log = structlog.get_logger()

_FAILURE_REASONS = {
    "IMAGE_PULL_FAILED": "IMAGE_PULL_FAILED",
    "START_FAILED": "START_FAILED",
    "SHUTTING_DOWN": "CREATE_INTERRUPTED",
}
"""What becomes of an error's reason in the status of a failed creation; of any other, CREATE_FAILED."""

_INTERRUPTED = "the server ended while the sandbox was being created; create it again"


MAX_FAILURES = 1000
"""Failed creations kept to be read, at most: the oldest make room."""


@dataclass(eq=False)
class Creation:
    """One creation at work. Callers join it; the last one to leave ends it, unless it was detached (ACCEPTED)."""

    plan: SandboxPlan
    detached: bool
    task: asyncio.Task[Sandbox] = field(init=False)
    waiters: int = 0
    abandoned: SandboxError | None = None
    end_reason: str = "CREATE_FAILED"

    def abandon(self, why: SandboxError, end_reason: str = "CREATE_FAILED") -> None:
        """Ends the work; what it has made so far is removed before the task is done. `end_reason` is for the status."""
        if not self.abandoned and not self.task.done():
            self.abandoned, self.end_reason = why, end_reason
            self.task.cancel()


class Creations:
    """`failure_ttl` is how many seconds a failed ACCEPTED creation can be read; `limit` 0 is no limit of sandboxes."""

    def __init__(
        self,
        driver: SandboxDriver,
        store: SandboxStore,
        index: SandboxIndex,
        policy: Policy,
        clock: Clock,
        *,
        limit: int = 0,
        failure_ttl: float = 3600.0,
    ) -> None:
        self._driver = driver
        self._store = store
        self._index = index
        self._policy = policy
        self._clock = clock
        self._limit = limit
        self._failure_ttl = timedelta(seconds=failure_ttl)
        self._running: dict[str, Creation] = {}
        self._requests: dict[str, RequestRecord] = {}
        self._request_of: dict[str, str] = {}
        self._failures: dict[str, FailureRecord] = {}
        self._tasks = Tasks()
        self._closing = False

    # Creating

    async def create(self, request: CreateRequest) -> Sandbox:
        """See CreateSandbox in the contract."""
        if not request.validate_only and request.request_id:
            sandbox = await self._known(request)
            if sandbox:
                return sandbox
        plan = self._policy.plan(request, new_id(), self._clock.now())
        if request.validate_only:
            return replace(_pending(plan), id="")
        creation = self._begin(plan, request)
        if creation.detached:
            return self._index.get(plan.id) or _pending(plan)
        return await self._join(creation)

    async def _known(self, request: CreateRequest) -> Sandbox | None:
        """The sandbox of an earlier call with this request id, waiting for it if need be; None when there is none."""
        while record := self._requests.get(request.request_id):
            if record.body_hash != body_hash(request):
                raise AlreadyExists(
                    "REQUEST_ID_REUSED",
                    f"request_id {request.request_id!r} was used for sandbox {record.sandbox_id} with another body; "
                    "use a new request_id for a new request",
                    sandbox_id=record.sandbox_id,
                )
            creation = self._running.get(record.sandbox_id)
            if creation and not creation.abandoned and not creation.detached:
                return await self._join(creation)
            if creation and creation.abandoned:
                await asyncio.wait([creation.task])
                continue
            sandbox = self._index.get(record.sandbox_id)
            if sandbox:
                return sandbox
            await self._forget(record.sandbox_id)
        return None

    def _begin(self, plan: SandboxPlan, request: CreateRequest) -> Creation:
        if self._closing:
            raise shutting_down()
        if self._limit and len(self._index) - len(self._failures) >= self._limit:
            raise ResourceExhausted(
                "SANDBOX_LIMIT",
                f"this server takes {self._limit} sandboxes at most ([server] max_sandboxes); delete some, or retry",
                subject="max_sandboxes",
            )
        creation = Creation(plan, request.return_when is ReturnWhen.ACCEPTED)
        record = RequestRecord(request.request_id, plan.id, body_hash(request)) if request.request_id else None
        if record:
            self._remember(record)
        self._running[plan.id] = creation
        self._index.observe(Observation.planned(plan))
        creation.task = asyncio.create_task(self._run(creation, record))
        creation.task.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        return creation

    async def _join(self, creation: Creation) -> Sandbox:
        creation.waiters += 1
        try:
            return await asyncio.shield(creation.task)
        finally:
            creation.waiters -= 1
            if not creation.waiters and not creation.detached:
                creation.abandon(Aborted("CALLER_GONE", "every caller of this creation went away"))

    async def _run(self, creation: Creation, record: RequestRecord | None) -> Sandbox:
        plan = creation.plan
        began = self._clock.now()
        try:
            if record:
                await self._store.put_request(record)
            if creation.detached:
                await self._store.put_failure(self._interrupted(plan))
            observation = await self._driver.create(plan, lambda reason, message: self._progress(plan, reason, message))
        except asyncio.CancelledError:
            why = creation.abandoned or shutting_down()
            await self._failed(creation, why)
            raise why from None
        except Exception as exc:
            await self._failed(creation, exc if isinstance(exc, SandboxError) else BackendError(str(exc)))
            raise
        finally:
            del self._running[plan.id]
        self._index.observe(observation)
        sandbox = self._index.get(plan.id) or _pending(plan)
        if creation.detached:
            self._tasks.begin(self._store.drop_failure(plan.id))
        if self._index.is_gone(plan.id):
            await self.lost(plan.id)
        took = (self._clock.now() - began).total_seconds()
        log.info("sandbox created", sandbox_id=plan.id, image=plan.image.uri, duration_ms=round(took * 1000, 1))
        return sandbox

    async def _failed(self, creation: Creation, why: SandboxError) -> None:
        """The driver has left nothing; leave nothing here either, but what an ACCEPTED caller comes back to read."""
        id = creation.plan.id
        log.info("sandbox creation failed", sandbox_id=id, reason=why.reason, error=why.message)
        if creation.detached and not isinstance(why, Aborted):
            reason = _FAILURE_REASONS.get(why.reason, "CREATE_FAILED")
            message = _INTERRUPTED if reason == "CREATE_INTERRUPTED" else why.message
            observation = Observation.planned(creation.plan, SandboxState.FAILED, reason, message)
            await self._keep_failure(replace(observation, state_time=self._clock.now()))
            return
        await self.drop(id, creation.end_reason, why.message)

    def _progress(self, plan: SandboxPlan, reason: str, message: str) -> None:
        self._index.observe(Observation.planned(plan, SandboxState.PENDING, reason, message))

    # What else is to know about creations

    def is_running(self, id: str) -> bool:
        return id in self._running

    async def abandon(self, id: str, end_reason: str) -> None:
        """Ends the creation of this sandbox, if one is at work, and returns when nothing is left of it. `end_reason` is
        for the status: DELETED or EXPIRED."""
        if creation := self._running.get(id):
            message = f"the sandbox was removed ({end_reason}) while it was being created"
            creation.abandon(Aborted("SANDBOX_DELETED", message), end_reason)
            await asyncio.wait([creation.task])

    def is_failure(self, id: str) -> bool:
        """Whether this sandbox is a failed creation: kept to be read, nothing of it on the backend."""
        return id in self._failures

    def due_failures(self) -> list[str]:
        """The failed creations that have been kept long enough."""
        now = self._clock.now()
        return [id for id, failure in self._failures.items() if failure.keep_until <= now]

    async def lost(self, id: str) -> None:
        """The backend has the sandbox no more, and it was not this server that removed it."""
        log.warning("sandbox removed behind the server's back", sandbox_id=id)
        await self.drop(id, "REMOVED_EXTERNALLY", "somebody removed it behind the server's back")

    async def drop(self, id: str, reason: str, message: str = "") -> None:
        """The sandbox is no more, for `reason`: watches are told, and nothing of it is remembered."""
        self._index.remove(id, reason, message)
        await self._forget(id)

    async def _forget(self, id: str) -> None:
        """Drops what is remembered of a sandbox that is no more, here and in the store. Rows that the store does not
        drop now are swept at the next start: they are no reason to say that the sandbox is still there."""
        self._failures.pop(id, None)
        request_id = self._request_of.pop(id, None)
        if request_id:
            self._requests.pop(request_id, None)
        try:
            await self._store.forget([id])
        except Exception:
            log.exception("rows not dropped; the next start sweeps them", sandbox_id=id)

    # Start and end of the server

    async def restore(self, alive: set[str]) -> set[str]:
        """Takes up what the store remembers, given the ids that the backend has. Creations that the end of the server
        interrupted become failures. Returns the ids remembered that are neither alive nor failures."""
        for failure in await self._store.load_failures():
            if failure.observation.id in alive:
                await self._store.drop_failure(failure.observation.id)
            else:
                self._failures[failure.observation.id] = failure
                self._index.observe(failure.observation)
        unknown = set()
        for request in await self._store.load_requests():
            if request.sandbox_id in alive or request.sandbox_id in self._failures:
                self._remember(request)
            else:
                unknown.add(request.sandbox_id)
        return unknown

    def begin_shutdown(self) -> None:
        """Refuses new creations; those at work go on."""
        self._closing = True

    async def finish(self, timeout: float) -> None:
        """Waits until the creations at work are done, at most so many seconds."""
        running = [creation.task for creation in self._running.values()]
        if running and timeout > 0:
            await asyncio.wait(running, timeout=timeout)

    async def close(self) -> None:
        """Rolls back the creations still at work; returns when nothing of them is left."""
        running = list(self._running.values())
        for creation in running:
            creation.abandon(shutting_down())
        if running:
            await asyncio.wait([creation.task for creation in running])
        await self._tasks.drain()

    # How

    def _remember(self, record: RequestRecord) -> None:
        self._requests[record.request_id] = record
        self._request_of[record.sandbox_id] = record.request_id

    async def _keep_failure(self, observation: Observation) -> None:
        failure = FailureRecord(observation, self._clock.now() + self._failure_ttl)
        self._failures[observation.id] = failure
        self._index.observe(observation)
        while len(self._failures) > MAX_FAILURES:
            await self.drop(next(iter(self._failures)), "EXPIRED")
        await self._store.put_failure(failure)

    def _interrupted(self, plan: SandboxPlan) -> FailureRecord:
        """What to find after a restart, should this server end before the creation does."""
        observation = Observation.planned(plan, SandboxState.FAILED, "CREATE_INTERRUPTED", _INTERRUPTED)
        return FailureRecord(observation, self._clock.now() + self._failure_ttl)


def shutting_down() -> BackendUnavailable:
    return BackendUnavailable("the server is shutting down; retry, with the same request_id", reason="SHUTTING_DOWN")


def body_hash(request: CreateRequest) -> str:
    """Tells one CreateSandbox body from another. Credentials do not count: they may be renewed between retries."""
    body = asdict(replace(request, spec=request.spec.without_auth(), request_id=""))
    # the source's type counts: a snapshot and a pool may have the same fields
    body["source_type"] = type(request.spec.source).__name__
    text = json.dumps(body, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> str:
    return value.name if isinstance(value, Enum) else str(value)


def _pending(plan: SandboxPlan) -> Sandbox:
    status = SandboxStatus(SandboxState.PENDING, plan.runtime, plan.create_time, "CREATING")
    return Sandbox(plan.id, plan.metadata, plan.spec, status, plan.create_time, plan.expire_time)
