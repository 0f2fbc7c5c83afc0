"""opensandboxd as it is, on the fake driver: for a thousand sandboxes where no engine takes as many."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from opensandboxd_server import logs, settings
from opensandboxd_server.app import App
from opensandboxd_server.drivers.fake import FakeDriver


async def serve(config: Path) -> None:
    loaded = settings.load(config)
    logs.configure(loaded.log)
    app = await App.start(loaded, driver=FakeDriver())
    try:
        await asyncio.Event().wait()
    finally:
        await app.stop()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
