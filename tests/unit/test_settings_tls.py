"""TLS files are checked when the configuration is read, not when the first caller connects."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from opensandboxd_server.settings import SettingsError, load


def issue(directory: Path, name: str, passphrase: bytes = b"") -> tuple[Path, Path]:
    """A self-signed certificate and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = directory / f"{name}.crt", directory / f"{name}.key"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return cert_path, key_path


def configure(directory: Path, **keys: Path) -> Path:
    path = directory / "sandbox.toml"
    lines = [f'{key} = "{value}"' for key, value in keys.items()]
    path.write_text("\n".join(['[runtime]\ntype = "docker"\n[server]', *lines]))
    return path


def refusal(path: Path) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    return [line.removeprefix(f"{path}: [server] ") for line in str(caught.value).splitlines()]


def test_a_certificate_with_its_key_and_a_client_ca_are_accepted(tmp_path: Path) -> None:
    cert, key = issue(tmp_path, "server")
    server = load(configure(tmp_path, tls_cert=cert, tls_key=key, tls_client_ca=cert), {}).server
    assert (server.tls_cert, server.tls_key, server.tls_client_ca) == (cert, key, cert)


def test_a_certificate_and_a_key_go_together(tmp_path: Path) -> None:
    cert, key = issue(tmp_path, "server")
    assert refusal(configure(tmp_path, tls_cert=cert)) == [
        "tls_key: is required with tls_cert; name the certificate's private key file in PEM"
    ]
    assert refusal(configure(tmp_path, tls_key=key)) == [
        "tls_cert: is required with tls_key; name the certificate file in PEM"
    ]
    assert refusal(configure(tmp_path, tls_client_ca=cert)) == [
        "tls_client_ca: needs tls_cert and tls_key; set both, or remove it"
    ]


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert refusal(configure(tmp_path, tls_cert=gone, tls_key=gone, tls_client_ca=gone)) == [
        f"{key}: there is no file {gone}; create it, or correct the path"
        for key in ("tls_cert", "tls_key", "tls_client_ca")
    ]


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    cert, _ = issue(tmp_path, "server")
    _, other = issue(tmp_path, "other")
    (line,) = refusal(configure(tmp_path, tls_cert=cert, tls_key=other))
    assert line.startswith(f"tls_cert: {cert} and {other} are not a certificate and its key; use ")


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(tmp_path: Path) -> None:
    cert, key = issue(tmp_path, "server", passphrase=b"secret")
    (line,) = refusal(configure(tmp_path, tls_cert=cert, tls_key=key))
    assert line.endswith("the key without a passphrase")


def test_a_client_ca_without_a_certificate_is_refused(tmp_path: Path) -> None:
    cert, key = issue(tmp_path, "server")
    (line,) = refusal(configure(tmp_path, tls_cert=cert, tls_key=key, tls_client_ca=key))
    assert line == f"tls_client_ca: {key} has no certificate; use a readable PEM file"
