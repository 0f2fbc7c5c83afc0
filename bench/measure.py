"""Clocks, percentiles, and the loops that every subject goes through alike."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TypeVar

T = TypeVar("T")

Call = Callable[[], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles of `count` samples in `unit`: "ms", "/s" or "MB". 95 of 100 samples are `p95` or better."""

    unit: str
    count: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, unit: str, values: Sequence[float]) -> Summary:
        ordered = sorted(values, reverse=unit == "/s")
        return cls(unit, len(ordered), *(_percentile(ordered, rank) for rank in (50, 95, 99)))


def _percentile(ordered: Sequence[float], rank: float) -> float:
    """Linear between the two nearest samples."""
    position = (len(ordered) - 1) * rank / 100
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return low + (high - low) * (position % 1)


def in_turns(subjects: Sequence[T], rounds: int) -> Iterator[T]:
    """Every subject once a round, in an order of chance, so that none always pays for what another left behind."""
    dice = random.Random(1)
    for _ in range(rounds):
        yield from dice.sample(subjects, len(subjects))


async def timed(call: Call[T]) -> tuple[T, float]:
    """What the call returns, and how many milliseconds it took."""
    began = time.perf_counter()
    result = await call()
    return result, (time.perf_counter() - began) * 1000


async def latencies(call: Call[object], count: int) -> list[float]:
    """Milliseconds of `count` calls, one after the other."""
    return [(await timed(call))[1] for _ in range(count)]


async def rate(calls: Sequence[Call[T]], at_a_time: int) -> tuple[list[T], float]:
    """What the calls return, and how many of them were done in a second, `at_a_time` always being at work."""
    waiting = iter(calls)
    results: list[T] = []

    async def work() -> None:
        for call in waiting:
            results.append(await call())  # noqa: PERF401 - workers share the list

    began = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(at_a_time):
                workers.create_task(work())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return results, len(calls) / (time.perf_counter() - began)


def times(call: Call[T], count: int) -> list[Call[T]]:
    return list(islice(repeat(call), count))
