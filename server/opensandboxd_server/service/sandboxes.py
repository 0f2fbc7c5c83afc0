"""The verbs on sandboxes that exist. Creation is in creation.py, following them in following.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from opensandboxd_server.domain.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from opensandboxd_server.domain.model import Endpoint, Expiration, LogChunk, LogOptions, Sandbox, SandboxState
from opensandboxd_server.domain.policy import Policy
from opensandboxd_server.domain.ports import Clock, SandboxDriver, SandboxRecord, SandboxStore
from opensandboxd_server.domain.validate import check_id, check_metadata, check_port
from opensandboxd_server.service.creation import Creations
from opensandboxd_server.service.index import SandboxIndex
from opensandboxd_server.service.tasks import Tasks, Turns

log = structlog.get_logger()

_RENEWABLE = tuple(state for state in SandboxState if not state.final and state is not SandboxState.STOPPING)


class Sandboxes:
    """Verbs that change a sandbox take their turn on it, and go on to their end also when their caller goes away."""

    def __init__(
        self,
        driver: SandboxDriver,
        store: SandboxStore,
        index: SandboxIndex,
        creations: Creations,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._driver = driver
        self._store = store
        self._index = index
        self._creations = creations
        self._policy = policy
        self._clock = clock
        self._tasks = Tasks()
        self._turn = Turns()

    # Reading

    def get(self, id: str) -> Sandbox:
        check_id(id)
        sandbox = self._index.get(id)
        if not sandbox:
            raise NotFound(id)
        return sandbox

    async def endpoint(self, id: str, port: int, *, internal: bool) -> Endpoint:
        self._policy.require("endpoints")
        check_port(port)
        sandbox = self.get(id)
        _require_state(sandbox, SandboxState.RUNNING, SandboxState.PAUSED)
        return await self._driver.endpoint(id, port, internal=internal)

    def logs(self, id: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        self._policy.require("logs")
        sandbox = self.get(id)
        if sandbox.status.state is SandboxState.PENDING or self._creations.is_failure(id):
            raise FailedPrecondition(
                "INVALID_STATE", f"sandbox {id} is {sandbox.status.state.value} and has written nothing", subject=id
            )
        return self._driver.logs(id, options)

    # Changing what the store holds

    async def update_metadata(self, id: str, change: MetadataChange, etag: str = "") -> Sandbox:
        """Applies `change` to the sandbox's metadata. Aborted ETAG_MISMATCH when `etag` is stale."""

        def apply(sandbox: Sandbox) -> SandboxRecord:
            metadata = change.apply(sandbox.metadata)
            check_metadata(metadata)
            return SandboxRecord(id, sandbox.revision + 1, metadata, sandbox.expire_time)

        return await self._tasks.finish(self._record(id, apply, etag))

    async def renew(self, id: str, expiration: Expiration, etag: str = "") -> Sandbox:
        """Sets a new expiry. FailedPrecondition INVALID_STATE when the sandbox is over, or its expiry has struck."""
        if expiration.ttl is None and expiration.at is None:
            raise InvalidArgument.of("ttl", "is required, or expire_time: say until when to keep the sandbox")

        def apply(sandbox: Sandbox) -> SandboxRecord:
            expire_time = self._policy.expiry(expiration, self._clock.now())
            _require_state(sandbox, *_RENEWABLE)
            return SandboxRecord(id, sandbox.revision + 1, sandbox.metadata, expire_time)

        return await self._tasks.finish(self._record(id, apply, etag))

    async def _record(self, id: str, apply: Callable[[Sandbox], SandboxRecord], etag: str) -> Sandbox:
        """Writes what `apply` makes of the sandbox, in a compare-and-set against its revision."""
        for _ in range(10):
            sandbox = self.get(id)
            _check_etag(sandbox, etag)
            if self._creations.is_failure(id):
                raise FailedPrecondition(
                    "INVALID_STATE", f"sandbox {id} was never created; it cannot be changed", subject=id
                )
            if self._has_struck(sandbox):
                raise _struck(id)
            record = apply(sandbox)
            if await self._store.compare_and_set(record, sandbox.revision):
                self._index.set_record(record)
                return self.get(id)
            await self._reread(sandbox)
        raise Aborted("CONFLICT", f"sandbox {id} is being changed by others all the time; retry")

    async def _reread(self, sandbox: Sandbox) -> None:
        """After a comparison that failed: if nobody here has changed the sandbox since, a write of before took effect
        though it was told to have failed, and what it wrote is taken up."""
        now = self._index.get(sandbox.id)
        if now and now.revision == sandbox.revision:
            for record in await self._store.load_records():
                if record.id == sandbox.id:
                    self._index.set_record(record)

    # Changing what the backend has

    async def pause(self, id: str) -> Sandbox:
        self._policy.require("pause")
        check_id(id)
        verb = _Verb("paused", SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, self._driver.pause)
        return await self._tasks.finish(self._switch(id, verb))

    async def resume(self, id: str) -> Sandbox:
        self._policy.require("pause")
        check_id(id)
        verb = _Verb("resumed", SandboxState.PAUSED, SandboxState.RESUMING, SandboxState.RUNNING, self._driver.resume)
        return await self._tasks.finish(self._switch(id, verb))

    async def _switch(self, id: str, verb: _Verb) -> Sandbox:
        async with self._turn(id):
            sandbox = self.get(id)
            if sandbox.status.state is verb.done:
                return sandbox
            _require_state(sandbox, verb.needs)
            self._index.begin(id, verb.during)
            try:
                await verb.act(id)
            except BaseException:
                await self._end(id)
                raise
            await self._end(id, verb.done)
            log.info(f"sandbox {verb.name}", sandbox_id=id)
            return self.get(id)

    async def delete(self, id: str, *, allow_missing: bool = False, etag: str = "") -> None:
        """Removes the sandbox, in whatever state, and returns when nothing of it is left."""
        check_id(id)
        await self._tasks.finish(self._delete(id, allow_missing, etag))

    async def _delete(self, id: str, allow_missing: bool, etag: str) -> None:
        sandbox = self._index.get(id)
        if sandbox:
            _check_etag(sandbox, etag)
            await self._creations.abandon(id, "DELETED")
        async with self._turn(id):
            current = self._index.get(id)
            if current:
                _check_etag(current, etag)
                await self._remove(id, "DELETED")
        if not current and not sandbox and not allow_missing:
            raise NotFound(id)
        if sandbox:
            log.info("sandbox deleted", sandbox_id=id)

    async def claim_expired(self, id: str) -> bool:
        """Whether the sandbox's expiry has struck; then it is STOPPING, and nothing keeps it any more. The claim is a
        compare-and-set against the revision that was looked at: a renewal either comes before it or is refused."""
        sandbox = self._index.get(id)
        if not sandbox or self._creations.is_failure(id) or not self._has_struck(sandbox):
            return False
        claim = SandboxRecord(id, sandbox.revision + 1, sandbox.metadata, sandbox.expire_time, claimed=True)
        if await self._is_claimed_by_us(claim):
            return True
        await self._reread(sandbox)
        return await self.claim_expired(id)

    async def _is_claimed_by_us(self, claim: SandboxRecord) -> bool:
        entry = self._index.entry(claim.id)
        if entry and entry.record and entry.record.claimed:
            return True
        try:
            if not await self._store.compare_and_set(claim, claim.revision - 1):
                return False
        except Exception as exc:  # noqa: BLE001 - a store that fails is no reason to outlive one's time
            log.warning("expiry not stored; the sandbox is removed all the same", sandbox_id=claim.id, error=str(exc))
        self._index.set_record(claim)
        return True

    async def remove_expired(self, id: str) -> bool:
        """Removes a sandbox that was claimed; says whether it was still there."""
        await self._creations.abandon(id, "EXPIRED")
        async with self._turn(id):
            if id not in self._index:
                return False
            await self._remove(id, "EXPIRED")
            return True

    async def forget_failure(self, id: str) -> None:
        """Drops a failed creation that was kept to be read."""
        async with self._turn(id):
            await self._creations.drop(id, "EXPIRED")

    async def drain(self) -> None:
        """Returns when no verb is at work any more."""
        await self._tasks.drain()

    # How

    async def _remove(self, id: str, reason: str) -> None:
        if not self._creations.is_failure(id):
            self._index.begin(id, SandboxState.STOPPING)
            try:
                await self._driver.delete(id)
            except BaseException:
                if not self._index.is_gone(id):  # the reply was lost, not the removal
                    self._index.end(id)
                    raise
        await self._creations.drop(id, reason)

    async def _end(self, id: str, state: SandboxState | None = None) -> None:
        """The verb is done: the sandbox is in `state`, or as it was observed; or the backend has lost it meanwhile."""
        if self._index.is_gone(id):
            await self._creations.lost(id)
        else:
            self._index.end(id, state)

    def _has_struck(self, sandbox: Sandbox) -> bool:
        """Whether the sandbox is past its expiry: nothing may keep it any more."""
        entry = self._index.entry(sandbox.id)
        claimed = entry is not None and entry.record is not None and entry.record.claimed
        return claimed or (sandbox.expire_time is not None and sandbox.expire_time <= self._clock.now())


@dataclass(frozen=True, slots=True)
class MetadataChange:
    """Entries to set (value) or to remove (None); with `replace_all`, what is not set is removed."""

    entries: Mapping[str, str | None]
    replace_all: bool = False

    def apply(self, metadata: Mapping[str, str]) -> dict[str, str]:
        base = {} if self.replace_all else dict(metadata)
        changed = {**base, **self.entries}
        return {key: value for key, value in changed.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Verb:
    """One of pause and resume: takes a sandbox from state `needs` to `done`, by way of `during`."""

    name: str
    needs: SandboxState
    during: SandboxState
    done: SandboxState
    act: Callable[[str], Awaitable[None]]


def _require_state(sandbox: Sandbox, *states: SandboxState) -> None:
    if sandbox.status.state not in states:
        wanted = " or ".join(state.value for state in states)
        raise FailedPrecondition(
            "INVALID_STATE",
            f"sandbox {sandbox.id} is {sandbox.status.state.value}, and must be {wanted} for this",
            subject=sandbox.id,
            state=sandbox.status.state.value,
        )


def _check_etag(sandbox: Sandbox, etag: str) -> None:
    if etag and etag != sandbox.etag:
        raise Aborted(
            "ETAG_MISMATCH",
            f"sandbox {sandbox.id} has changed since etag {etag} was read; read it again and retry",
            etag=sandbox.etag,
        )


def _struck(id: str) -> FailedPrecondition:
    return FailedPrecondition(
        "INVALID_STATE", f"the expiry of sandbox {id} has struck; it is being removed", subject=id
    )
