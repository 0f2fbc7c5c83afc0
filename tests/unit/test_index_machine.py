"""A state machine of lifecycle verbs through a real server, against a model of a few lines: after every step listings,
a watch that has followed from the beginning, the backend and the store must agree with it. The server restarts at will.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain.errors import BackendError
from opensandboxd_server.drivers.fake import FakeBackend, FakeDriver
from opensandboxd_server.store.memory import MemoryStore
from tests.conformance.house import JumpingClock
from tests.conformance.site import eventually
from tests.harness import Server, serving
from tests.refusal import Refusal

T = TypeVar("T")
FAILURES_KEPT = timedelta(seconds=3600)


@dataclass
class Model:
    """What should be so of one sandbox. `failed_at` is set of a creation that failed."""

    state: str
    metadata: dict[str, str]
    expires: datetime | None = None
    request_id: str = ""
    failed_at: datetime | None = None
    etags: set[str] = field(default_factory=set)

    @property
    def over(self) -> bool:
        return self.state in ("TERMINATED", "FAILED")


class Lifecycle(RuleBasedStateMachine):
    sandboxes = Bundle("sandboxes")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.backend, self.store, self.clock = FakeBackend(), MemoryStore(), JumpingClock()
        self.known: dict[str, Model] = {}
        self.run(self.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        self.open = AsyncExitStack()
        driver = FakeDriver(self.backend)
        self.server: Server = await self.open.enter_async_context(serving(driver, self.store, self.clock))
        self.seen: dict[str, pb.Sandbox] = {}
        self.call = self.server.sandboxes.WatchSandboxes(rpc.WatchSandboxesRequest())
        self.watching = asyncio.create_task(self.watch())

    async def watch(self) -> None:
        """Holds the watch to its word: nothing is added twice, nor updated or removed without being there."""
        async for event in self.call:
            kind = event.WhichOneof("event")
            if kind == "removed":
                del self.seen[event.removed.id]
            elif kind in ("added", "updated"):
                sandbox = getattr(event, kind)
                assert (sandbox.id in self.seen) == (kind == "updated")
                self.seen[sandbox.id] = sandbox

    async def stop(self) -> None:
        self.watching.cancel()
        [ended] = await asyncio.gather(self.watching, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended
        await self.open.aclose()

    def teardown(self) -> None:
        self.run(self.stop())
        self.loop.close()

    # Verbs

    def attempt(self, verb: str, **fields: Any) -> tuple[Any, str]:
        """The reply and "", or None and the reason of the refusal."""

        async def call() -> tuple[Any, str]:
            try:
                return await getattr(self.server.sandboxes, verb)(getattr(rpc, f"{verb}Request")(**fields)), ""
            except grpc.aio.AioRpcError as error:
                return None, Refusal.of(error).reason

        return self.run(call())

    @rule(
        target=sandboxes,
        team=st.sampled_from(["a", "b"]),
        ttl=st.none() | st.integers(60, 300),
        request_id=st.sampled_from(["", "", "r1", "r2"]),
        accepted=st.booleans(),
        fault=st.sampled_from(["", "", "", "pull", "create", "start"]),
    )
    def create(self, team: str, ttl: int | None, request_id: str, accepted: bool, fault: str) -> Any:
        before = self.clock.now()
        spec = pb.SandboxSpec(image=pb.ImageSource(uri="img:1"))
        when = rpc.RETURN_WHEN_ACCEPTED if accepted else rpc.RETURN_WHEN_RUNNING
        request = {"spec": spec, "metadata": {"team": team}, "request_id": request_id, "return_when": when}
        if ttl is not None:
            request["ttl"] = Duration(seconds=ttl)
        earlier = [id for id, model in self.known.items() if request_id and model.request_id == request_id]
        if earlier:
            reply, reason = self.attempt("CreateSandbox", **request)
            assert reason == "REQUEST_ID_REUSED" or reply.sandbox.id == earlier[0]
            return multiple()
        if fault:
            self.server.driver.inject_error(fault, BackendError("injected"))
        reply, reason = self.attempt("CreateSandbox", **request)
        if fault and not accepted:
            assert reason == "BACKEND_ERROR"
            return multiple()
        id = reply.sandbox.id
        settled, _ = self.attempt("WaitSandbox", id=id)
        expires = reply.sandbox.expire_time.ToDatetime(UTC) if ttl is not None else None
        assert expires is None or before <= expires - timedelta(seconds=ttl or 0) <= self.clock.now()
        model = Model("FAILED" if fault else "RUNNING", {"team": team}, expires, request_id)
        model.failed_at = self.clock.now() if fault else None
        model.etags.add(settled.sandbox.etag)
        self.known[id] = model
        return id

    @rule(id=sandboxes)
    def pause(self, id: str) -> None:
        self.switch("PauseSandbox", id, "RUNNING", "PAUSED")

    @rule(id=sandboxes)
    def resume(self, id: str) -> None:
        self.switch("ResumeSandbox", id, "PAUSED", "RUNNING")

    def switch(self, verb: str, id: str, needs: str, becomes: str) -> None:
        reply, reason = self.attempt(verb, id=id)
        model = self.known.get(id)
        if model and model.state in (needs, becomes):
            assert reply.sandbox.status.state == pb.SandboxState.Value(f"SANDBOX_STATE_{becomes}")
            model.state = becomes
        else:
            assert reason == ("INVALID_STATE" if model else "SANDBOX_NOT_FOUND")

    @rule(id=sandboxes, verb=st.sampled_from(["pause", "resume", "delete"]))
    def fail_a_verb(self, id: str, verb: str) -> None:
        model = self.known.get(id)
        reaches_the_driver = model and not model.failed_at
        reaches_the_driver = reaches_the_driver and model.state in {  # type: ignore[union-attr]
            "pause": ["RUNNING"], "resume": ["PAUSED"], "delete": ["RUNNING", "PAUSED", "TERMINATED", "FAILED"],
        }[verb]  # fmt: skip
        if reaches_the_driver:
            self.server.driver.inject_error(verb, BackendError("injected"))
            _, reason = self.attempt(f"{verb.title()}Sandbox", id=id)
            assert reason == "BACKEND_ERROR"

    @rule(id=sandboxes, allow_missing=st.booleans())
    def delete(self, id: str, allow_missing: bool) -> None:
        _, reason = self.attempt("DeleteSandbox", id=id, allow_missing=allow_missing)
        known = self.known.pop(id, None)
        assert reason == ("" if known or allow_missing else "SANDBOX_NOT_FOUND")

    @rule(id=sandboxes, team=st.sampled_from(["a", "b", "c"]), stale=st.booleans())
    def update(self, id: str, team: str, stale: bool) -> None:
        model = self.known.get(id)
        current = self.run(self.current(id))
        etag = '"stale"' if stale else (current.etag if current else "")
        reply, reason = self.attempt("UpdateSandbox", id=id, metadata={"team": team}, etag=etag)
        if model and not stale and not model.failed_at:
            model.metadata = {"team": team}
            self.changed(model, reply)
        else:
            expected = "SANDBOX_NOT_FOUND" if not model else "ETAG_MISMATCH" if stale else "INVALID_STATE"
            assert reason == expected

    @rule(id=sandboxes, ttl=st.integers(60, 300))
    def renew(self, id: str, ttl: int) -> None:
        reply, reason = self.attempt("RenewSandbox", id=id, ttl=Duration(seconds=ttl))
        model = self.known.get(id)
        if model and not model.over:
            model.expires = reply.sandbox.expire_time.ToDatetime(UTC)
            self.changed(model, reply)
        else:
            assert reason == ("INVALID_STATE" if model else "SANDBOX_NOT_FOUND")

    def changed(self, model: Model, reply: Any) -> None:
        """Every change gives an etag that the sandbox never had before."""
        assert reply.sandbox.etag not in model.etags
        model.etags.add(reply.sandbox.etag)

    async def current(self, id: str) -> pb.Sandbox | None:
        return next((sandbox for sandbox in await self.listed() if sandbox.id == id), None)

    # What happens by itself

    @rule(id=sandboxes, code=st.sampled_from([0, 3]))
    def exit(self, id: str, code: int) -> None:
        model = self.known.get(id)
        if model and not model.over:
            self.run(self.outside(lambda: self.server.driver.exit(id, code)))
            model.state = "FAILED" if code else "TERMINATED"

    @rule(id=sandboxes)
    def vanish(self, id: str) -> None:
        if id in self.backend.sandboxes:
            self.run(self.outside(lambda: self.server.driver.vanish(id)))
            del self.known[id]

    @rule(id=sandboxes, code=st.sampled_from([0, 3]), gone=st.booleans())
    def while_the_backend_is_away(self, id: str, code: int, gone: bool) -> None:
        driver, model = self.server.driver, self.known.get(id)
        self.run(self.outside(driver.lose))
        assert self.attempt("CreateSandbox", spec=pb.SandboxSpec(image=pb.ImageSource(uri="a")))[1] == (
            "BACKEND_UNAVAILABLE"
        )
        if id in self.backend.sandboxes and gone:
            driver.vanish(id)
            del self.known[id]
        elif model and not model.over:
            driver.exit(id, code)
            model.state = "FAILED" if code else "TERMINATED"
        self.run(self.outside(driver.recover))

    @rule(seconds=st.sampled_from([1, 59, 61, 3700]))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.jump_to(self.clock.now() + timedelta(seconds=seconds))

    @rule()
    def restart(self) -> None:
        self.run(self.stop())
        self.run(self.start())

    async def outside(self, act: Any) -> None:
        act()

    # What must be so

    async def listed(self) -> list[pb.Sandbox]:
        return list((await self.server.sandboxes.ListSandboxes(rpc.ListSandboxesRequest(page_size=1000))).sandboxes)

    @invariant()
    def all_agree(self) -> None:
        self.run(eventually(self.agree, 5))
        assert not self.watching.done(), self.watching.exception()

    async def agree(self) -> bool:
        now = self.clock.now()
        for id, model in [*self.known.items()]:
            struck = model.expires is not None and model.expires <= now
            if struck or (model.failed_at and model.failed_at + FAILURES_KEPT <= now):
                del self.known[id]
        listed = await self.listed()
        facts = {s.id: (pb.SandboxState.Name(s.status.state)[14:], dict(s.metadata), expiry(s)) for s in listed}
        return (
            facts == {id: (model.state, model.metadata, model.expires) for id, model in self.known.items()}
            and {s.id: s for s in listed} == self.seen
            and set(self.backend.sandboxes) == {id for id, model in self.known.items() if not model.failed_at}
            and await self.rows() <= set(self.known)
        )

    async def rows(self) -> set[str]:
        return (
            {record.id for record in await self.store.load_records()}
            | {record.sandbox_id for record in await self.store.load_requests()}
            | {record.observation.id for record in await self.store.load_failures()}
        )


def expiry(sandbox: pb.Sandbox) -> datetime | None:
    return sandbox.expire_time.ToDatetime(UTC) if sandbox.HasField("expire_time") else None


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
