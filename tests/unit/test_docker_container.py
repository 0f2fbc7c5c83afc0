"""A plan as a container's create body, whole, against golden files; and its labels read back.

After an intended change: OPENSANDBOXD_WRITE_GOLDENS=1 pytest tests/unit/test_docker_container.py, then read the diff.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opensandboxd_server.domain.model import (
    EgressRule,
    HostPathSource,
    ImageSource,
    Isolation,
    NamedVolumeSource,
    NetworkAction,
    NetworkPolicy,
    Platform,
    RegistryAuth,
    ResourceLimits,
    SandboxRuntime,
    SandboxSpec,
    SandboxState,
    Volume,
)
from opensandboxd_server.domain.policy import SandboxPlan, SecurityPlan
from opensandboxd_server.drivers.docker.container import INSTANCE, create_body, labels, observation, platform
from opensandboxd_server.drivers.docker.options import DockerOptions
from opensandboxd_server.drivers.docker.state import ContainerState

GOLDENS = Path(__file__).parent / "data" / "docker"
CREATED = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
PASSWORD = "registry-password-that-is-told-to-nobody"
DROPPED = (
    "AUDIT_WRITE",
    "MKNOD",
    "NET_ADMIN",
    "NET_RAW",
    "SYS_ADMIN",
    "SYS_MODULE",
    "SYS_PTRACE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
)
RUNC = SandboxRuntime("", Isolation.PROCESS)
GVISOR = SandboxRuntime("gvisor", Isolation.USER_SPACE_KERNEL, oci_runtime="runsc")
KATA = SandboxRuntime("kata-qemu", Isolation.VM, oci_runtime="kata-runtime")


def plan_of(**changes: Any) -> SandboxPlan:
    image = ImageSource("python:3.12-slim")
    plan = SandboxPlan(
        id="sbx-0123456789abcdefghij",
        spec=SandboxSpec(image),
        image=image,
        metadata={},
        create_time=CREATED,
        expire_time=None,
        runtime=RUNC,
        security=SecurityPlan(DROPPED, no_new_privileges=True, pids_limit=4096, seccomp="", apparmor=""),
    )
    return replace(plan, **changes)


def everything() -> SandboxPlan:
    image = ImageSource("registry.example.com:5000/team/app:1", RegistryAuth("robot", PASSWORD))
    spec = SandboxSpec(
        source=ImageSource(image.uri),
        entrypoint=("python", "-c", "print('hi')"),
        env={"TOKEN": "a=b", "EMPTY": ""},
        resources=ResourceLimits("500m", "512Mi", "1"),
        platform=Platform("linux", "arm64"),
        require_secure_runtime=True,
        ports=(8080, 9090),
    )
    return plan_of(
        spec=spec,
        image=image,
        metadata={"team": "blue", "example.com/ümläut": 'ja, "so"'},
        expire_time=CREATED + timedelta(hours=1),
        runtime=KATA,
        security=SecurityPlan(DROPPED, True, 512, seccomp='{"defaultAction":"SCMP_ACT_ERRNO"}', apparmor="sandbox"),
        env=spec.env,
        entrypoint=spec.entrypoint,
        nano_cpus=500_000_000,
        memory_bytes=512 << 20,
        gpus=1,
        platform=spec.platform,
        ports=spec.ports,
    )


CASES: dict[str, tuple[SandboxPlan, DockerOptions]] = {
    "least": (plan_of(), DockerOptions("blue")),
    "gvisor": (plan_of(runtime=GVISOR), DockerOptions("blue")),
    "everything": (everything(), DockerOptions("blue", publish_host="0.0.0.0")),
    "host-network": (plan_of(ports=(8080,)), DockerOptions("blue", network_mode="host")),
    "no-network": (plan_of(ports=(8080,)), DockerOptions("blue", network_mode="none")),
    "user-network": (plan_of(ports=(8080,)), DockerOptions("blue", network_mode="backend")),
    "hardening-off": (
        plan_of(security=SecurityPlan((), no_new_privileges=False, pids_limit=None, seccomp="", apparmor="")),
        DockerOptions("blue"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_create_body_is_the_golden_one(name: str) -> None:
    body = create_body(*CASES[name])
    golden = GOLDENS / f"{name}.json"
    if os.environ.get("OPENSANDBOXD_WRITE_GOLDENS"):
        golden.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    assert body == json.loads(golden.read_text())


def test_every_golden_has_its_case() -> None:
    assert {file.stem for file in GOLDENS.glob("*.json")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_no_container_is_ever_weaker_than_its_plan(name: str) -> None:
    plan, options = CASES[name]
    text = (GOLDENS / f"{name}.json").read_text()
    body = json.loads(text)
    host = body["HostConfig"]
    weakening = {
        "Privileged",
        "Binds",
        "Mounts",
        "CapAdd",
        "Devices",
        "PidMode",
        "UTSMode",
        "UsernsMode",
        "CgroupnsMode",
    }
    assert not weakening & host.keys()
    assert host["IpcMode"] == "private"
    assert (host["NetworkMode"] == "host") == (options.network_mode == "host")
    assert host.get("Runtime", "") == plan.runtime.oci_runtime
    assert host["CapDrop"] == list(plan.security.drop_capabilities)
    assert ("no-new-privileges" in host["SecurityOpt"]) == plan.security.no_new_privileges
    assert host.get("PidsLimit") == plan.security.pids_limit
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["LogConfig"]["Config"].keys() == {"max-size", "max-file"}
    assert host.get("Memory") == host.get("MemorySwap")
    assert PASSWORD not in text
    assert all(label.startswith("opensandbox.io/") for label in body["Labels"])
    assert body["Labels"][INSTANCE] == options.instance


def test_a_secure_plan_without_an_oci_runtime_is_refused() -> None:
    with pytest.raises(ValueError, match="names no OCI runtime"):
        create_body(plan_of(runtime=replace(GVISOR, oci_runtime="")), DockerOptions("blue"))


def test_the_engine_is_always_told_a_platform() -> None:
    native = Platform("linux", "amd64")
    assert platform(plan_of(), native) == "linux/amd64"
    assert platform(plan_of(platform=Platform(arch="arm64")), native) == "linux/arm64"
    assert platform(plan_of(platform=Platform("linux", "")), native) == "linux/amd64"


# What labels hold comes back

text = st.text(max_size=20)
names = st.dictionaries(text, text, max_size=3)
times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
sources = st.builds(HostPathSource, text) | st.builds(NamedVolumeSource, text)
policies = st.builds(
    NetworkPolicy,
    st.sampled_from(NetworkAction),
    st.lists(st.builds(EgressRule, st.sampled_from(NetworkAction), text), max_size=2).map(tuple),
)
specs = st.builds(
    SandboxSpec,
    source=st.builds(ImageSource, text, st.none()),
    entrypoint=st.lists(text, max_size=3).map(tuple),
    env=names,
    resources=st.builds(ResourceLimits, text, text, text),
    network_policy=st.none() | policies,
    volumes=st.lists(st.builds(Volume, text, sources, text, st.booleans(), text), max_size=2).map(tuple),
    platform=st.none() | st.builds(Platform, text, text),
    require_secure_runtime=st.booleans(),
    ports=st.lists(st.integers(1, 65535), max_size=3).map(tuple),
)
plans = st.builds(
    plan_of,
    spec=specs,
    metadata=names,
    create_time=times,
    expire_time=st.none() | times,
    runtime=st.sampled_from([RUNC, GVISOR, KATA]),
)


@given(plans)
def test_what_a_plan_fixes_is_read_back_from_the_labels(plan: SandboxPlan) -> None:
    written = json.loads(json.dumps(labels(plan, "blue")))
    later = plan.create_time + timedelta(seconds=1)
    read = observation(written, ContainerState(SandboxState.FAILED, later, "KILLED", "by hand", 137))
    assert (read.id, read.spec, read.metadata) == (plan.id, plan.spec, plan.metadata)
    assert (read.create_time, read.expire_time, read.runtime) == (plan.create_time, plan.expire_time, plan.runtime)
    assert (read.state, read.state_time, read.reason) == (SandboxState.FAILED, later, "KILLED")
    assert (read.message, read.exit_code) == ("by hand", 137)


def test_a_state_is_never_older_than_its_sandbox() -> None:
    read = observation(labels(plan_of(), "blue"), ContainerState(SandboxState.RUNNING, CREATED.replace(microsecond=0)))
    assert read.state_time == CREATED


@pytest.mark.parametrize("label", [label for label in labels(plan_of(), "blue") if label != INSTANCE])
def test_labels_that_are_not_of_our_making_are_refused(label: str) -> None:
    written = labels(plan_of(), "blue")
    del written[label]
    with pytest.raises(ValueError, match="missing"):
        observation(written, ContainerState(SandboxState.RUNNING, CREATED))
