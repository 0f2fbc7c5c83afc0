"""The Docker engine by itself, through docker-py: the baseline; and what else the benchmark asks of the engine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import docker
import docker.errors

from bench.threads import MOST, Threads

RUN_LABEL = "opensandboxd-bench"

Body = dict[str, Any]


class Engine:
    """`run` labels all that is made here."""

    def __init__(self, run: str, threads: Threads) -> None:
        self._run = run
        self._threads = threads
        self._client = docker.APIClient(version="auto", timeout=120, max_pool_size=MOST)

    # What is measured

    async def create(self, body: Body) -> str:
        """Creates the container and starts it; returns its name."""

        def create() -> str:
            name = f"bench-{uuid4().hex[:12]}"
            self._client.create_container_from_config(body, name)  # type: ignore[no-untyped-call]
            self._client.start(name)
            return name

        return await self._threads.run(create)

    async def delete(self, name: str) -> None:
        await self._threads.run(lambda: self._client.remove_container(name, force=True, v=True))

    # What is asked beside

    def bare_body(self, image: str, command: list[str], runtime: str = "") -> Body:
        """What the engine makes of an image and a command, everything else at its default."""
        host_config = {"Runtime": runtime} if runtime else {}
        return {"Image": image, "Cmd": command, "Labels": {RUN_LABEL: self._run}, "HostConfig": host_config}

    def body_like(self, container: str) -> Body:
        """The configuration that this container has, under labels that make it nobody's sandbox."""
        found = self._client.inspect_container(container)
        labels = {f"bench.{key}": value for key, value in found["Config"]["Labels"].items()}
        config = {key: value for key, value in found["Config"].items() if key != "Hostname"}
        return {**config, "Labels": labels | {RUN_LABEL: self._run}, "HostConfig": found["HostConfig"]}

    def container_of(self, label: str) -> str:
        """The id of the one container that carries the label."""
        (container,) = self._client.containers(all=True, filters={"label": label})
        return str(container["Id"])

    def versions(self) -> Mapping[str, str]:
        """Of the engine and of its components."""
        answer = self._client.version()
        return {
            f"Docker {part['Name']}" if part["Name"] == "Engine" else part["Name"]: part["Version"]
            for part in answer["Components"]
        }

    def has_image(self, image: str) -> bool:
        with suppress(docker.errors.ImageNotFound):
            return bool(self._client.inspect_image(image))  # type: ignore[no-untyped-call]
        return False

    def build_image(self, base: str, name: str, files: Mapping[str, str]) -> None:
        """`base` with these executable files in its root."""
        container = self._client.create_container(base, ["true"], labels={RUN_LABEL: self._run})["Id"]
        try:
            self._client.put_archive(container, "/", _archive(files))
            repository, _, tag = name.partition(":")
            self._client.commit(container, repository, tag)
        finally:
            self._client.remove_container(container, force=True)

    def remove_image(self, name: str) -> None:
        with suppress(docker.errors.ImageNotFound):
            self._client.remove_image(name, force=True)

    def sweep(self, *filters: str) -> None:
        """Removes the containers and networks that pass any of the filters, such as "label=key=value"."""
        for key, value in (filter.split("=", 1) for filter in filters):
            for container in self._client.containers(all=True, filters={key: value}):
                with suppress(docker.errors.NotFound):
                    self._client.remove_container(container["Id"], force=True, v=True)
            if key != "ancestor":
                for network in self._client.networks(filters={key: value}):
                    self._client.remove_network(network["Id"])

    def close(self) -> None:
        self._client.close()


def _archive(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()
