"""How osbctl ends: exit codes, and what is said on standard error."""

from __future__ import annotations

from enum import IntEnum

import click

from opensandboxd import errors


class Exit(IntEnum):
    """osbctl's exit codes; docs/osbctl.md has the same table."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    UNAUTHENTICATED = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


_EXITS: dict[type[errors.SandboxError], Exit] = {
    errors.NotFoundError: Exit.NOT_FOUND,
    errors.UnavailableError: Exit.UNAVAILABLE,
    errors.UnauthenticatedError: Exit.UNAUTHENTICATED,
    errors.PermissionDeniedError: Exit.UNAUTHENTICATED,
    errors.DeadlineExceededError: Exit.TIMED_OUT,
}

_HINTS: dict[type[errors.SandboxError], str] = {
    errors.UnauthenticatedError: "give the server's key with --api-key or in OPEN_SANDBOX_API_KEY",
    errors.DeadlineExceededError: "the server was too slow to answer; allow it longer with --timeout",
    errors.UnimplementedError: "`osbctl runtime` shows what this server can do",
    errors.InternalError: "look for the request in the server's log",
}


class CommandFailedError(Exception):
    """A command that ends badly though no call failed."""

    def __init__(self, message: str, exit: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.exit = exit


def say(text: str) -> None:
    """An error, on standard error."""
    click.echo(f"{click.style('error:', fg='red')} {text}", err=True)


def exit_code(error: errors.SandboxError) -> Exit:
    if isinstance(error, errors.NotReachedError):
        return Exit.TIMED_OUT if error.timed_out else Exit.FAILED
    return _EXITS.get(type(error), Exit.FAILED)


def report(error: errors.SandboxError) -> None:
    """Says what is wrong, why, what to do, and which request it was."""
    if error.field_violations:
        say("the server refused the request")
        for violation in error.field_violations:
            click.echo(f"  {violation.path}: {violation.description}", err=True)
    else:
        say(error.message)
    if error.reason:
        click.echo(f"reason: {error.reason}", err=True)
    if hint := _hint(error):
        click.echo(f"hint: {hint}", err=True)
    if error.request_id:
        click.echo(f"request id: {error.request_id}", err=True)


def _hint(error: errors.SandboxError) -> str:
    if isinstance(error, errors.UnavailableError) and not error.reason:
        return (
            "is opensandboxd running there? Choose its address with --domain HOST:PORT or in OPEN_SANDBOX_DOMAIN; "
            "if it serves TLS, add --tls or --tls-ca"
        )
    if error.retry_after is not None:
        return f"try again in {error.retry_after:g} s"
    return _HINTS.get(type(error), "")
