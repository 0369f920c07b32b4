"""A vendor behind a certificate authority of the network's own: trusted when it is named, else refused once."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from market_data_pipeline.domain.errors import ConfigurationError, VendorUntrustedError
from market_data_pipeline.polygon.transport import Transport
from market_data_pipeline.settings.network import prepare_network
from market_data_pipeline_tests.polygon.faulty_server import FaultyServer, send_json
from market_data_pipeline_tests.polygon.vendor import KEY, TRUTH, QuickClient, page, rows

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
HOSTS = ("127.0.0.1", "localhost")


@pytest.fixture(autouse=True)
def _no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, and `server.pem`: a certificate that it signed for this machine, with its key."""
    folder = tmp_path_factory.mktemp("authority")
    key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now, name = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An Authority")])

    def signed(subject: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> bytes:
        made = x509.CertificateBuilder(name, subject, public, x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        for extension in extensions:
            made = made.add_extension(extension, critical=False)
        return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
    its_own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    may_sign = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    is_one = x509.BasicConstraints(ca=True, path_length=None)
    (folder / "ca.pem").write_bytes(signed(name, key.public_key(), is_one, its_own, may_sign))
    leaf = signed(x509.Name([]), server_key.public_key(), names, by)
    secret = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(leaf + secret)
    return folder


@pytest.fixture
def server(authority: Path) -> Iterator[FaultyServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem")
    with FaultyServer(send_json(page(TRUTH)), tls=context) as running:
        yield running


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("host", HOSTS)
def test_the_authority_that_the_environment_names_is_trusted(
    server: FaultyServer, authority: Path, monkeypatch: pytest.MonkeyPatch, variable: str, host: str
) -> None:
    monkeypatch.setenv(variable, str(authority / "ca.pem"))
    url = server.url.replace("127.0.0.1", host)

    Transport(url, KEY).connect("Nothing was started")
    assert rows(QuickClient(url).bars().bars) == TRUTH


def test_a_certificate_that_is_not_trusted_is_said_once_with_the_variable_to_set(server: FaultyServer) -> None:
    vendor = QuickClient(server.url)

    with pytest.raises(
        VendorUntrustedError, match=r"the certificate of https://127\.0\.0\.1:\d+ is not trusted"
    ) as why:
        vendor.bars()

    assert "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt" in str(why.value)
    assert "attempts" not in str(why.value)
    assert why.value.stops_run
    assert (vendor.slept, server.seen) == ([], [])
    with pytest.raises(VendorUntrustedError, match=r"^Nothing was started: the certificate"):
        Transport(server.url, KEY).connect("Nothing was started")


def test_authorities_that_do_not_exist_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such.pem")

    with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE is '/no/such.pem', and there is no such file"):
        Transport("https://bars.example", KEY)


def test_what_is_named_for_one_library_holds_for_the_others(
    server: FaultyServer, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    prepare_network()

    assert requests.get(server.url, timeout=30).ok
