"""The index: every sandbox there is, in memory. Answers Get, List, Watch and Wait without asking the backend.

One entry is composed of three parts: what the backend was observed to have, what the store holds beyond that, and the
transition that a verb of ours has it in. Every change gets a version; the last are kept, so that a watch can resume.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from opensandboxd_server.domain.model import Sandbox, SandboxState, SandboxStatus
from opensandboxd_server.domain.ports import Clock, Observation, SandboxRecord

HISTORY = 8192
"""Changes kept for watches to resume from, at most."""
HISTORY_WEIGHT = 32 * 1024 * 1024
"""What the sandboxes of the changes kept may weigh: they outlive those that are deleted."""

_TOMBSTONES = 4096


@dataclass(frozen=True, slots=True)
class Transition:
    """What a verb of ours is doing to a sandbox: shown in place of the observed state until the verb is done."""

    state: SandboxState
    since: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """Times are of `time.monotonic()`: `seen_at` when the observation was taken in, `settled_at` when the last verb of
    ours ended, `gone` whether the backend has told, while a verb was at work, that it has it no more."""

    observation: Observation
    record: SandboxRecord | None
    transition: Transition | None
    seen_at: float
    settled_at: float
    gone: bool
    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class Change:
    """`before` None: it appeared. `after` None: it went, and `last` is how it ended. Otherwise `last` is `after`."""

    version: int
    before: Sandbox | None
    after: Sandbox | None
    last: Sandbox


class SandboxIndex:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._order: list[tuple[datetime, str]] = []
        self._expiries: list[tuple[datetime, str]] = []
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._history_weight = 0
        self._tick = asyncio.Event()
        self.epoch = secrets.token_hex(4)
        self.version = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, id: str) -> Sandbox | None:
        entry = self._entries.get(id)
        return entry.sandbox if entry else None

    def entry(self, id: str) -> Entry | None:
        return self._entries.get(id)

    def sandboxes(self, after: tuple[datetime, str] | None = None) -> Iterator[Sandbox]:
        """All sandboxes, oldest first; only those that come after the key (create_time, id), when given."""
        start = bisect.bisect_right(self._order, after) if after else 0
        for _, id in self._order[start:]:
            yield self._entries[id].sandbox

    # What changes it

    def observe(self, observation: Observation, began: float = math.inf) -> None:
        """Takes in what the backend had when it was asked, at `began` of `time.monotonic()`; by default, now. What has
        ended does not come back, what is gone stays gone, what was seen before a verb of ours ended is not news."""
        entry = self._entries.get(observation.id)
        if observation.id in self._tombstones:
            return
        if entry and (_is_stale(entry, observation, began) or not _is_news(entry.observation, observation)):
            return
        self._put(
            observation,
            entry.record if entry else None,
            entry.transition if entry else None,
        )

    def mark_gone(self, id: str) -> None:
        """The backend has it no more, and a verb or a creation of ours is at work on it: theirs to tell what became."""
        if entry := self._entries.get(id):
            self._entries[id] = replace(entry, gone=True)

    def is_gone(self, id: str) -> bool:
        """Whether `mark_gone` was told of a sandbox that is still here."""
        entry = self._entries.get(id)
        return entry is not None and entry.gone

    def set_record(self, record: SandboxRecord) -> None:
        if entry := self._entries.get(record.id):
            self._put(entry.observation, record, entry.transition)

    def begin(self, id: str, state: SandboxState) -> None:
        """A verb is at work on the sandbox: it is in `state` until `end` or `remove`."""
        if entry := self._entries.get(id):
            self._put(entry.observation, entry.record, Transition(state, self._clock.now()))

    def end(self, id: str, state: SandboxState | None = None) -> None:
        """The verb is done: the sandbox is in `state` now, or with None in the state observed before or meanwhile."""
        entry = self._entries.get(id)
        if not entry:
            return
        observation = entry.observation
        if state and not observation.state.final and observation.state is not state:
            observation = replace(observation, state=state, state_time=self._clock.now(), reason="", message="")
        self._put(observation, entry.record, None)

    def remove(self, id: str, reason: str, message: str = "") -> None:
        """The sandbox is no more. Watches see it once more, as TERMINATED for `reason`. Idempotent."""
        entry = self._entries.pop(id, None)
        if not entry:
            return
        del self._order[bisect.bisect_left(self._order, (entry.sandbox.create_time, id))]
        self._tombstones[id] = None
        if len(self._tombstones) > _TOMBSTONES:
            self._tombstones.popitem(last=False)
        status = replace(
            entry.sandbox.status,
            state=SandboxState.TERMINATED,
            reason=reason,
            message=message,
            last_transition_time=self._clock.now(),
        )
        self._record_change(entry.sandbox, None, replace(entry.sandbox, status=status))

    # Who follows it

    @property
    def oldest_version(self) -> int:
        """The oldest version that `changes` can go on from."""
        return self._history[0].version - 1 if self._history else self.version

    def changes(self, after: int) -> list[Change]:
        """The changes after that version, which must be `oldest_version` or newer."""
        return [self._history[-i] for i in range(self.version - after, 0, -1)]

    async def changed(self) -> None:
        """Returns at the next change."""
        await self._tick.wait()

    def pop_expired(self, now: datetime) -> list[Sandbox]:
        """The sandboxes whose time has come, each once; `push_expiry` to be told of one again."""
        expired = []
        while self._expiries and self._expiries[0][0] <= now:
            _, id = heapq.heappop(self._expiries)
            sandbox = self.get(id)
            if sandbox and sandbox.expire_time and sandbox.expire_time <= now and sandbox not in expired:
                expired.append(sandbox)
        return expired

    def push_expiry(self, at: datetime, id: str) -> None:
        heapq.heappush(self._expiries, (at, id))

    # How

    def _put(self, observation: Observation, record: SandboxRecord | None, transition: Transition | None) -> None:
        before = self._entries.get(observation.id)
        sandbox = _compose(observation, record, transition)
        now = time.monotonic()
        ended = before is not None and before.transition is not None and transition is None
        self._entries[observation.id] = Entry(
            observation,
            record,
            transition,
            seen_at=before.seen_at if before and before.observation is observation else now,
            settled_at=now if ended or not before else before.settled_at,
            gone=before.gone if before else False,
            sandbox=sandbox,
        )
        if before and before.sandbox == sandbox:
            return
        if not before:
            bisect.insort(self._order, (sandbox.create_time, sandbox.id))
        if sandbox.expire_time and (not before or before.sandbox.expire_time != sandbox.expire_time):
            self.push_expiry(sandbox.expire_time, sandbox.id)
        self._record_change(before.sandbox if before else None, sandbox, sandbox)

    def _forget_oldest_change(self) -> None:
        self._history_weight -= self._history.popleft().last.weight

    def _record_change(self, before: Sandbox | None, after: Sandbox | None, last: Sandbox) -> None:
        self.version += 1
        if len(self._history) == HISTORY:
            self._forget_oldest_change()
        self._history.append(Change(self.version, before, after, last))
        self._history_weight += last.weight
        while self._history_weight > HISTORY_WEIGHT:
            self._forget_oldest_change()
        self._tick.set()
        self._tick = asyncio.Event()


def _is_stale(known: Entry, new: Observation, began: float) -> bool:
    """Whether the backend was asked before a verb of ours ended. An end is never stale: no verb undoes it."""
    return began < known.settled_at and not new.state.final


def _is_news(known: Observation, new: Observation) -> bool:
    """Whether `new` tells something: events may be late, and repeat what a verb of ours has told already."""
    if known.state.final:
        return False
    if new.state is SandboxState.PENDING:
        return known.state is SandboxState.PENDING
    return new.state is not known.state


def _compose(observation: Observation, record: SandboxRecord | None, transition: Transition | None) -> Sandbox:
    status = SandboxStatus(
        state=observation.state,
        runtime=observation.runtime,
        last_transition_time=observation.state_time,
        reason=observation.reason,
        message=observation.message,
        exit_code=observation.exit_code,
    )
    if not transition and record and record.claimed and not observation.state.final:
        transition = Transition(SandboxState.STOPPING, observation.state_time)
    if transition:
        status = replace(
            status, state=transition.state, last_transition_time=transition.since, reason="", message="", exit_code=None
        )
    return Sandbox(
        id=observation.id,
        metadata=record.metadata if record else observation.metadata,
        spec=observation.spec,
        status=status,
        create_time=observation.create_time,
        expire_time=record.expire_time if record else observation.expire_time,
        revision=record.revision if record else 0,
    )
