"""Connections of clients: those that keep the server waiting make room for others.

A connection costs its client nothing. One that sends nothing, or its request a byte at a time, is ended after a while,
and before that as soon as others need its place: the oldest one of the client that holds most.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from meddelinea.serving.guard import Guard

#: Seconds for the head of a request to arrive, and for the rest of a body that nobody waits for any more.
HEAD_SECONDS = 10.0
#: From so many connections on, those that keep the server waiting make room.
MOST_WAITING = 128
#: At most so many requests are worked on at once; more are answered with 503.
MOST_REQUESTS = 256


class PatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, but patient with nobody."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit a client, if need be in the place of a connection that keeps the server waiting."""
        super().connection_made(transport)
        self._began = self.loop.time()
        self._impatience: asyncio.TimerHandle | None = None
        self._wait()
        if len(self.connections) > MOST_WAITING:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a client."""
        self._wait_no_more()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Take what has arrived; with a whole head of a request the waiting for it ends."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for what is left of the body of this one."""
        self._wait()
        super().on_response_complete()

    @property
    def keeps_waiting(self) -> bool:
        """Whether the server waits for this client, and not the client for the server."""
        return self.cycle is None or self.cycle.response_complete or self.conn.their_state is h11.SEND_BODY

    def _wait(self) -> None:
        self._wait_no_more()
        self._impatience = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _make_room(self) -> None:
        waiting = [each for each in self.connections if isinstance(each, PatientProtocol) and each.keeps_waiting]
        by_client = Counter(each._host for each in waiting)
        greediest = max(by_client, key=lambda host: by_client[host])
        oldest = min((each for each in waiting if each._host == greediest), key=lambda each: each._began)
        self.connections.discard(oldest)  # now, and not when it has ended: others may be arriving at this moment
        oldest.transport.abort()

    @property
    def _host(self) -> str:
        return self.client[0] if self.client else ""


def server_config(app: Guard) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        h11_max_incomplete_event_size=1 << 14,  # limits the size of headers
        access_log=False,  # a query may contain the name of a patient
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_REQUESTS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=10,
    )
