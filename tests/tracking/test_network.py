"""Servers as they are met in the world: behind logins, without a health page, slow to wake."""

import base64
import ssl
import threading
import time
import traceback
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import reusekit as rk
from reusekit.tracking.network import ServerAwayError, check_health


@contextmanager
def server(status=200, wait=0.0, authorization=None, certificate=None):
    """A small server that answers `/health` so, and tells whose requests it got."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            time.sleep(wait)
            allowed = authorization is None or seen[-1] == authorization
            self.send_response(status if allowed else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            """Say nothing."""

    started = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        started.socket = context.wrap_socket(started.socket, server_side=True)
        scheme = "https"
    threading.Thread(target=started.serve_forever, daemon=True).start()
    try:
        yield f"{scheme}://localhost:{started.server_address[1]}", seen
    finally:
        started.shutdown()
        started.server_close()


def test_credentials_of_the_environment_are_used(monkeypatch):
    # pipeline A2
    basic = "Basic " + base64.b64encode(b"me:S3CRET").decode()
    for variables, expected in (
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "S3CRET"}, basic),
        ({"MLFLOW_TRACKING_TOKEN": "S3CRET"}, "Bearer S3CRET"),
    ):
        with monkeypatch.context() as patch, server(authorization=expected) as (uri, seen):
            for name, value in variables.items():
                patch.setenv(name, value)
            check_health(uri)
            assert seen == [expected]


@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 405])
def test_a_server_that_answers_otherwise_is_there(status):
    # pipeline A2: a host without /health, or one that answers it only to some
    with server(status) as (uri, _):
        check_health(uri)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_that_fails_is_away(status):
    with server(status) as (uri, _), pytest.raises(ServerAwayError, match=str(status)):
        check_health(uri)


def test_a_server_that_takes_long_to_wake_is_given_the_time_that_the_environment_says(monkeypatch):
    # pipeline A2
    with server(wait=1.5) as (uri, _):
        with pytest.raises(ServerAwayError, match="does not answer"):
            check_health(uri, 1)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        check_health(uri, 1)


class Certificate(NamedTuple):
    """A certificate and its key, as PEM."""

    public: bytes
    private: bytes


def self_signed() -> Certificate:
    """A certificate of this machine that no authority has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return Certificate(made.public_bytes(pem), private)


def test_certificates_of_the_environment_are_used(monkeypatch, tmp_path):
    # pipeline A2
    root = tmp_path / "root.pem"
    certificate = self_signed()
    root.write_bytes(certificate.public)
    (tmp_path / "server.pem").write_bytes(certificate.private + certificate.public)
    with server(certificate=str(tmp_path / "server.pem")) as (uri, _):
        with pytest.raises(ServerAwayError, match="SSLError"):
            check_health(uri)
        for name, value in (
            ("MLFLOW_TRACKING_SERVER_CERT_PATH", str(root)),
            ("MLFLOW_TRACKING_INSECURE_TLS", "true"),
        ):
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                check_health(uri)


def test_no_secret_is_in_what_is_said_of_a_server():
    # faults D7
    with server(503) as (uri, _):
        secret = "S3CRET"
        for user in (f"me:{secret}@", f"{secret}@"):
            with pytest.raises(rk.TrackingError) as caught:
                check_health(f"{uri.replace('//', f'//{user}')}?token={secret}")
            assert secret not in "".join(traceback.format_exception(caught.value))
