"""The command line: its root, and what talks about sandboxes in general. One sandbox's verbs are in verbs.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import get_completion_class

from opensandboxd.osbctl import output
from opensandboxd.osbctl.failure import CommandFailedError, Exit
from opensandboxd.osbctl.params import STATES, pair, to_state
from opensandboxd.osbctl.session import Command, Session, connected
from opensandboxd.osbctl.verbs import VERBS
from opensandboxd.v1.runtime_service_pb2 import SecureRuntime

_EVENTS = ("added", "updated", "removed")


class _Group(Command, click.Group):
    command_class = Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="opensandboxd", prog_name="osbctl")
def cli() -> None:
    """Create, inspect and remove sandboxes for untrusted code on an opensandboxd server.

    Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no such sandbox; 4 server unavailable;
    5 API key missing or wrong; 6 timed out; 130 Ctrl-C.
    """


def main() -> None:
    """The command `osbctl`."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log lines are not for people
    cli(prog_name="osbctl")


def filters(function: Any) -> Any:
    """Adds -l and --state, and hands them over as list() and watch() take them."""
    function = click.option(
        "-l", "--metadata", type=pair, multiple=True, metavar="K=V", help="Only with this metadata; repeatable."
    )(function)
    return click.option("--state", "states", type=STATES, multiple=True, help="Only in this state; repeatable.")(
        function
    )


@cli.command("list")
@filters
@connected
async def list_sandboxes(session: Session, metadata: Sequence[tuple[str, str]], states: Sequence[str]) -> None:
    """List sandboxes, oldest first."""
    found = session.client.list(states=map(to_state, states), metadata=dict(metadata))
    output.print_sandboxes([sandbox async for sandbox in found], session.output)


@cli.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@filters
@connected
async def watch(
    session: Session, ids: Sequence[str], metadata: Sequence[tuple[str, str]], states: Sequence[str]
) -> None:
    """Show sandboxes and every change to them, until Ctrl-C.

    On a terminal this is a live table. Elsewhere each change is one line; with -o json one JSON object, with -o yaml
    one YAML document.
    """
    events = session.client.watch(ids=ids, metadata=dict(metadata), states=map(to_state, states))
    if session.output == "table" and sys.stdout.isatty():
        from opensandboxd.osbctl.live import show  # rich is slow to import

        await show(events)
        return
    async for event in events:
        kind = event.WhichOneof("event")
        if session.output in ("json", "yaml"):
            data = output.to_json(event)
            text = json.dumps(data, ensure_ascii=False) if session.output == "json" else output.to_yaml(data)
            click.echo(text if session.output == "json" else f"---\n{text}", nl=session.output == "json")
        elif kind in _EVENTS:
            sandbox = getattr(event, kind)
            cells = (sandbox.id,) if session.output == "id" else (kind.upper(), *output.row(sandbox))
            click.echo("  ".join(cells))


@cli.command()
@connected
async def runtime(session: Session) -> None:
    """Show what the server runs sandboxes on, what it can honour, and the table of secure runtimes."""
    info = await session.client.runtime_info()
    runtimes = await session.client.secure_runtimes()
    if session.output in ("json", "yaml"):
        data = {"runtimeInfo": output.to_json(info), "secureRuntimes": [output.to_json(one) for one in runtimes]}
        output.print_data(data, session.output)
        return
    secure = info.secure_runtime
    if session.output == "id":
        click.echo(secure.type or "runc")
        return
    backend = secure.oci_runtime or secure.runtime_class
    lines = {
        "Server": info.server_version,
        "Driver": f"{info.driver} {info.driver_version}",
        "Runtime": f"{secure.type or 'runc'}{f' ({backend})' if backend else ''}, {output.isolation(secure.isolation)}",
        "Proved": f"{output.time(secure.validated_time)}: {secure.kernel}" if secure.HasField("validated_time") else "",
        "Can": ", ".join(name for name, can in sorted(info.capabilities.items()) if can.supported),
    }
    output.print_lines({label: text for label, text in lines.items() if text})
    for name, can in sorted(info.capabilities.items()):
        if not can.supported:
            click.echo(f"cannot {name}: {can.reason}")
    click.echo()
    header = ("", "RUNTIME", "ISOLATION", "AVAILABLE", "START", "MEMORY", "BEST FOR")
    output.print_table(header, [_runtime_row(one) for one in runtimes])


def _runtime_row(one: SecureRuntime) -> tuple[str, ...]:
    least, most = (duration.ToMilliseconds() for duration in (one.min_start_overhead, one.max_start_overhead))
    start = f"+{most} ms" if least == most else f"+{least}-{most} ms"
    return (
        "*" if one.configured else "",
        one.type or "runc",
        output.isolation(one.isolation),
        "yes" if one.available else "no",
        start,
        f"+{one.memory_overhead_bytes / 2**20:.0f} MiB",
        one.best_for,
    )


@cli.command()
@connected
async def health(session: Session) -> None:
    """Say whether the server serves. Needs no API key. Exit code 4 when it does not."""
    serving = await session.client.health()
    word = "SERVING" if serving else "NOT_SERVING"
    if session.output in ("json", "yaml"):
        output.print_data({"status": word}, session.output)
    else:
        click.echo(word)
    if not serving:
        raise CommandFailedError("the server cannot reach its backend, or is shutting down", Exit.UNAVAILABLE)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell. To install it:

    \b
    bash   echo 'eval "$(osbctl completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(osbctl completion zsh)"' >> ~/.zshrc
    fish   osbctl completion fish > ~/.config/fish/completions/osbctl.fish
    """
    complete = get_completion_class(shell)
    assert complete
    click.echo(complete(cli, {}, "osbctl", "_OSBCTL_COMPLETE").source())


for verb in VERBS:
    cli.add_command(verb)
