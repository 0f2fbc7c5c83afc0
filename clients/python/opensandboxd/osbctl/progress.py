"""A creation, seen: accepted at once, then followed to its end with a progress bar of the image pull."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from opensandboxd import AsyncClient, Sandbox
from opensandboxd.osbctl.failure import CommandFailedError
from opensandboxd.v1.sandbox_pb2 import SANDBOX_STATE_FAILED, SANDBOX_STATE_PENDING

_SHARE = re.compile(r"([\d.]+) of ([\d.]+)")


async def follow_creation(client: AsyncClient, accepted: Sandbox) -> Sandbox:
    """Shows how it goes on standard error, and returns the sandbox when it is no longer PENDING. A sandbox that never
    came to run, and one that the user gave up, is deleted."""
    try:
        sandbox = await _until_settled(client, accepted)
    except asyncio.CancelledError:
        click.echo(f"deleting {accepted.id}", err=True)
        await client.delete(accepted.id, allow_missing=True)
        raise
    status = sandbox.status
    if status.state != SANDBOX_STATE_FAILED:
        return sandbox
    if status.HasField("exit_code"):
        raise CommandFailedError(f"{_why(sandbox)}\nhint: see `osbctl logs {sandbox.id}`; the sandbox is kept")
    await client.delete(sandbox.id, allow_missing=True)
    raise CommandFailedError(_why(sandbox))


async def _until_settled(client: AsyncClient, accepted: Sandbox) -> Sandbox:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("accepted", total=None)
        async with aclosing(client.watch(ids=[accepted.id])) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "added" | "updated" as kind:
                        sandbox: Sandbox = getattr(event, kind)
                        if sandbox.status.state != SANDBOX_STATE_PENDING:
                            return sandbox
                        total, completed = share(sandbox.status.message)
                        text = sandbox.status.message or sandbox.status.reason.lower()
                        progress.update(task, description=text, total=total, completed=completed)
                    case "removed":
                        raise CommandFailedError(f"sandbox {accepted.id} was removed while it was created")
                    case _ if event.bookmark.snapshot_end:
                        await client.get(accepted.id)
    raise AssertionError("a watch ends with an error only")


def share(message: str) -> tuple[float | None, float]:
    """Total and completed of the last "n of m" in a message; without one, no total."""
    found = _SHARE.findall(message)
    return (float(found[-1][1]), float(found[-1][0])) if found else (None, 0.0)


def _why(sandbox: Sandbox) -> str:
    status = sandbox.status
    return f"sandbox {sandbox.id} failed: {status.message or 'no message'}\nreason: {status.reason}"
