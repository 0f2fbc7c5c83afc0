"""How a call failed, with its google.rpc details decoded: what a client can switch on."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "opensandbox.io"


@dataclass(frozen=True)
class Refusal:
    """`fields` maps the field paths of BadRequest to their descriptions; `details` are all messages, by name."""

    code: grpc.StatusCode
    message: str
    reason: str
    fields: Mapping[str, str]
    details: Mapping[str, Any]
    trailing: Mapping[str, str | bytes]

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Refusal:
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
        details: dict[str, Message] = {}
        for packed in status.details:
            name = packed.TypeName().rpartition(".")[2]
            details[name] = getattr(error_details_pb2, name).FromString(packed.value)
        info: Any = details.get("ErrorInfo")
        assert info is not None, f"{error.code()} {error.details()!r} carries no ErrorInfo"
        assert info.domain == DOMAIN
        assert status.code == error.code().value[0]
        assert status.message == error.details()
        bad: Any = details.get("BadRequest")
        fields = {v.field: v.description for v in bad.field_violations} if bad else {}
        return cls(error.code(), error.details() or "", info.reason, fields, details, trailing)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Awaits a call that must fail, and says how it did."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refusal.of(caught.value)


async def drained(stream: AsyncIterable[Any]) -> list[Any]:
    """All that a stream gives until it ends."""
    return [message async for message in stream]
