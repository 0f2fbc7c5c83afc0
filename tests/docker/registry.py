"""A registry for one image, over HTTP on loopback: how the OCI distribution specification is read, with a password."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER, PASSWORD = "robot", "an-unlikely-password"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_PIECE = 256 * 1024


@dataclass
class Registry:
    """`pace` is how many seconds it waits between pieces of 256 KiB; while `silent` is set, it answers no request."""

    port: int
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    pace: float = 0.0
    silent: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    refused: int = 0

    @property
    def image(self) -> str:
        return f"127.0.0.1:{self.port}/team/app:1"

    def put(self, files: list[dict[str, bytes]], command: list[str]) -> None:
        """Makes the image: a layer for each dict of path to content."""
        archives = [_archive(layer) for layer in files]
        layers = [self._blob(_LAYER, gzip.compress(archive, 1)) for archive in archives]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": command},
            "rootfs": {"type": "layers", "diff_ids": [_digest(archive) for archive in archives]},
        }
        described = self._blob(_CONFIG, json.dumps(config).encode())
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": layers}
        self.manifest = json.dumps(manifest).encode()

    def _blob(self, media_type: str, content: bytes) -> dict[str, Any]:
        digest = _digest(content)
        self.blobs[digest] = content
        return {"mediaType": media_type, "size": len(content), "digest": digest}


@contextmanager
def serving() -> Iterator[Registry]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    registry = server.registry = Registry(server.server_address[1])  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield registry
    finally:
        registry.silent.clear()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        registry: Registry = self.server.registry
        registry.requests.append(self.path)
        while registry.silent.is_set():
            time.sleep(0.02)
        kind, _, name = self.path.removeprefix("/v2/team/app/").partition("/")
        if not self._is_authorized():
            registry.refused += 1
            self._answer(401, b"{}", {"WWW-Authenticate": 'Basic realm="test"'})
        elif self.path == "/v2/":
            self._answer(200, b"{}", {})
        elif kind == "manifests":
            digest = {"Content-Type": _MANIFEST, "Docker-Content-Digest": _digest(registry.manifest)}
            self._answer(200, registry.manifest, digest)
        elif kind == "blobs" and name in registry.blobs:
            self._answer(200, registry.blobs[name], {"Content-Type": "application/octet-stream"})
        else:
            self._answer(404, b"{}", {})

    def _is_authorized(self) -> bool:
        wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {wanted}"

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), _PIECE):
            try:
                self.wfile.write(body[start : start + _PIECE])
            except OSError:
                return  # the engine has hung up
            time.sleep(self.server.registry.pace if len(body) > _PIECE else 0)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def noise(size: int) -> bytes:
    """What does not compress."""
    return os.urandom(size)


def _archive(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
