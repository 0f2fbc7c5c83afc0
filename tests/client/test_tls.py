"""TLS and mutual TLS against a server with certificates of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import opensandboxd
from opensandboxd import TLS, AsyncClient, Sandbox
from opensandboxd.v1.sandbox_service_pb2 import GetSandboxResponse
from tests.client.scripted import ScriptedServer, scripted_server

GOT = GetSandboxResponse(sandbox=Sandbox(id="sbx-1"))


@dataclass(frozen=True)
class Identity:
    cert: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    ca: Path
    server: Identity
    client: Identity


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    where = tmp_path_factory.mktemp("certificates")
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    now = datetime.now(UTC)

    def issue(name: str, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> Identity:
        names: list[x509.GeneralName] = [x509.DNSName(name), x509.IPAddress(IPv4Address("127.0.0.1"))]
        cert = (
            x509.CertificateBuilder()
            .subject_name(ca_name if is_ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        identity = Identity(where / f"{name}.pem", where / f"{name}.key")
        identity.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        identity.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return identity

    server, client = (issue(n, ec.generate_private_key(ec.SECP256R1()), is_ca=False) for n in ("server", "client"))
    return Certificates(issue("ca", ca_key, is_ca=True).cert, server, client)


def credentials(certificates: Certificates, *, mutual: bool) -> grpc.ServerCredentials:
    pair = (certificates.server.key.read_bytes(), certificates.server.cert.read_bytes())
    ca = certificates.ca.read_bytes()
    return grpc.ssl_server_credentials([pair], ca if mutual else None, mutual)


@pytest.fixture
def tls_server(certificates: Certificates) -> Iterator[ScriptedServer]:
    with scripted_server(credentials(certificates, mutual=False)) as server:
        yield server


@pytest.fixture
def mtls_server(certificates: Certificates) -> Iterator[ScriptedServer]:
    with scripted_server(credentials(certificates, mutual=True)) as server:
        yield server


async def test_a_ca_file_verifies_the_server(tls_server: ScriptedServer, certificates: Certificates) -> None:
    tls_server.expect("GetSandbox", GOT)
    async with AsyncClient(tls_server.target, tls=certificates.ca) as client:
        assert (await client.get("sbx-1")).id == "sbx-1"


async def test_an_unknown_server_is_refused(tls_server: ScriptedServer) -> None:
    async with AsyncClient(tls_server.target, tls=True) as client:
        with pytest.raises(opensandboxd.UnavailableError):
            await client.get("sbx-1")


async def test_a_server_under_another_name_needs_that_name(
    tls_server: ScriptedServer, certificates: Certificates
) -> None:
    tls_server.expect("GetSandbox", GOT)
    async with AsyncClient(tls_server.target, tls=TLS(ca=certificates.ca, server_name="elsewhere")) as client:
        with pytest.raises(opensandboxd.UnavailableError):
            await client.get("sbx-1")
    async with AsyncClient(tls_server.target, tls=TLS(ca=certificates.ca, server_name="server")) as client:
        await client.get("sbx-1")


async def test_mutual_tls_shows_the_clients_certificate(
    mtls_server: ScriptedServer, certificates: Certificates
) -> None:
    mtls_server.expect("GetSandbox", GOT)
    mine = TLS(ca=certificates.ca, cert=certificates.client.cert, key=certificates.client.key)
    async with AsyncClient(mtls_server.target, tls=mine) as client:
        await client.get("sbx-1")
    async with AsyncClient(mtls_server.target, tls=certificates.ca) as client:
        with pytest.raises(opensandboxd.UnavailableError):
            await client.get("sbx-1")


def test_a_certificate_needs_its_key(certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="go together"):
        TLS(cert=certificates.client.cert)
