"""Connections that keep the server waiting: they are ended, and everybody else gets in meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn

from meddelinea.serving import connections, guard
from meddelinea.serving.app import create_app
from meddelinea.serving.connections import server_config
from meddelinea.serving.guard import Access
from meddelinea.serving.limits import Limits
from support.serving import TOKEN
from support.waiting import PATIENCE, wait_until

Address = tuple[str, int]
ASK = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    """A server with a token, as the command serves it, but for the seconds that it waits."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)
    monkeypatch.setattr(guard, "SLOW_START_SECONDS", 0.5)
    config = server_config(create_app(tmp_path, access=Access(token=TOKEN), limits=Limits()))
    server, listening = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    wait_until(lambda: server.started)
    yield listening.getsockname()
    server.should_exit = True
    thread.join()
    listening.close()


def connect(address: Address, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, timeout=PATIENCE)
    connection.sendall(sent)
    return connection


def answer(address: Address, sent: bytes) -> bytes:
    with connect(address, sent) as connection:
        return read(connection)


def read(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    reply = b""
    try:
        while chunk := connection.recv(1 << 16):
            reply += chunk
    except ConnectionResetError:
        pass
    return reply


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: 127.0", b"POST /api/jobs HTTP/1.1\r\n"])
def test_three_hundred_that_say_nothing_keep_nobody_out(address: Address, begun: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(address, begun))
        for _ in range(5):
            assert answer(address, ASK).startswith(b"HTTP/1.1 200 ")


def test_what_drips_a_byte_at_a_time_is_ended(address: Address) -> None:
    """Heads, bodies of those who may send them, and bodies that have been refused already."""
    authorised = f"Authorization: Bearer {TOKEN}\r\n".encode()
    begun = b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
    for head, expected in (
        (b"GET / HTTP/1.1\r\nX-Long: ", b""),
        (begun + authorised + b"\r\n", b"HTTP/1.1 408 "),
        (begun + b"\r\n", b"HTTP/1.1 401 "),
    ):
        with connect(address, head) as connection:
            began = time.monotonic()
            stop = threading.Event()

            def drip(connection: socket.socket = connection, stop: threading.Event = stop) -> None:
                while not stop.wait(0.1):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

            thread = threading.Thread(target=drip)
            thread.start()
            reply = read(connection)
            stop.set()
            thread.join()
        assert reply.startswith(expected)
        assert time.monotonic() - began < PATIENCE / 2
