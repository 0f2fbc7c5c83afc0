"""`osbctl watch` on a terminal: the table of what there is, drawn anew with every change."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from rich.live import Live
from rich.table import Table

from opensandboxd import Sandbox, WatchSandboxesResponse
from opensandboxd.osbctl import output


async def show(events: AsyncGenerator[WatchSandboxesResponse, None]) -> None:
    """Draws until the events end, which is with an error or Ctrl-C. Ages go on between changes."""
    known: dict[str, Sandbox] = {}
    with Live(get_renderable=lambda: _table(known), refresh_per_second=2):
        async for event in events:
            match event.WhichOneof("event"):
                case "added" | "updated" as kind:
                    sandbox: Sandbox = getattr(event, kind)
                    known[sandbox.id] = sandbox
                case "removed":
                    known.pop(event.removed.id, None)


def _table(known: dict[str, Sandbox]) -> Table:
    table = Table(*output.COLUMNS, box=None, pad_edge=False, header_style="")
    for sandbox in list(known.values()):
        table.add_row(*output.row(sandbox), style=output.COLOURS.get(output.state_name(sandbox)))
    return table
