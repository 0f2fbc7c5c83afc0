"""Policy: "A plan is never weaker than the settings.", whatever a request asks for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opensandboxd_server.app import sandbox_runtime
from opensandboxd_server.domain.errors import FailedPrecondition, InvalidArgument, SandboxError, Unsupported
from opensandboxd_server.domain.model import (
    CreateRequest,
    EgressRule,
    Expiration,
    HostPathSource,
    ImageSource,
    NamedVolumeSource,
    NetworkAction,
    NetworkPolicy,
    Platform,
    PoolSource,
    RegistryAuth,
    ResourceLimits,
    SandboxSpec,
    SnapshotSource,
    Volume,
)
from opensandboxd_server.domain.policy import MIN_TTL, Policy
from opensandboxd_server.domain.quantities import memory_bytes, nano_cpus
from opensandboxd_server.domain.runtimes import CAPABILITIES, RUNTIMES, capabilities_of
from tests import harness

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CPUS = 8

text = st.text(max_size=20)
images = st.builds(
    ImageSource, st.sampled_from(["img:1", "a/b", "", "X"]), st.none() | st.builds(RegistryAuth, text, text)
)
specs = st.builds(
    SandboxSpec,
    source=images | st.builds(SnapshotSource, text) | st.builds(PoolSource, text) | st.none(),
    entrypoint=st.lists(text, max_size=3).map(tuple),
    env=st.dictionaries(st.sampled_from(["A", "B_1", "LD_PRELOAD", "1X"]), text, max_size=3),
    resources=st.builds(
        ResourceLimits,
        st.sampled_from(["", "10m", "8", "9", "1e30", "x"]),
        st.sampled_from(["", "16Mi", "1Gi", "1", "x"]),
        st.sampled_from(["", "", "1", "0"]),
    ),
    network_policy=st.none()
    | st.builds(
        NetworkPolicy,
        st.sampled_from(NetworkAction),
        st.lists(st.builds(EgressRule, st.sampled_from(NetworkAction) | st.none(), text), max_size=2).map(tuple),
    ),
    volumes=st.lists(
        st.builds(Volume, text, st.builds(HostPathSource, text) | st.builds(NamedVolumeSource, text), text), max_size=1
    ).map(tuple),
    platform=st.none() | st.builds(Platform, text, text),
    require_secure_runtime=st.booleans(),
    ports=st.lists(st.sampled_from([1, 80, 65535, 0, 65536]), max_size=2).map(tuple),
)
expirations = (
    st.builds(Expiration)
    | st.builds(Expiration, ttl=st.timedeltas(min_value=timedelta(days=-9), max_value=timedelta(days=9000)))
    | st.builds(Expiration, at=st.datetimes(timezones=st.just(UTC)))
)
requests = st.builds(CreateRequest, spec=specs, metadata=st.just({}), expiration=expirations)
servers = st.fixed_dictionaries(
    {
        "docker": st.fixed_dictionaries(
            {
                "drop_capabilities": st.lists(st.sampled_from(["SYS_ADMIN", "NET_RAW", "MKNOD"]), unique=True),
                "no_new_privileges": st.booleans(),
                "pids_limit": st.none() | st.integers(1, 99),
                "seccomp_profile": st.sampled_from(["", "unconfined"]),
                "apparmor_profile": st.sampled_from(["", "docker-default"]),
            }
        ),
        "secure_runtime": st.fixed_dictionaries({"type": st.sampled_from(["", "gvisor", "kata-qemu", "kata-clh"])}),
        "server": st.fixed_dictionaries({"max_sandbox_timeout_seconds": st.sampled_from([None, 60, 3600])}),
    }
)
lacks = st.lists(st.sampled_from(sorted(CAPABILITIES)), max_size=3).map(lambda names: dict.fromkeys(names, "not here"))


def policy(sections: dict[str, Any], lacking: dict[str, str]) -> Policy:
    configured = harness.settings(**sections)
    runtime = sandbox_runtime(configured)
    return Policy(configured, runtime, capabilities_of(RUNTIMES[runtime.secure_runtime], lacking), CPUS)


@given(servers, lacks, requests)
@settings(max_examples=400, deadline=None)
def test_a_plan_is_never_weaker_than_the_settings(
    sections: dict[str, Any], lacking: dict[str, str], request: CreateRequest
) -> None:
    admission = policy(sections, lacking)
    try:
        plan = admission.plan(request, "sbx-1", NOW)
    except (InvalidArgument, Unsupported, FailedPrecondition):
        return
    docker, asked = sections["docker"], request.spec

    assert set(docker["drop_capabilities"]) <= set(plan.security.drop_capabilities)
    assert plan.security.no_new_privileges or not docker["no_new_privileges"]
    assert plan.security.pids_limit == docker["pids_limit"]
    assert (plan.security.seccomp, plan.security.apparmor) == (docker["seccomp_profile"], docker["apparmor_profile"])
    assert plan.runtime == admission.runtime
    assert plan.runtime.secure_runtime == sections["secure_runtime"]["type"]
    assert bool(plan.runtime.oci_runtime) == bool(plan.runtime.secure_runtime)
    assert plan.runtime.secure_runtime or not asked.require_secure_runtime
    longest = sections["server"]["max_sandbox_timeout_seconds"]
    if plan.expire_time and longest:
        assert plan.expire_time <= NOW + timedelta(seconds=longest)

    # and it is what was asked for, whole
    assert plan.spec == asked.without_auth()
    assert plan.image == asked.source
    assert (plan.entrypoint, plan.env, plan.ports, plan.platform) == (
        asked.entrypoint, asked.env, asked.ports, asked.platform,
    )  # fmt: skip
    assert plan.nano_cpus == (nano_cpus(asked.resources.cpu) if asked.resources.cpu else 0) <= CPUS * 10**9
    assert plan.memory_bytes == (memory_bytes(asked.resources.memory) if asked.resources.memory else 0)
    assert (plan.expire_time is None) == (request.expiration == Expiration())
    assert plan.expire_time is None or plan.expire_time >= NOW + MIN_TTL


@given(servers, lacks, requests)
@settings(max_examples=200, deadline=None)
def test_what_cannot_be_honoured_never_becomes_a_plan(
    sections: dict[str, Any], lacking: dict[str, str], request: CreateRequest
) -> None:
    try:
        plan = policy(sections, lacking).plan(request, "sbx-1", NOW)
    except SandboxError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
        return
    used = {
        "gpu": plan.gpus,
        "platform": plan.platform,
        "endpoints": plan.ports,
        "resources": plan.nano_cpus or plan.memory_bytes,
        "egress": plan.spec.network_policy,
        "volumes": plan.spec.volumes,
        "host_path": plan.spec.volumes,
    }
    assert not [name for name, use in used.items() if use and name in lacking]
    assert not (plan.gpus and plan.runtime.secure_runtime == "gvisor")
    assert not plan.spec.network_policy
    assert not plan.spec.volumes
    assert isinstance(plan.spec.source, ImageSource)


def test_the_secrets_of_a_request_are_in_no_repr_and_in_no_spec() -> None:
    image = ImageSource("img:1", RegistryAuth("user", "s3cret"))
    request = CreateRequest(SandboxSpec(image, env={"TOKEN": "t0ken"}))
    plan = policy({}, {}).plan(request, "sbx-1", NOW)

    assert plan.image == image
    assert plan.spec.source == ImageSource("img:1")
    for value in (request, plan, plan.spec, plan.image, image.auth):
        assert "s3cret" not in repr(value)
        assert "t0ken" not in repr(value)


@pytest.mark.parametrize("seconds", [59.999999, 60, 3600, 3600.000001])
def test_the_bounds_of_expiry_are_inclusive(seconds: float) -> None:
    admission = policy({"server": {"max_sandbox_timeout_seconds": 3600}}, {})
    ttl = timedelta(seconds=seconds)
    for expiration in (Expiration(ttl=ttl), Expiration(at=NOW + ttl)):
        if 60 <= seconds <= 3600:
            assert admission.expiry(expiration, NOW) == NOW + ttl
        else:
            with pytest.raises(InvalidArgument) as caught:
                admission.expiry(expiration, NOW)
            assert [v.field for v in caught.value.violations] == [expiration.field]
