"""The proxies that `docs/deploy` describes, run with its files in front of a server of a test."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support import eventually, free_port

DEPLOY = Path(__file__).parents[2] / "docs/deploy"

_NGINX = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/uptrail.conf;
}}
"""
_CADDY = """
{{
	admin off
	auto_https off
	storage file_system {folder}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A proxy that answers; `certificate` is the file with the authority to trust."""

    url: str
    certificate: Path

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


def required(program: str) -> str:
    """The path of a program; skips the test without it, unless everything is required."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        if os.environ.get("UPTRAIL_REQUIRE_ALL") == "1":
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")
    return found


@asynccontextmanager
async def nginx(folder: Path, upstream: int) -> AsyncIterator[Proxy]:
    """nginx with `docs/deploy/nginx.conf`, its addresses and certificate replaced."""
    program, port = required("nginx"), free_port()
    certificate, key = _certificate(folder)
    text = _replaced(
        (DEPLOY / "nginx.conf").read_text(),
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        ("uploads.example.com", "localhost"),
        ("127.0.0.1:8080", f"127.0.0.1:{upstream}"),
        ("/etc/ssl/certs/uploads.pem", str(certificate)),
        ("/etc/ssl/private/uploads.key", str(key)),
    )
    (folder / "uptrail.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, user=user))
    command = (program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"))
    async with _running(command, port, folder):
        yield Proxy(f"https://localhost:{port}", certificate)


@asynccontextmanager
async def caddy(folder: Path, upstream: int) -> AsyncIterator[Proxy]:
    """Caddy with `docs/deploy/Caddyfile`, likewise."""
    program, port = required("caddy"), free_port()
    certificate, key = _certificate(folder)
    text = (DEPLOY / "Caddyfile").read_text()
    text, replaced = re.subn(
        r"dynamic a api 8080 \{.*?\}", f"to 127.0.0.1:{upstream}", text, flags=re.S
    )
    assert replaced == 1
    text = text.replace(
        "{$UPTRAIL_DOMAIN:localhost} {\n",
        f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {key}\n",
    )
    (folder / "Caddyfile").write_text(_CADDY.format(folder=folder) + text)
    command = (program, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile"))
    async with _running(command, port, folder):
        yield Proxy(f"https://localhost:{port}", certificate)


PROXIES: dict[str, Callable[[Path, int], AbstractAsyncContextManager[Proxy]]] = {
    "nginx": nginx,
    "caddy": caddy,
}


@asynccontextmanager
async def _running(command: tuple[str, ...], port: int, folder: Path) -> AsyncIterator[None]:
    log = folder / "output.log"
    with log.open("wb") as output:
        environ = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env=environ
        )

        async def listening() -> bool:
            assert process.returncode is None, log.read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        try:
            await eventually(listening)
            yield
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].chmod(0o600)
    return paths
