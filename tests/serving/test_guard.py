"""Who may ask the server: its own page, this computer, and holders of the token; slow and huge requests are cut off."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from meddelinea.serving.app import create_app
from meddelinea.serving.guard import Access, is_loopback
from meddelinea.serving.limits import Limits
from support.serving import TOKEN
from support.waiting import PATIENCE


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "attacker.example"}, 421),
        ({"host": "attacker.example:8000"}, 421),
        ({"host": "192.168.1.7:8000"}, 421),
        ({"host": "["}, 421),
        ({"host": "localhost:9999"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"origin": "http://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": "//"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://127.0.0.1:8000:80"}, 403),
        ({"host": ""}, 421),
        ({"host": "127.0.0.1:x"}, 200),
        ({"content-length": "9" * 5000}, 413),
        ({"content-length": "x"}, 413),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_only_this_servers_own_page_may_ask(client: TestClient, headers: dict[str, str], status: int) -> None:
    reply = client.get("/api/jobs", headers=headers)
    assert reply.status_code == status
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert "script-src 'self'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("range", "bytes=9-1"),
        ("range", "bytes=-"),
        ("range", "x"),
        ("range", "bytes=" + ",".join(f"{i}-{i}" for i in range(3000))),
        ("range", "bytes=99999999999999999999999-"),
        ("if-range", "x"),
        ("if-modified-since", "Mon, 99 Foo 99999 99:99:99"),
        ("if-none-match", '"'),
        ("content-type", "multipart/form-data"),
        ("content-type", "multipart/form-data; boundary=x; charset=none"),
        ("content-type", "multipart/form-data; boundary="),
        ("content-type", "\xff;;;="),
        ("content-encoding", "gzip"),
        ("accept", "\xff"),
        ("authorization", "Bearer \xff"),
        ("cookie", ";=;\xff"),
        ("host", "\xe9"),
        ("sec-fetch-site", "\xff"),
    ],
)
def test_no_header_is_an_error_of_the_server(client: TestClient, name: str, value: str) -> None:
    headers = {name.encode(): value.encode("latin-1")}
    form = b'--x\r\nContent-Disposition: form-data; name="params"\r\n\r\n\xff\r\n--x--\r\n'
    for method, path, body in (
        ("GET", "/", b""),
        ("GET", "/static/page.js", b""),
        ("POST", "/api/jobs", b"x"),
        ("PUT", "/session/", form),
        ("POST", "/infer/small", form),
        ("POST", "/auth/token", form),
    ):
        assert client.request(method, path, headers=headers, content=body).status_code < 500, (method, path)


def test_the_page_may_be_opened_from_a_link(client: TestClient) -> None:
    reply = client.get("/", headers={"sec-fetch-site": "cross-site"})
    assert reply.status_code == 200
    assert "<script>" not in reply.text
    assert " style=" not in reply.text
    assert "http://" not in reply.text
    assert "set-cookie" not in reply.headers


def test_a_token_is_demanded_of_all_but_the_page(tmp_path: Path) -> None:
    access = Access(("viewer.hospital",), token=TOKEN)
    with TestClient(create_app(tmp_path, access=access), base_url="https://viewer.hospital") as client:
        for path in ("/api/info", "/api/jobs", "/info/", "/session/x", "/auth/token/valid", "/openapi.json"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
            assert client.get(path, headers={"authorization": f"Basic {TOKEN}"}).status_code == 401
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)
        assert client.post("/api/jobs", content=b"x").status_code == 401
        assert client.post("/infer/small", data={"params": "{}"}).status_code == 401
        assert client.get("/").status_code == client.get("/static/page.js").status_code == 200
        assert client.get("/auth/").json()["enabled"] is True
        assert client.post("/auth/token", data={"username": "me", "password": "guess"}).status_code == 401
        reply = client.post("/auth/token", data={"username": "me", "password": TOKEN, "grant_type": "password"}).json()
        given = {"authorization": f"{reply['token_type']} {reply['access_token']}"}
        assert client.get("/info/", headers=given).status_code == 200


def test_loopback_is_this_computer_only() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.7", "viewer.hospital", ""))


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server on a real socket, set up as the command sets it up."""
    limits = Limits(upload_seconds=0.5)
    config = uvicorn.Config(
        create_app(tmp_path, limits=limits),
        host="127.0.0.1",
        port=0,
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=1 << 14,
        access_log=False,
        log_config=None,
    )
    server, listening = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield listening.getsockname()
    server.should_exit = True
    thread.join()
    listening.close()


def answer(address: tuple[str, int], *parts: bytes) -> bytes:
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
        reply = b""
        while chunk := connection.recv(1 << 16):
            reply += chunk
    return reply


def test_huge_headers_and_slow_bodies_are_cut_off(address: tuple[str, int]) -> None:
    host = f"Host: 127.0.0.1:{address[1]}\r\n".encode()
    filler = b"X-Filler: " + b"a" * 60000 + b"\r\n"
    assert b" 400 " in answer(address, b"GET /api/info HTTP/1.1\r\n" + host + filler).split(b"\r\n")[0]
    begun = b"POST /api/jobs HTTP/1.1\r\n" + host + b"Content-Length: 100000\r\n\r\n"
    reply = answer(address, begun, b"\x1f\x8b")
    assert b" 408 " in reply.split(b"\r\n")[0]
    wrong = b"GET /api/info HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n"
    assert b" 4" in answer(address, wrong).split(b"\r\n")[0]
