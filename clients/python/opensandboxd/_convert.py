"""From Python's types to the contract's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration as DurationMessage
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from opensandboxd.v1.sandbox_pb2 import (
    ImageSource,
    NetworkPolicy,
    Platform,
    RegistryAuth,
    ResourceLimits,
    SandboxSpec,
)

Duration = float | timedelta
"""Seconds, or a timedelta."""


def seconds(value: Duration) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def to_duration(value: Duration | None) -> DurationMessage | None:
    if value is None:
        return None
    message = DurationMessage()
    message.FromNanoseconds(round(seconds(value) * 1e9))
    return message


def to_timestamp(name: str, value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError(f"{name} must carry a time zone: datetime.now(timezone.utc), not datetime.now()")
    message = Timestamp()
    message.FromDatetime(value)
    return message


def check_expiration(ttl: Duration | None, expire_time: datetime | None) -> None:
    if ttl is not None and expire_time is not None:
        raise ValueError("ttl and expire_time exclude each other: give one")


def metadata_mask(metadata: Mapping[str, str | None], *, replace: bool) -> FieldMask:
    return FieldMask(paths=["metadata"] if replace else [f"metadata.`{key}`" for key in metadata])


def to_spec(
    image: str | SandboxSpec,
    *,
    entrypoint: Iterable[str],
    env: Mapping[str, str] | None,
    cpu: str,
    memory: str,
    gpu: str,
    ports: Iterable[int],
    network_policy: NetworkPolicy | None,
    auth: RegistryAuth | tuple[str, str] | None,
    platform: Platform | str | None,
    require_secure_runtime: bool,
) -> SandboxSpec:
    """A whole spec as it is, or one made from an image and the arguments of create()."""
    if isinstance(entrypoint, str):
        raise TypeError("entrypoint is a sequence of arguments, such as ['sh', '-c', 'sleep 60'], not one string")
    made = SandboxSpec(
        entrypoint=entrypoint,
        env=env,
        resources=ResourceLimits(cpu=cpu, memory=memory, gpu=gpu) if cpu or memory or gpu else None,
        network_policy=network_policy,
        platform=_to_platform(platform),
        require_secure_runtime=require_secure_runtime,
        ports=ports,
    )
    if isinstance(image, SandboxSpec):
        if auth is not None or made != SandboxSpec():
            raise ValueError("a SandboxSpec is complete: set these fields in it, not beside it")
        return image
    if isinstance(auth, tuple):
        auth = RegistryAuth(username=auth[0], password=auth[1])
    made.image.CopyFrom(ImageSource(uri=image, auth=auth))
    return made


def _to_platform(platform: Platform | str | None) -> Platform | None:
    if not isinstance(platform, str):
        return platform
    os, slash, arch = platform.partition("/")
    if not (os and slash and arch):
        raise ValueError(f"{platform!r} is not a platform: give os/arch, such as 'linux/arm64'")
    return Platform(os=os, arch=arch)
