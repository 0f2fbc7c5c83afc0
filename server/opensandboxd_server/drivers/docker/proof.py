"""Proves the configured runtime: runs one throw-away container under it and reads the kernel from inside.

The container's image holds nothing but kernelprobe/probe-*, a static binary, and is made on the engine when absent.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from opensandboxd_server.domain.errors import BackendError, SandboxError, StartupError
from opensandboxd_server.domain.model import Isolation
from opensandboxd_server.domain.names import LABEL_PREFIX
from opensandboxd_server.domain.runtimes import RuntimeProof
from opensandboxd_server.drivers.docker.api import DockerApi
from opensandboxd_server.drivers.docker.options import NONE, DockerOptions
from opensandboxd_server.drivers.docker.removal import Removals

LABEL = f"{LABEL_PREFIX}/kernel-probe"
REPOSITORY = "opensandboxd/kernel-probe"
TIMEOUT = 30
"""Seconds that the probe has to run, once it is started."""
_NAME = "opensandboxd-kernel-probe-"
_PROBE = "/probe"
_UNAME_FIELDS = 5
_GVISOR = "Starting gVisor"


@dataclass(frozen=True, slots=True)
class Kernel:
    """What uname(2) says, and the first line of the kernel's log, "" when it may not be read."""

    system: str
    release: str
    version: str
    log: str

    def __str__(self) -> str:
        name = f"{self.system} {self.release} {self.version}"
        return f"{name}; dmesg: {self.log}" if self.log else name


async def prove(api: DockerApi, removals: Removals, options: DockerOptions, host: Mapping[str, Any]) -> RuntimeProof:
    """StartupError unless the kernel inside is the kind that the runtime promises. `host` is the engine's GET /info."""
    runtime = f'the OCI runtime "{options.oci_runtime}" of [secure_runtime] type = "{options.runtime.type}"'
    try:
        kernel = await _kernel_inside(api, removals, options)
    except SandboxError as exc:
        trial = f"docker run --rm --runtime {options.oci_runtime} IMAGE dmesg"
        raise StartupError(f"{runtime} does not work: {exc.message}; try it: {trial}") from exc
    if problem := mismatch(kernel, options.runtime.isolation, host["KernelVersion"]):
        raise StartupError(f"{runtime} does not isolate: {problem}. Check what the engine's daemon.json has it run")
    return RuntimeProof(str(kernel), datetime.now(UTC))


def mismatch(kernel: Kernel, isolation: Isolation, host_release: str) -> str:
    """Why this is not the kernel that `isolation` promises, or ""."""
    if isolation is Isolation.USER_SPACE_KERNEL and _GVISOR not in kernel.log:
        return f'a container under it saw the kernel "{kernel}", which is not gVisor\'s'
    if isolation in (Isolation.VM, Isolation.MICRO_VM) and kernel.release == host_release:
        return f'a container under it saw the kernel "{kernel}", which is the host\'s own, so there is no VM'
    return ""


def read_kernel(output: bytes) -> Kernel:
    """What the probe printed, understood; BackendError when it is cut short."""
    lines = output.decode(errors="replace").splitlines()
    if len(lines) < _UNAME_FIELDS:
        raise BackendError(f"the kernel probe printed {output!r}")
    system, _, release, version, _ = lines[:_UNAME_FIELDS]
    log = lines[_UNAME_FIELDS] if len(lines) > _UNAME_FIELDS else ""
    return Kernel(system, release, version, log.rpartition("] ")[2])


async def _kernel_inside(api: DockerApi, removals: Removals, options: DockerOptions) -> Kernel:
    for leftover in await api.list_containers(f"{LABEL}={options.instance}"):
        if leftover["Names"][0].startswith(f"/{_NAME}"):  # a label alone may come from any image
            await removals.remove(leftover["Id"])
    image = await _image(api)
    name = f"{_NAME}{secrets.token_hex(4)}"
    try:
        await api.create_container(name, _body(image, options))
        await api.start_container(name)
        await api.wait_container(name, TIMEOUT)
        return read_kernel(await api.container_output(name))
    finally:
        await removals.leave_nothing(name)


async def _image(api: DockerApi) -> str:
    arch = (await api.version())["Arch"]
    binary = files(f"{__package__}.kernelprobe").joinpath(f"probe-{arch}")
    if not binary.is_file():
        raise StartupError(f"this server brings no kernel probe for {arch}, so it cannot prove a secure runtime there")
    content = binary.read_bytes()
    tag = hashlib.sha256(content).hexdigest()[:16]
    if not await api.has_image(f"{REPOSITORY}:{tag}"):
        await api.import_image(_archive(content), REPOSITORY, tag)
    return f"{REPOSITORY}:{tag}"


def _archive(binary: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(_PROBE.lstrip("/"))
        entry.size, entry.mode = len(binary), 0o755
        tar.addfile(entry, io.BytesIO(binary))
    return archive.getvalue()


def _body(image: str, options: DockerOptions) -> dict[str, Any]:
    return {
        "Image": image,
        "Entrypoint": [_PROBE],
        "Labels": {LABEL: options.instance},
        "HostConfig": {
            "Runtime": options.oci_runtime,
            "NetworkMode": NONE,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
        },
    }
