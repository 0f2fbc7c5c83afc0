"""`python -m bench`: measures, prints the table, and saves it for `python -m bench.report`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from bench import figures, rpc
from bench.engine import RUN_LABEL, Engine
from bench.figures import BARE, ENGINE, FULL, OURS, QUICK, THEIRS, Contender, Effort, Server
from bench.opensandbox import OpenSandbox, opensandbox
from bench.processes import BenchError
from bench.results import Figure, Results, machine
from bench.table import HEADER, PERCENTILE_HEADER, percentile_rows, rows, text
from bench.threads import Threads
from opensandboxd.v1 import sandbox_pb2 as pb

GROUPS = ("create", "at-a-time", "get", "list", "memory", "gvisor")
COMMAND = ["sleep", "infinity"]
CPU, MEMORY = "500m", "256Mi"


@dataclass(frozen=True, slots=True)
class Options:
    image: str
    effort: Effort
    groups: frozenset[str]
    with_opensandbox: bool


@dataclass(slots=True)
class Bench:
    """One run: `run` marks all that it makes."""

    options: Options
    directory: Path
    engine: Engine
    threads: Threads
    run: str
    done: list[Figure] = field(default_factory=list)

    async def measure(self) -> None:
        options, effort = self.options, self.options.effort
        async with AsyncExitStack() as stack:
            empty = await stack.enter_async_context(rpc.empty_server(self.directory))
            if options.groups & {"create", "at-a-time", "get", "memory"}:
                ours, theirs = await stack.enter_async_context(self._servers())
                if options.groups & {"create", "at-a-time"}:
                    contenders = await self._contenders(ours, theirs)
                    if "create" in options.groups:
                        self._show(*await figures.lifecycle(contenders, effort.creates))
                    if "at-a-time" in options.groups:
                        self._show(*await figures.lifecycle_at_a_time(contenders, effort))
                if "get" in options.groups:
                    self._show(*await figures.get(empty, ours, theirs, effort))
                if "memory" in options.groups:
                    self._show(*await figures.full_house(ours, theirs, effort))
            if "list" in options.groups:
                fake = rpc.opensandboxd(f"{self.run}-fake", self.directory, self._spec(), fake=True)
                thousand = await stack.enter_async_context(fake)
                await figures.fill(thousand, effort)
                self._show(await figures.listing(thousand, empty, effort))
        if "gvisor" in options.groups:
            async with self._servers("gvisor") as (ours, theirs):
                contenders = await self._contenders(ours, theirs)
                self._show(*await figures.lifecycle(contenders, effort.creates, ", gVisor"))

    @asynccontextmanager
    async def _servers(self, secure_runtime: str = "") -> AsyncIterator[tuple[rpc.Opensandboxd, OpenSandbox | None]]:
        instance = f"{self.run}-{secure_runtime or 'runc'}"
        async with AsyncExitStack() as stack:
            stack.callback(self.engine.sweep, f"label=opensandbox.io/instance={instance}")
            server = rpc.opensandboxd(instance, self.directory, self._spec(), secure_runtime=secure_runtime)
            ours = await stack.enter_async_context(server)
            if not self.options.with_opensandbox:
                yield ours, None
                return
            request = {"entrypoint": COMMAND, "resourceLimits": {"cpu": CPU, "memory": MEMORY}}
            theirs = await stack.enter_async_context(
                opensandbox(
                    self.run,
                    self.directory,
                    self.engine,
                    self.threads,
                    image=self.options.image,
                    request=request,
                    gvisor=secure_runtime == "gvisor",
                )
            )
            yield ours, theirs

    async def _contenders(self, ours: rpc.Opensandboxd, theirs: Server | None) -> list[Contender]:
        """Each has made and removed a container once: connections are open, caches filled."""
        id = await ours.create()
        like_ours = self.engine.body_like(id)
        bare = self.engine.bare_body(self.options.image, COMMAND, like_ours["HostConfig"]["Runtime"])
        await ours.delete(id)
        if theirs:
            await theirs.delete(await theirs.create())
        engine = self.engine
        contenders = [
            Contender(BARE, lambda: engine.create(bare), engine.delete),
            Contender(ENGINE, lambda: engine.create(like_ours), engine.delete),
            Contender(OURS, ours.create, ours.delete),
        ]
        return contenders + ([Contender(THEIRS, theirs.create, theirs.delete)] if theirs else [])

    def _spec(self) -> pb.SandboxSpec:
        return pb.SandboxSpec(
            image=pb.ImageSource(uri=self.options.image),
            entrypoint=COMMAND,
            resources=pb.ResourceLimits(cpu=CPU, memory=MEMORY),
        )

    def _show(self, *measured: Figure) -> None:
        self.done += measured
        for figure in measured:
            print(f"  {figure.name}", flush=True)


async def run(options: Options) -> Results:
    """Measures; leaves nothing behind, however it ends."""
    facts = machine()
    name = f"bench-{uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opensandboxd-bench-")))
        engine = Engine(name, threads := Threads())
        stack.callback(engine.close)
        if not engine.has_image(options.image):
            raise BenchError(f"the engine has no image {options.image}; make it: deploy/dev/engine image")
        stack.callback(engine.sweep, f"label={RUN_LABEL}={name}")
        stack.callback(threads.close)
        bench = Bench(options, directory, engine, threads, name)
        await bench.measure()
        date = datetime.now(UTC).date().isoformat()
        quick = options.effort == QUICK
        return Results(date, quick, facts | dict(engine.versions()), tuple(bench.done))


async def interruptible(options: Options) -> Results:
    """SIGTERM ends a run as Ctrl-C does: after clearing up."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(options)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few samples each: shows that it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures, for python -m bench.report FILE")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--runtime", choices=("runc", "runsc"), default="runc", help="runsc: gVisor as well")
    parser.add_argument("--image", default="opensandboxd/base:bookworm")
    parser.add_argument("--without-opensandbox", action="store_true")
    args = parser.parse_args(argv)
    groups = set(args.only or GROUPS) - (set() if args.runtime == "runsc" or args.only else {"gvisor"})
    options = Options(args.image, QUICK if args.quick else FULL, frozenset(groups), not args.without_opensandbox)
    began = time.monotonic()
    print("measuring:", flush=True)
    try:
        results = asyncio.run(interruptible(options))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted; nothing is left", file=sys.stderr)
        return 130
    if args.json:
        results.save(args.json)
    print(f"\n{text(HEADER, rows(results.figures))}\n")
    print(text(PERCENTILE_HEADER, percentile_rows(results.figures)))
    print(f"\n{'; '.join(f'{name} {value}' for name, value in results.machine.items())}")
    print(f"{time.monotonic() - began:.0f} s; subjects took turns within each figure; ratios are of medians")
    return 0


if __name__ == "__main__":
    sys.exit(main())
