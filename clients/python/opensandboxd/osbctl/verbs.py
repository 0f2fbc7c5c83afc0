"""One sandbox's life from the command line: create, get, update, pause, resume, renew, wait, endpoint, logs, delete."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

import click

from opensandboxd import SandboxError
from opensandboxd.client import CREATE_TIMEOUT
from opensandboxd.osbctl import output
from opensandboxd.osbctl.failure import CommandFailedError, Exit, exit_code, report
from opensandboxd.osbctl.params import duration, pair, since, time, to_state
from opensandboxd.osbctl.session import Command, Session, connected
from opensandboxd.v1.sandbox_service_pb2 import LOG_STREAM_STDERR

_DELETIONS_AT_A_TIME = 8


@click.command(cls=Command)
@click.argument("image")
@click.argument("command", metavar="[-- CMD ARGS...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--ttl", type=duration, help="Delete it this long from now: 90s, 10m, 2h. At least 60s.")
@click.option("--expire-time", type=time, help="Delete it at this time: 2030-01-31T12:00:00Z.")
@click.option("-e", "--env", type=pair, multiple=True, metavar="K=V", help="Set a variable; repeatable.")
@click.option("-l", "--metadata", type=pair, multiple=True, metavar="K=V", help="Label it; repeatable.")
@click.option(
    "-p", "--port", "ports", type=click.IntRange(1, 65535), multiple=True, metavar="PORT", help="Publish; repeatable."
)
@click.option("--cpu", default="", help="Limit: 500m, 2.")
@click.option("--memory", default="", help="Limit: 512Mi, 4Gi.")
@click.option("--gpu", default="", help="Number of GPUs.")
@click.option("--platform", metavar="OS/ARCH", help="What the image must be built for.")
@click.option("--require-secure-runtime", is_flag=True, help="Refuse a server that runs sandboxes under plain runc.")
@click.option("--registry-user", metavar="USER", help="For a private registry; the password is read from stdin.")
@click.option("--request-id", help="Repeating the same request with the same id gets the same sandbox.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it runs.")
@click.option("--dry-run", is_flag=True, help="Only check the request; create nothing.")
@connected
async def create(
    session: Session,
    image: str,
    command: Sequence[str],
    env: Sequence[tuple[str, str]],
    metadata: Sequence[tuple[str, str]],
    registry_user: str | None,
    detach: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Create a sandbox from IMAGE and wait until it runs.

    CMD replaces the image's own entry point. On a terminal the image pull is shown. Ctrl-C deletes what was begun.
    """
    follow = not detach and not dry_run and sys.stderr.isatty()
    sandbox = await session.client.create(
        image,
        entrypoint=command,
        env=dict(env),
        metadata=dict(metadata),
        auth=(registry_user, sys.stdin.readline().rstrip("\n")) if registry_user else None,
        validate_only=dry_run,
        wait=not detach and not follow,
        timeout=session.timeout,
        **options,
    )
    if follow:
        from opensandboxd.osbctl.progress import follow_creation  # rich is slow to import

        try:
            async with asyncio.timeout(CREATE_TIMEOUT if session.timeout is None else session.timeout):
                sandbox = await follow_creation(session.client, sandbox)
        except TimeoutError as error:
            raise CommandFailedError(f"sandbox {sandbox.id} did not run in time", Exit.TIMED_OUT) from error
    output.print_sandbox(sandbox, session.output)


@click.command(cls=Command)
@click.argument("id")
@connected
async def get(session: Session, id: str) -> None:
    """Show one sandbox, with all that is known of it."""
    sandbox = await session.client.get(id)
    if session.output == "table":
        output.print_details(sandbox)
    else:
        output.print_sandbox(sandbox, session.output)


@click.command(cls=Command)
@click.argument("id")
@click.option("-l", "--metadata", type=pair, multiple=True, metavar="K=V", help="Set an entry; repeatable.")
@click.option("--remove", multiple=True, metavar="KEY", help="Remove an entry; repeatable.")
@click.option("--etag", default="", help="Only if the sandbox still has this etag (see -o json).")
@connected
async def update(
    session: Session, id: str, metadata: Sequence[tuple[str, str]], remove: Sequence[str], etag: str
) -> None:
    """Change a sandbox's metadata. Entries not named stay."""
    changes: dict[str, str | None] = {**dict(metadata), **dict.fromkeys(remove)}
    if not changes:
        raise click.UsageError("nothing to change: give --metadata K=V or --remove KEY")
    output.print_sandbox(await session.client.update(id, changes, etag=etag), session.output)


@click.command(cls=Command)
@click.argument("id")
@connected
async def pause(session: Session, id: str) -> None:
    """Freeze every process of a sandbox. Memory is kept, and its expiry goes on counting."""
    output.print_sandbox(await session.client.pause(id), session.output)


@click.command(cls=Command)
@click.argument("id")
@connected
async def resume(session: Session, id: str) -> None:
    """Thaw a paused sandbox."""
    output.print_sandbox(await session.client.resume(id), session.output)


@click.command(cls=Command)
@click.argument("id")
@click.option("--ttl", type=duration, help="Delete it this long from now: 90s, 10m, 2h. At least 60s.")
@click.option("--expire-time", type=time, help="Delete it at this time: 2030-01-31T12:00:00Z.")
@connected
async def renew(session: Session, id: str, ttl: float | None, expire_time: datetime | None) -> None:
    """Set when a sandbox is deleted, sooner or later than before."""
    if ttl is None and expire_time is None:
        raise click.UsageError("say until when: --ttl DURATION or --expire-time TIME")
    output.print_sandbox(await session.client.renew(id, ttl, expire_time=expire_time), session.output)


@click.command(cls=Command)
@click.argument("id")
@click.option(
    "--for",
    "goal",
    type=click.Choice(["running", "paused", "terminated", "deleted"]),
    default="running",
    show_default=True,
    help="What to wait for.",
)
@click.option("--timeout", type=duration, help="Give up after this long, with exit code 6. [never]")
@connected
async def wait(session: Session, id: str, goal: str, timeout: float | None) -> None:
    """Wait until a sandbox is in a state. Exit code 1 when it can no longer get there."""
    if goal != "deleted":
        output.print_sandbox(await session.client.wait(id, states=[to_state(goal)], timeout=timeout), session.output)
        return
    try:
        async with asyncio.timeout(timeout):
            await _until_deleted(session, id)
    except TimeoutError as error:
        raise CommandFailedError(f"sandbox {id} is still there and time is over", Exit.TIMED_OUT) from error
    _print_ids([id], session.output)


async def _until_deleted(session: Session, id: str) -> None:
    there = False
    async with aclosing(session.client.watch(ids=[id])) as events:
        async for event in events:
            match event.WhichOneof("event"):
                case "added":
                    there = True
                case "removed":
                    return
                case "bookmark" if event.bookmark.snapshot_end and not there:
                    return


@click.command(cls=Command)
@click.argument("id")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option("--internal", is_flag=True, help="The address on the sandbox's own network instead.")
@connected
async def endpoint(session: Session, id: str, port: int, internal: bool) -> None:
    """Print the address under which a port of a sandbox is reached."""
    found = await session.client.endpoint(id, port, internal=internal)
    if session.output in ("json", "yaml"):
        output.print_data(output.to_json(found), session.output)
        return
    click.echo(found.address)
    if session.output == "table":
        for name, value in found.headers.items():
            click.echo(f"{name}: {value}")


@click.command(cls=Command)
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the entry point exits.")
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Only the last so many lines.")
@click.option(
    "--since", type=since, metavar="DURATION|TIME", help="Only what is newer: 10m ago, or since 2030-01-31T12:00:00Z."
)
@connected
async def logs(session: Session, id: str, follow: bool, tail: int | None, since: datetime | None) -> None:
    """Print what a sandbox's entry point wrote: its standard output and standard error, each to our own."""
    async for chunk in session.client.logs(id, follow=follow, tail=tail, since=since):
        stream = sys.stderr if chunk.stream == LOG_STREAM_STDERR else sys.stdout
        stream.buffer.write(chunk.data)
        stream.flush()


@click.command(cls=Command)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Delete every sandbox, or with -l every one that carries it.")
@click.option("-l", "--metadata", type=pair, multiple=True, metavar="K=V", help="With --all; repeatable.")
@click.option("--allow-missing", is_flag=True, help="Do not mind a sandbox that is not there.")
@connected
async def delete(
    session: Session, ids: Sequence[str], everything: bool, metadata: Sequence[tuple[str, str]], allow_missing: bool
) -> None:
    """Delete sandboxes, in whatever state. Prints the ids of those deleted."""
    if bool(ids) == everything:
        raise click.UsageError("say which: give ids, or --all, which -l K=V narrows")
    if metadata and not everything:
        raise click.UsageError("-l narrows --all: it does not go with ids")
    if everything:
        ids = [sandbox.id async for sandbox in session.client.list(metadata=dict(metadata))]
        allow_missing = True
    errors = await _delete_all(session, ids, allow_missing)
    _print_ids([id for id in ids if id not in errors], session.output)
    for error in errors.values():
        report(error)
    if errors:
        raise click.exceptions.Exit(max(exit_code(error) for error in errors.values()))


async def _delete_all(session: Session, ids: Iterable[str], allow_missing: bool) -> dict[str, SandboxError]:
    errors: dict[str, SandboxError] = {}
    turn = asyncio.Semaphore(_DELETIONS_AT_A_TIME)

    async def delete_one(id: str) -> None:
        try:
            async with turn:
                await session.client.delete(id, allow_missing=allow_missing)
        except SandboxError as error:
            errors[id] = error

    async with asyncio.TaskGroup() as group:
        for id in dict.fromkeys(ids):
            group.create_task(delete_one(id))
    return errors


def _print_ids(ids: Sequence[str], format: str) -> None:
    if format in ("json", "yaml"):
        output.print_data(list(ids), format)
    else:
        for id in ids:
            click.echo(id)


VERBS = (create, get, update, pause, resume, renew, wait, endpoint, logs, delete)
