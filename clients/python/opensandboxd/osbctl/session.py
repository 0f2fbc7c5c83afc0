"""What every command shares: the global options, a connected client, and an orderly end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import click

from opensandboxd import TLS, AsyncClient, SandboxError
from opensandboxd.client import DEFAULT_TIMEOUT
from opensandboxd.osbctl.failure import CommandFailedError, Exit, exit_code, report, say
from opensandboxd.osbctl.output import FORMATS
from opensandboxd.osbctl.params import duration


@dataclass(slots=True)
class Options:
    """The global options; each may stand before or after the command's name."""

    domain: str | None = None
    api_key: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    timeout: float | None = None
    output: str = "table"

    def client(self) -> AsyncClient:
        """ValueError when the options do not go together."""
        files = TLS(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
        tls = files if files != TLS() else self.tls
        timeout = DEFAULT_TIMEOUT if self.timeout is None else self.timeout
        return AsyncClient(self.domain, api_key=self.api_key, tls=tls, timeout=timeout)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of one command. `output` is one of output.FORMATS."""

    client: AsyncClient
    output: str
    timeout: float | None


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name:
        setattr(ctx.find_root().ensure_object(Options), param.name, value)


def _global(*names: str, **attributes: Any) -> click.Option:
    return click.Option(names, default=None, expose_value=False, callback=_keep, **attributes)


_FILE = click.Path(exists=True, dir_okay=False)
GLOBALS = [
    _global("--domain", metavar="HOST:PORT", help="The server. [OPEN_SANDBOX_DOMAIN, else localhost:8080]"),
    _global("--api-key", metavar="KEY", help="Its API key. [OPEN_SANDBOX_API_KEY]"),
    _global("--tls", is_flag=True, help="Speak TLS; verify the server by the usual roots."),
    _global("--tls-ca", type=_FILE, help="Speak TLS; verify the server by this CA (PEM)."),
    _global("--tls-cert", type=_FILE, help="Client certificate (PEM), for mutual TLS."),
    _global("--tls-key", type=_FILE, help="The client certificate's key (PEM)."),
    _global("--timeout", type=duration, help="Longest wait for a reply. [60s; create 300s]"),
    _global("-o", "--output", type=click.Choice(FORMATS), help="How to print. [table]"),
]


class Command(click.Command):
    """A command that takes the global options, too, and lists them apart."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        own = {name for parameter in self.params for name in parameter.opts}
        self.params += [option for option in GLOBALS if own.isdisjoint(option.opts)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, is_global in (("Options", False), ("Global options", True)):
            options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
            shown = [option for option in options if (option in GLOBALS) is is_global]
            records = [record for option in shown if (record := option.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def connected(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a plain function of an async one whose first parameter is a Session. It ends with the exit code that the
    errors of the client stand for; Ctrl-C cancels it."""

    async def run(options: Options, parameters: dict[str, Any]) -> None:
        async with options.client() as client:
            await function(Session(client, options.output, options.timeout), **parameters)

    @functools.wraps(function)
    def command(**parameters: Any) -> None:
        ctx = click.get_current_context()
        try:
            asyncio.run(run(ctx.find_root().ensure_object(Options), parameters))
        except SandboxError as error:
            report(error)
            ctx.exit(exit_code(error))
        except CommandFailedError as error:
            say(str(error))
            ctx.exit(error.exit)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(Exit.INTERRUPTED)

    return command
