"""Conversion: what a caller sends and what it is sent back say the same, whatever is in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd_server.domain import model
from opensandboxd_server.rpc import convert
from opensandboxd_server.service.following import WatchEvent, WatchKind

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts = st.dictionaries(text, text, max_size=3)
times = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))
sources = (
    st.builds(model.ImageSource, text)
    | st.builds(model.SnapshotSource, text)
    | st.builds(model.PoolSource, text)
    | st.none()
)
volumes = st.builds(
    model.Volume,
    text,
    st.builds(model.HostPathSource, text) | st.builds(model.NamedVolumeSource, text) | st.none(),
    text,
    st.booleans(),
    text,
)
specs = st.builds(
    model.SandboxSpec,
    source=sources,
    entrypoint=st.lists(text, max_size=3).map(tuple),
    env=texts,
    resources=st.builds(model.ResourceLimits, text, text, text),
    network_policy=st.none()
    | st.builds(
        model.NetworkPolicy,
        st.sampled_from(model.NetworkAction),
        st.lists(st.builds(model.EgressRule, st.sampled_from(model.NetworkAction) | st.none(), text), max_size=3).map(
            tuple
        ),
    ),
    volumes=st.lists(volumes, max_size=2).map(tuple),
    platform=st.none() | st.builds(model.Platform, text, text),
    require_secure_runtime=st.booleans(),
    ports=st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple),
)
runtimes = st.builds(model.SandboxRuntime, text, st.sampled_from(model.Isolation), oci_runtime=text) | st.builds(
    model.SandboxRuntime, text, st.sampled_from(model.Isolation), runtime_class=text
)
statuses = st.builds(
    model.SandboxStatus,
    st.sampled_from(model.SandboxState),
    runtimes,
    times,
    text,
    text,
    st.none() | st.integers(0, 255),
)
sandboxes = st.builds(model.Sandbox, text, texts, specs, statuses, times, st.none() | times, st.integers(0, 2**31))


@given(specs)
@settings(deadline=None)
def test_a_spec_comes_back_as_it_was_sent(spec: model.SandboxSpec) -> None:
    sent = convert.sandbox(sandbox_of(spec)).spec

    assert convert.create_request(rpc.CreateSandboxRequest(spec=sent)).spec == spec
    again = convert.sandbox(sandbox_of(convert.create_request(rpc.CreateSandboxRequest(spec=sent)).spec)).spec
    assert again == sent == pb.SandboxSpec.FromString(sent.SerializeToString())


@given(sandboxes)
@settings(deadline=None)
def test_a_sandbox_is_told_whole(sandbox: model.Sandbox) -> None:
    message = convert.sandbox(sandbox)
    status = message.status

    assert (message.id, dict(message.metadata), message.etag) == (sandbox.id, dict(sandbox.metadata), sandbox.etag)
    assert message.create_time.ToDatetime(UTC) == sandbox.create_time
    assert message.HasField("expire_time") == (sandbox.expire_time is not None)
    assert not sandbox.expire_time or message.expire_time.ToDatetime(UTC) == sandbox.expire_time
    assert pb.SandboxState.Name(status.state) == f"SANDBOX_STATE_{sandbox.status.state.name}"
    assert (status.reason, status.message) == (sandbox.status.reason, sandbox.status.message)
    assert status.last_transition_time.ToDatetime(UTC) == sandbox.status.last_transition_time
    assert status.HasField("exit_code") == (sandbox.status.exit_code is not None)
    assert status.exit_code == (sandbox.status.exit_code or 0)
    runtime = sandbox.status.runtime
    assert status.runtime.secure_runtime == runtime.secure_runtime
    assert (status.runtime.oci_runtime, status.runtime.runtime_class) == (runtime.oci_runtime, runtime.runtime_class)
    assert pb.Isolation.Name(status.runtime.isolation) == f"ISOLATION_{runtime.isolation.name}"


@given(st.builds(model.ImageSource, text, st.builds(model.RegistryAuth, text, text)))
def test_registry_credentials_are_taken_and_never_told(image: model.ImageSource) -> None:
    assert image.auth
    request = rpc.CreateSandboxRequest()
    request.spec.image.uri = image.uri
    request.spec.image.auth.username, request.spec.image.auth.password = image.auth.username, image.auth.password

    taken = convert.create_request(request)

    assert taken.spec.source == image
    assert not convert.sandbox(sandbox_of(taken.spec)).spec.image.HasField("auth")


@given(
    texts,
    st.none() | st.timedeltas(min_value=timedelta(days=-36500), max_value=timedelta(days=36500)),
    st.none() | times,
    text,
    st.booleans(),
    st.sampled_from(rpc.ReturnWhen.values()),
)
def test_a_create_request_is_taken_whole(
    metadata: dict[str, str], ttl: timedelta | None, at: datetime | None, request_id: str, only: bool, when: Any
) -> None:
    request = rpc.CreateSandboxRequest(metadata=metadata, request_id=request_id, validate_only=only, return_when=when)
    if ttl is not None:
        request.ttl.FromTimedelta(ttl)
    elif at is not None:
        request.expire_time.FromDatetime(at)

    taken = convert.create_request(request)

    assert (taken.metadata, taken.request_id, taken.validate_only) == (metadata, request_id, only)
    assert taken.expiration == model.Expiration(ttl=ttl, at=None if ttl is not None else at)
    assert (taken.return_when is model.ReturnWhen.ACCEPTED) == (when == rpc.RETURN_WHEN_ACCEPTED)


@given(sandboxes, st.sampled_from(WatchKind), text)
@settings(deadline=None)
def test_a_watch_event_is_told_as_its_kind(sandbox: model.Sandbox, kind: WatchKind, version: str) -> None:
    bookmark = kind in (WatchKind.BOOKMARK, WatchKind.SNAPSHOT_END)
    message = convert.watch_event(WatchEvent(kind, None if bookmark else sandbox, version))

    assert message.resource_version == version
    if bookmark:
        assert message.bookmark.snapshot_end == (kind is WatchKind.SNAPSHOT_END)
        assert message.WhichOneof("event") == "bookmark"
    else:
        assert message.WhichOneof("event") == kind.value
        assert getattr(message, kind.value) == convert.sandbox(sandbox)


@given(st.lists(st.text(alphabet="metadata.`akeys/x*", max_size=16), min_size=1, max_size=3), texts)
def test_an_update_changes_only_what_its_mask_names(paths: list[str], metadata: dict[str, str]) -> None:
    request = rpc.UpdateSandboxRequest(metadata=metadata)
    request.update_mask.paths.extend(paths)
    before = {"untouched": "1"}
    try:
        after = convert.metadata_change(request).apply(before)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be ours
        assert type(error).__name__ == "InvalidArgument"  # noqa: PT017
        return
    named = {path.removeprefix("metadata.").strip("`") for path in paths}
    if not {"*", "metadata"} & set(paths):
        assert {**before, **after} == after or "untouched" in named
        assert set(after) - set(before) <= named


@given(st.integers(1, 65535), st.sampled_from(["1.2.3.4", "example.com", "::1", "fe80::1"]))
def test_an_address_is_its_host_and_port(port: int, host: str) -> None:
    reply = convert.endpoint(model.Endpoint(host, port, {"h": "v"}))

    assert (reply.host, reply.port, dict(reply.headers)) == (host, port, {"h": "v"})
    assert reply.address == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def sandbox_of(spec: model.SandboxSpec) -> model.Sandbox:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    runtime = model.SandboxRuntime("", model.Isolation.PROCESS)
    return model.Sandbox("sbx-1", {}, spec, model.SandboxStatus(model.SandboxState.RUNNING, runtime, now), now)
