"""Between the contract's messages and the domain's values. Pure; what cannot be converted is InvalidArgument."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from opensandboxd.v1 import runtime_service_pb2 as runtime_pb
from opensandboxd.v1 import sandbox_pb2 as pb
from opensandboxd.v1 import sandbox_service_pb2 as service_pb
from opensandboxd_server.domain import model
from opensandboxd_server.domain.errors import InvalidArgument
from opensandboxd_server.domain.runtimes import Capability
from opensandboxd_server.service.following import Filter, WatchEvent, WatchKind
from opensandboxd_server.service.runtime import RuntimeEntry, RuntimeInfo
from opensandboxd_server.service.sandboxes import MetadataChange

_STATES = {state: pb.SandboxState.Value(f"SANDBOX_STATE_{state.name}") for state in model.SandboxState}
_ISOLATIONS = {isolation: pb.Isolation.Value(f"ISOLATION_{isolation.name}") for isolation in model.Isolation}
_ACTIONS = {action: pb.NetworkAction.Value(f"NETWORK_ACTION_{action.name}") for action in model.NetworkAction}
_STREAMS = {stream: service_pb.LogStream.Value(f"LOG_STREAM_{stream.name}") for stream in model.LogStream}
_STATES_BACK = {number: state for state, number in _STATES.items()}
_ACTIONS_BACK = {number: action for action, number in _ACTIONS.items()}
_STREAMS_BACK = {number: stream for stream, number in _STREAMS.items()}

_MAX_DURATION = 315_576_000_000
"""Seconds: google.protobuf.Duration's own bound, which its Python class does not keep."""

_MESSAGES_KEPT = 1024
_MESSAGE_BYTES_KEPT = 8 * 1024
_MAX_STATUS_MESSAGE = 1024
"""Characters: it may be an engine's or a registry's text, and be of any length."""

_MASK_ENTRY = re.compile(r"metadata\.(?:`(?P<quoted>[^`]+)`|(?P<plain>[^`.]+))")


class _Expiring(Protocol):
    """CreateSandboxRequest and RenewSandboxRequest."""

    @property
    def ttl(self) -> Duration: ...
    @property
    def expire_time(self) -> Timestamp: ...


# Into the domain


def create_request(request: service_pb.CreateSandboxRequest) -> model.CreateRequest:
    if request.return_when not in service_pb.ReturnWhen.values():
        raise InvalidArgument.of("return_when", f"{request.return_when} is not a ReturnWhen this server knows")
    accepted = request.return_when == service_pb.RETURN_WHEN_ACCEPTED
    return model.CreateRequest(
        spec=_spec(request.spec),
        metadata=dict(request.metadata),
        expiration=expiration(request, request.WhichOneof("expiration")),
        request_id=request.request_id,
        validate_only=request.validate_only,
        return_when=model.ReturnWhen.ACCEPTED if accepted else model.ReturnWhen.RUNNING,
    )


def expiration(request: _Expiring, which: str | None) -> model.Expiration:
    if which == "ttl":
        return model.Expiration(ttl=_timedelta(request.ttl, "ttl"))
    if which == "expire_time":
        return model.Expiration(at=_datetime(request.expire_time, "expire_time"))
    return model.Expiration()


def _spec(spec: pb.SandboxSpec) -> model.SandboxSpec:
    return model.SandboxSpec(
        source=_source(spec),
        entrypoint=tuple(spec.entrypoint),
        env=dict(spec.env),
        resources=model.ResourceLimits(spec.resources.cpu, spec.resources.memory, spec.resources.gpu),
        network_policy=_network_policy(spec.network_policy) if spec.HasField("network_policy") else None,
        volumes=tuple(_volume(volume) for volume in spec.volumes),
        platform=model.Platform(spec.platform.os, spec.platform.arch) if spec.HasField("platform") else None,
        require_secure_runtime=spec.require_secure_runtime,
        ports=tuple(spec.ports),
    )


def _source(spec: pb.SandboxSpec) -> model.ImageSource | model.SnapshotSource | model.PoolSource | None:
    match spec.WhichOneof("source"):
        case "image":
            auth = spec.image.auth
            given = spec.image.HasField("auth")
            return model.ImageSource(
                spec.image.uri, model.RegistryAuth(auth.username, auth.password) if given else None
            )
        case "snapshot":
            return model.SnapshotSource(spec.snapshot.id)
        case "pool":
            return model.PoolSource(spec.pool.name)
    return None


def _network_policy(policy: pb.NetworkPolicy) -> model.NetworkPolicy:
    default = policy.default_action or pb.NETWORK_ACTION_DENY
    if default not in _ACTIONS_BACK:
        raise InvalidArgument.of("spec.network_policy.default_action", f"{default} is not an action this server knows")
    rules = tuple(model.EgressRule(_ACTIONS_BACK.get(rule.action), rule.target) for rule in policy.egress)
    return model.NetworkPolicy(_ACTIONS_BACK[default], rules)


def _volume(volume: pb.Volume) -> model.Volume:
    source: model.HostPathSource | model.NamedVolumeSource | None = None
    match volume.WhichOneof("source"):
        case "host_path":
            source = model.HostPathSource(volume.host_path.path)
        case "named":
            source = model.NamedVolumeSource(volume.named.name)
    return model.Volume(volume.name, source, volume.mount_path, volume.read_only, volume.sub_path)


def states(numbers: Iterable[pb.SandboxState.ValueType]) -> frozenset[model.SandboxState]:
    known = set()
    for i, number in enumerate(numbers):
        if number not in _STATES_BACK:
            raise InvalidArgument.of(f"states[{i}]", f"{number} is not a SandboxState to look for")
        known.add(_STATES_BACK[number])
    return frozenset(known)


def list_filter(request: service_pb.ListSandboxesRequest) -> Filter:
    return Filter(states(request.states), dict(request.metadata))


def watch_filter(request: service_pb.WatchSandboxesRequest) -> Filter:
    return Filter(states(request.states), dict(request.metadata), frozenset(request.ids))


def wait_timeout(request: service_pb.WaitSandboxRequest) -> timedelta | None:
    if not request.HasField("timeout"):
        return None
    timeout = _timedelta(request.timeout, "timeout")
    if timeout < timedelta(0):
        raise InvalidArgument.of("timeout", "must not be negative")
    return timeout


def metadata_change(request: service_pb.UpdateSandboxRequest) -> MetadataChange:
    if not request.update_mask.paths:
        return MetadataChange(dict(request.metadata))
    entries: dict[str, str | None] = {}
    replace_all = False
    for i, path in enumerate(request.update_mask.paths):
        if path in ("metadata", "*"):
            replace_all = True
            entries.update(request.metadata)
        elif match := _MASK_ENTRY.fullmatch(path):
            key = match["quoted"] or match["plain"]
            entries[key] = request.metadata.get(key)
        else:
            raise InvalidArgument.of(
                f"update_mask.paths[{i}]",
                f"{path!r} cannot be updated; 'metadata', 'metadata.KEY' and 'metadata.`KEY`' can",
            )
    return MetadataChange(entries, replace_all)


def log_options(request: service_pb.StreamLogsRequest) -> model.LogOptions:
    streams = set()
    for i, number in enumerate(request.streams):
        if number not in _STREAMS_BACK:
            raise InvalidArgument.of(f"streams[{i}]", f"{number} is not a LogStream to look for")
        streams.add(_STREAMS_BACK[number])
    return model.LogOptions(
        follow=request.follow,
        tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
        since=_datetime(request.since_time, "since_time") if request.HasField("since_time") else None,
        streams=frozenset(streams),
    )


def _timedelta(duration: Duration, field: str) -> timedelta:
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _MAX_DURATION or abs(nanos) > 999_999_999 or seconds * nanos < 0:
        raise InvalidArgument.of(field, f"{seconds} s and {nanos} ns are not a google.protobuf.Duration")
    return duration.ToTimedelta()


def _datetime(timestamp: Timestamp, field: str) -> datetime:
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidArgument.of(field, f"is not a time: {exc}") from exc


# Out of the domain


def sandbox(sandbox: model.Sandbox) -> pb.Sandbox:
    message = pb.Sandbox(id=sandbox.id, metadata=sandbox.metadata, etag=sandbox.etag)
    _fill_spec(message.spec, sandbox.spec)
    _fill_status(message.status, sandbox.status)
    message.create_time.FromDatetime(sandbox.create_time)
    if sandbox.expire_time:
        message.expire_time.FromDatetime(sandbox.expire_time)
    return message


class SandboxMessages:
    """`sandbox`, made once for each value unless it is large: sandboxes are read much more often than they change."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[model.Sandbox, pb.Sandbox]] = {}

    def of(self, value: model.Sandbox) -> pb.Sandbox:
        """The message is shared: not to be changed."""
        known = self._made.get(value.id)
        if known and known[0] is value:
            return known[1]
        if len(self._made) >= _MESSAGES_KEPT:
            self._made.clear()
        message = sandbox(value)
        if message.ByteSize() <= _MESSAGE_BYTES_KEPT:
            self._made[value.id] = value, message
        return message

    def size_of(self, value: model.Sandbox) -> int:
        """Bytes on the wire."""
        return self.of(value).ByteSize()


def _fill_spec(message: pb.SandboxSpec, spec: model.SandboxSpec) -> None:
    match spec.source:
        case model.ImageSource(uri=uri):
            message.image.uri = uri
        case model.SnapshotSource(id=id):
            message.snapshot.id = id
        case model.PoolSource(name=name):
            message.pool.name = name
    message.entrypoint.extend(spec.entrypoint)
    message.env.update(spec.env)
    message.ports.extend(spec.ports)
    message.require_secure_runtime = spec.require_secure_runtime
    if spec.resources != model.ResourceLimits():
        message.resources.cpu = spec.resources.cpu
        message.resources.memory = spec.resources.memory
        message.resources.gpu = spec.resources.gpu
    if spec.platform:
        message.platform.os = spec.platform.os
        message.platform.arch = spec.platform.arch
    if spec.network_policy:
        message.network_policy.default_action = _ACTIONS[spec.network_policy.default_action]
        for rule in spec.network_policy.egress:
            message.network_policy.egress.add(action=_ACTIONS[rule.action] if rule.action else 0, target=rule.target)
    for volume in spec.volumes:
        _fill_volume(message.volumes.add(), volume)


def _fill_volume(message: pb.Volume, volume: model.Volume) -> None:
    message.name = volume.name
    message.mount_path = volume.mount_path
    message.read_only = volume.read_only
    message.sub_path = volume.sub_path
    match volume.source:
        case model.HostPathSource(path=path):
            message.host_path.path = path
        case model.NamedVolumeSource(name=name):
            message.named.name = name


def _fill_status(message: pb.SandboxStatus, status: model.SandboxStatus) -> None:
    message.state = _STATES[status.state]
    message.reason = status.reason
    message.message = status.message[:_MAX_STATUS_MESSAGE]
    message.last_transition_time.FromDatetime(status.last_transition_time)
    message.runtime.secure_runtime = status.runtime.secure_runtime
    message.runtime.isolation = _ISOLATIONS[status.runtime.isolation]
    if status.runtime.runtime_class:
        message.runtime.runtime_class = status.runtime.runtime_class
    elif status.runtime.oci_runtime:
        message.runtime.oci_runtime = status.runtime.oci_runtime
    if status.exit_code is not None:
        message.exit_code = status.exit_code


def watch_event(
    event: WatchEvent, message_of: Callable[[model.Sandbox], pb.Sandbox] = sandbox
) -> service_pb.WatchSandboxesResponse:
    message = service_pb.WatchSandboxesResponse(resource_version=event.resource_version)
    if event.sandbox:
        getattr(message, event.kind.value).CopyFrom(message_of(event.sandbox))
    else:
        message.bookmark.snapshot_end = event.kind is WatchKind.SNAPSHOT_END
    return message


def log_chunk(chunk: model.LogChunk) -> service_pb.StreamLogsResponse:
    message = service_pb.StreamLogsResponse(stream=_STREAMS[chunk.stream], data=chunk.data)
    message.time.FromDatetime(chunk.time)
    return message


def endpoint(endpoint: model.Endpoint) -> service_pb.GetEndpointResponse:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return service_pb.GetEndpointResponse(
        address=f"{host}:{endpoint.port}", host=endpoint.host, port=endpoint.port, headers=endpoint.headers
    )


def runtime_info(info: RuntimeInfo) -> runtime_pb.GetRuntimeInfoResponse:
    message = runtime_pb.GetRuntimeInfoResponse(
        server_version=info.server_version, driver=info.driver.name, driver_version=info.driver.version
    )
    secure = message.secure_runtime
    secure.type = info.runtime.secure_runtime
    secure.oci_runtime = info.runtime.oci_runtime
    secure.runtime_class = info.runtime.runtime_class
    secure.isolation = _ISOLATIONS[info.runtime.isolation]
    if proof := info.driver.proof:
        secure.validated_time.FromDatetime(proof.time)
        secure.kernel = proof.kernel
    for name, capability in info.capabilities.items():
        message.capabilities[name].CopyFrom(_capability(capability))
    return message


def runtime_entry(entry: RuntimeEntry) -> runtime_pb.SecureRuntime:
    runtime = entry.runtime
    message = runtime_pb.SecureRuntime(
        type=runtime.type,
        isolation=_ISOLATIONS[runtime.isolation],
        oci_runtime=runtime.oci_runtime,
        runtime_class=runtime.runtime_class,
        memory_overhead_bytes=runtime.memory_overhead,
        best_for=runtime.best_for,
        available=entry.availability.available,
        unavailable_reason=entry.availability.reason,
        configured=entry.configured,
    )
    message.min_start_overhead.FromMilliseconds(runtime.start_overhead_ms[0])
    message.max_start_overhead.FromMilliseconds(runtime.start_overhead_ms[1])
    for name, capability in runtime.capabilities().items():
        message.capabilities[name].CopyFrom(_capability(capability))
    return message


def _capability(capability: Capability) -> runtime_pb.Capability:
    return runtime_pb.Capability(supported=capability.supported, reason=capability.reason)
