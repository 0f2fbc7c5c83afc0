"""Every figure: what is called, how often, against which baseline. Subjects take turns within each."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from bench.measure import Call, Summary, in_turns, latencies, rate, timed, times
from bench.processes import BenchError, Process
from bench.results import Figure, Target
from bench.rpc import EmptyRpc, Opensandboxd

ENGINE, BARE, OURS, THEIRS = "engine", "bare", "opensandboxd", "opensandbox"
SAME_CONTAINER = "engine, same container"
EMPTY_RPC = "empty RPC"
AT_A_TIME = 10
GETS_AT_A_TIME = 32


class Server(Protocol):
    """What opensandboxd and OpenSandbox have in common."""

    @property
    def process(self) -> Process: ...
    async def create(self) -> str: ...
    async def delete(self, id: str) -> None: ...
    async def get(self, id: str) -> None: ...
    async def list(self, page_size: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How often; the quick one shows that the benchmark works, not what it measures."""

    creates: int = 30
    batches: int = 20
    batch: int = 10
    get_rounds: int = 30
    gets: int = 100
    slow_gets: int = 30
    get_batches: int = 8
    get_batch: int = 2000
    slow_get_batch: int = 200
    lists: int = 100
    slow_lists: int = 20
    sandboxes: int = 100
    listed: int = 1000


FULL = Effort()
QUICK = Effort(
    creates=4, batches=2, get_rounds=6, gets=50, slow_gets=10, get_batches=2, get_batch=600,
    slow_get_batch=60, lists=20, slow_lists=2, sandboxes=10,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who makes containers."""

    name: str
    create: Call[str]
    delete: Callable[[str], Awaitable[None]]


async def lifecycle(contenders: Sequence[Contender], rounds: int, title: str = "") -> list[Figure]:
    """Create and delete, one at a time."""
    creates: dict[str, list[float]] = defaultdict(list)
    deletes: dict[str, list[float]] = defaultdict(list)
    for contender in in_turns(contenders, rounds):
        id, taken = await timed(contender.create)
        creates[contender.name].append(taken)
        _, taken = await timed(partial(contender.delete, id))
        deletes[contender.name].append(taken)
    bare = f"; a bare container on the default network: {Summary.of('ms', creates[BARE]).p50:.0f} ms"
    return [
        _compared(f"create to RUNNING{title}", "ms", creates, Target(most=1.10), "create + start" + bare),
        _compared(f"delete{title}", "ms", deletes, Target(most=1.15), "kill + remove"),
    ]


async def lifecycle_at_a_time(contenders: Sequence[Contender], effort: Effort) -> list[Figure]:
    """Create and delete, ten at a time."""
    creates: dict[str, list[float]] = defaultdict(list)
    deletes: dict[str, list[float]] = defaultdict(list)
    for contender in in_turns([c for c in contenders if c.name != BARE], effort.batches):
        ids, speed = await rate(times(contender.create, effort.batch), AT_A_TIME)
        creates[contender.name].append(speed)
        _, speed = await rate([partial(contender.delete, id) for id in ids], AT_A_TIME)
        deletes[contender.name].append(speed)
    return [
        _compared(f"create, {AT_A_TIME} at a time", "/s", creates, Target(least=0.95)),
        _compared(f"delete, {AT_A_TIME} at a time", "/s", deletes),
    ]


def _compared(
    name: str, unit: str, values: Mapping[str, Sequence[float]], target: Target | None = None, note: str = ""
) -> Figure:
    summaries = {contender: Summary.of(unit, samples) for contender, samples in values.items()}
    return Figure(name, SAME_CONTAINER, summaries[ENGINE], summaries[OURS], summaries.get(THEIRS), target, note)


async def get(empty: EmptyRpc, ours: Opensandboxd, theirs: Server | None, effort: Effort) -> list[Figure]:
    """Get, one at a time and 32 at a time, of a sandbox that runs."""
    made = [(OURS, ours)] + ([(THEIRS, theirs)] if theirs else [])
    ids = {name: await server.create() for name, server in made}
    calls: dict[str, Call[None]] = {EMPTY_RPC: empty.call}
    calls |= {name: partial(server.get, ids[name]) for name, server in made}
    sequential: dict[str, list[float]] = defaultdict(list)
    speeds: dict[str, list[float]] = defaultdict(list)
    for call in calls.values():
        await rate(times(call, GETS_AT_A_TIME * 4), GETS_AT_A_TIME)
    for name in in_turns(list(calls), effort.get_rounds):
        sequential[name] += await latencies(calls[name], effort.slow_gets if name == THEIRS else effort.gets)
    for name in in_turns(list(calls), effort.get_batches):
        batch = times(calls[name], effort.slow_get_batch if name == THEIRS else effort.get_batch)
        speeds[name].append((await rate(batch, GETS_AT_A_TIME))[1])
    for name, server in made:
        await server.delete(ids[name])
    return [
        _over_rpc("get", "ms", sequential, Target(most=1.2)),
        _over_rpc(f"get, {GETS_AT_A_TIME} at a time", "/s", speeds, Target(least=2000, absolute=True)),
    ]


def _over_rpc(name: str, unit: str, values: Mapping[str, Sequence[float]], target: Target) -> Figure:
    summaries = {subject: Summary.of(unit, samples) for subject, samples in values.items()}
    return Figure(name, EMPTY_RPC, summaries[EMPTY_RPC], summaries[OURS], summaries.get(THEIRS), target)


async def fill(thousand: Opensandboxd, effort: Effort) -> None:
    """So many sandboxes on the fake driver as are to be listed."""
    await rate(times(thousand.create, effort.listed), GETS_AT_A_TIME)


async def listing(thousand: Opensandboxd, empty: EmptyRpc, effort: Effort) -> Figure:
    """A page of 100, with 1,000 sandboxes there."""
    page = 100
    if (found := await thousand.list(page)) != page:
        raise BenchError(f"a page of {page} has {found} sandboxes")
    baseline = Summary.of("ms", await latencies(empty.call, effort.lists))
    ours = Summary.of("ms", await latencies(partial(thousand.list, page), effort.lists))
    name = f"list, a page of {page} of {effort.listed:,}"
    return Figure(name, EMPTY_RPC, baseline, ours, target=Target(most=10, absolute=True), note="on the fake driver")


async def full_house(ours: Server, theirs: Server | None, effort: Effort) -> list[Figure]:
    """Memory of the servers with 100 sandboxes each, after all that came before; and a page of them all."""
    full = [await _full(ours, effort, effort.lists)]
    if theirs:
        full.append(await _full(theirs, effort, effort.slow_lists))
    memory = Figure(
        f"server memory, {effort.sandboxes} sandboxes",
        opensandboxd=full[0].memory,
        opensandbox=full[1].memory if theirs else None,
        target=Target(most=100, absolute=True),
        note="; ".join(f"{name}: {house.note}" for name, house in zip((OURS, "OpenSandbox"), full, strict=False)),
    )
    page = Figure(
        f"list, a page of {effort.sandboxes} real ones",
        opensandboxd=full[0].page,
        opensandbox=full[1].page if theirs else None,
        target=Target(most=10, absolute=True),
    )
    return [page, memory]


@dataclass(frozen=True, slots=True)
class _House:
    memory: Summary
    page: Summary
    note: str


_FILLING = 90.0
"""Seconds after which a server that fills slowly is taken with the sandboxes that it has."""


async def _full(server: Server, effort: Effort, lists: int) -> _House:
    ids: list[str] = []
    began = time.monotonic()
    while len(ids) < effort.sandboxes and time.monotonic() - began < _FILLING:
        made, _ = await rate(times(server.create, AT_A_TIME), AT_A_TIME)
        ids += made
    try:
        await server.list(effort.sandboxes)
        page = Summary.of("ms", await latencies(partial(server.list, effort.sandboxes), lists))
        weight = server.process.memory()
        note = f"{len(ids)} sandboxes, at its peak {weight.peak:.0f} MB"
        return _House(Summary.of("MB", [weight.now]), page, note)
    finally:
        await rate([partial(server.delete, id) for id in ids], AT_A_TIME)
