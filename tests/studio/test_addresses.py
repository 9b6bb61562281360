"""Addresses of the studio other than 127.0.0.1: IPv6 loopback, and a name behind a proxy that ends TLS."""

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from running_studio import TOKEN, httpx, parse_events, running

from dalle.studio.server import build_server, choose_token, is_loopback, page_link

NAME = "studio.example.org"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_token_with_any_signs_survives_the_link(monkeypatch):
    token = "".join(map(chr, range(33, 127)))  # base64 has "+" and "/"
    monkeypatch.setenv("DALLE_STUDIO_TOKEN", token)
    link = urlsplit(page_link("::1", 7860, choose_token("::1")))
    assert (link.hostname, link.port, link.query) == ("::1", 7860, "")
    assert parse_qs(link.fragment, strict_parsing=True) == {"token": [token]}  # the rules of URLSearchParams


def test_browsers_leave_out_the_usual_port(make_session):
    session = make_session(host="192.168.1.5")
    for port, accepted in ((80, True), (7860, False)):
        security = build_server(session, port, TOKEN).config.app
        assert ("192.168.1.5" in security.hosts) is accepted and f"192.168.1.5:{port}" in security.hosts


@pytest.mark.skipif(not has_ipv6(), reason="this computer has no IPv6 loopback address")
def test_the_ipv6_loopback_address_serves_and_draws(make_session, monkeypatch):
    monkeypatch.delenv("DALLE_STUDIO_TOKEN", raising=False)
    assert is_loopback("::1") and choose_token("::1")  # needs no token of the user's
    with running(make_session(host="::1")) as studio:
        assert studio.address.startswith("http://[::1]:")
        assert "<title>" in studio.client.get("/").text
        assert len(studio.drawn(candidates=2)) == 2
        own, foreign = {"Origin": studio.address}, {"Origin": studio.address.replace("::1", "::2")}
        assert [studio.client.get("/api/model", headers=origin).status_code for origin in (own, foreign)] == [200, 403]
        rebound = {"Host": "evil.example:" + studio.address.rsplit(":")[-1]}
        assert studio.client.get("/api/model", headers=rebound).status_code == 403


@pytest.fixture
def certificate(tmp_path) -> Path:
    """File with a self-signed certificate for `NAME`, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="needs cryptography: pip install '.[sign]'")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        builder.sign(key, hashes.SHA256()).public_bytes(encoding)
        + key.private_bytes(encoding, kind, serialization.NoEncryption())
    )
    return path


@contextmanager
def tls_proxy(certificate: Path, port: int) -> Iterator[int]:
    """Proxy that ends TLS and passes all bytes on to a port of this computer. Yields the port that it listens on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(connect, "127.0.0.1", 0, ssl=context), loop).result(
        10
    )
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_a_name_behind_a_proxy_with_tls_serves_and_draws(make_session, certificate):
    with running(make_session(hosts=[NAME])) as studio:
        inner = int(studio.address.rsplit(":")[-1])
        with tls_proxy(certificate, inner) as port:
            trust = ssl.create_default_context(cafile=certificate)
            outside = {"Authorization": f"Bearer {TOKEN}", "Host": NAME}
            options = {"base_url": f"https://127.0.0.1:{port}", "headers": outside, "verify": trust, "timeout": 60}
            with httpx.Client(**options, trust_env=False) as client:

                def status(path: str = "/api/model", **headers: str) -> int:
                    sni = {"sni_hostname": NAME}
                    return client.get(path, headers=headers, extensions=sni).status_code

                assert status("/") == status("/static/main.js") == 200
                assert status(Origin=f"https://{NAME}") == 200
                assert status(Origin="https://evil.example") == status(Host="evil.example") == 403
                assert status(Origin=f"https://{NAME}", Authorization="Bearer wrong") == 401
                request = {"headers": {"Origin": f"https://{NAME}"}, "extensions": {"sni_hostname": NAME}}
                body = {"caption": "a red circle", "candidates": 2, "seed": 0}
                job = client.post("/api/jobs", json=body, **request).json()["job"]
                with client.stream("GET", f"/api/jobs/{job}/events", **request) as stream:
                    events = dict(parse_events(stream.iter_text()))
                assert "done" in events
                image = events["ranked"]["images"][0]["id"]
                assert client.get(f"/api/images/{image}", **request).content.startswith(b"\x89PNG")
