"""TLS and mutual TLS from `[server]`, with certificates made here."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from opensandboxd.v1 import sandbox_service_pb2 as rpc
from opensandboxd.v1 import sandbox_service_pb2_grpc as rpc_grpc
from tests.harness import Server, serving


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.root = self._sign(self._name, self._key, is_ca=True)

    def issue(self, name: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Identity(self._sign(_named(name), key, is_ca=False), pem)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        return (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


OURS, STRANGERS = Authority("ours"), Authority("strangers")


def files(directory: Path, *, mutual: bool) -> dict[str, Path]:
    """`[server]` keys for a server of OURS."""
    server = OURS.issue("server")
    contents = {"tls_cert": server.certificate, "tls_key": server.key}
    if mutual:
        contents["tls_client_ca"] = OURS.root
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return {name: directory / name for name in contents}


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(server=files(tmp_path, mutual=False)) as server:
        yield server


@pytest.fixture
async def mutual_tls(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(server=files(tmp_path, mutual=True)) as server:
        yield server


async def ask(server: Server, root: bytes | None, client: Identity | None = None) -> grpc.StatusCode:
    """How a call ends for a caller who trusts `root` and shows `client`; without a root, one who speaks no TLS."""
    if root is None:
        channel = grpc.aio.insecure_channel(server.address)
    else:
        credentials = grpc.ssl_channel_credentials(
            root, client.key if client else None, client.certificate if client else None
        )
        channel = grpc.aio.secure_channel(server.address, credentials)
    async with channel:
        call = rpc_grpc.SandboxServiceStub(channel).ListSandboxes(rpc.ListSandboxesRequest(), timeout=5)  # type: ignore[no-untyped-call, unused-ignore]
        code: grpc.StatusCode = await call.code()
        return code


async def test_a_caller_who_trusts_the_servers_authority_is_served(tls: Server) -> None:
    assert await ask(tls, OURS.root) is grpc.StatusCode.OK


async def test_a_caller_who_does_not_is_not(tls: Server) -> None:
    assert await ask(tls, STRANGERS.root) is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_who_speaks_no_tls_is_not_served(tls: Server) -> None:
    assert await ask(tls, None) is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_serves_a_client_that_its_authority_signed(mutual_tls: Server) -> None:
    assert await ask(mutual_tls, OURS.root, OURS.issue("client")) is grpc.StatusCode.OK


@pytest.mark.parametrize("client", [None, STRANGERS.issue("client")], ids=["none", "stranger"])
async def test_mutual_tls_serves_no_other(mutual_tls: Server, client: Identity | None) -> None:
    assert await ask(mutual_tls, OURS.root, client) is grpc.StatusCode.UNAVAILABLE


async def test_the_api_key_is_wanted_over_tls_too(tmp_path: Path) -> None:
    async with serving(server={"api_key": "k", **files(tmp_path, mutual=True)}) as server:
        assert await ask(server, OURS.root, OURS.issue("client")) is grpc.StatusCode.UNAUTHENTICATED
