"""How an image pull goes, for people: the engine's messages about layers, summed up in a sentence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opensandboxd_server.domain.ports import Progress

REASON = "IMAGE_PULLING"
_INTERVAL = 0.25
_MB = 1_000_000
_HERE = ("Pull complete", "Already exists")
_DOWNLOADED = ("Verifying Checksum", "Download complete", "Extracting", *_HERE)


@dataclass(slots=True)
class _Layer:
    size: int = 0
    downloaded: int = 0
    here: bool = False


class PullProgress:
    """Tells `progress` at most every quarter of a second."""

    def __init__(self, image: str, progress: Progress) -> None:
        self._image = image
        self._progress = progress
        self._layers: dict[str, _Layer] = {}
        self._told_at = 0.0
        self.error = ""
        """What the engine says went wrong, if it did."""

    def take(self, messages: list[dict[str, Any]]) -> None:
        """Takes in messages of POST /images/create."""
        for message in messages:
            self.error = message.get("error", self.error)
            self._take_layer(message)
        now = time.monotonic()
        if now - self._told_at >= _INTERVAL:
            self._told_at = now
            self._progress(REASON, self.sentence())

    def sentence(self) -> str:
        if not self._layers:
            return f"pulling {self._image}"
        layers = self._layers.values()
        here = sum(layer.here for layer in layers)
        text = f"pulling {self._image}: {here} of {len(layers)} layers"
        size = sum(layer.size for layer in layers)
        downloaded = sum(layer.downloaded for layer in layers)
        return f"{text}, {downloaded / _MB:.1f} of {size / _MB:.1f} MB" if size else text

    def _take_layer(self, message: Mapping[str, Any]) -> None:
        status = message.get("status", "")
        if status in ("Pulling fs layer", "Already exists"):
            self._layers.setdefault(message["id"], _Layer())
        layer = self._layers.get(message.get("id", ""))
        if not layer:
            return
        detail = message.get("progressDetail") or {}
        if status == "Downloading" and "total" in detail:
            layer.size, layer.downloaded = detail["total"], detail["current"]
        if status in _DOWNLOADED:
            layer.downloaded = layer.size
        layer.here = status in _HERE
