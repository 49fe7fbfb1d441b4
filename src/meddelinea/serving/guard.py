"""The checks that every request passes before it reaches the application: its sender, its origin and its size.

The application listens on a socket that any page in the user's browser can send requests to, so a request must name
this server (DNS rebinding), must not come from another site's page (request forgery), and, where a token is demanded,
must carry it in a header, which no other page can make a browser send.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from meddelinea.results.page_style import STYLE_SOURCE
from meddelinea.serving.limits import Limits

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: Bytes for the parts of a form around the file.
FORM_BYTES = 1 << 20
#: No length of a body has more digits.
LENGTH_DIGITS = 18
#: Seconds before an upload must have reached its least rate.
SLOW_START_SECONDS = 30.0
#: Paths that need no token: the page, which holds no data, and the log-in.
PUBLIC = ("/", "/auth/", "/auth/token")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

HEADERS = {
    # The viewer draws with WebGL: its font is an image of the page's own script, its results are blobs to save. A
    # report that it opens has a style of its own, and is held to this policy too.
    "content-security-policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' {STYLE_SOURCE}; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",  # scans must not end up in a browser's cache
}


@dataclass(frozen=True)
class Access:
    """Who may send requests.

    Parameters
    ----------
    hosts
        Host names of the server, without port.
    any_address
        Also accept requests that name the server by an IP address, which a DNS rebinding attack cannot do.
    token
        Token to be sent as `Authorization: Bearer TOKEN`; None to admit everyone on this computer.
    """

    hosts: tuple[str, ...] = LOOPBACK_NAMES
    any_address: bool = False
    token: str | None = None


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from this computer only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """The outermost ASGI middleware.

    Parameters
    ----------
    application
        The application that it protects.
    access
        Who may send requests.
    limits
        Only `upload_bytes` and `upload_seconds` are used.
    """

    def __init__(self, application: Application, access: Access, limits: Limits) -> None:
        self._application, self._access, self._limits = application, access, limits

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Check one request, and pass it on or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = [(name, value) for name, value in message["headers"] if name.decode() not in HEADERS]
                message["headers"] = own + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_origin(scope, headers)
            self._check_token(scope["path"], headers)
            # Starlette takes long over many ranges of one file; whoever asks for them may be sent all of it.
            scope["headers"] = [
                (name, value) for name, value in scope["headers"] if name != b"range" or b"," not in value
            ]
            if "\0" in scope["path"]:  # no file has such a name, and asking the system for it is an error of its own
                raise HTTPException(404, "there is no such page")
            await self._application(scope, self._bounded(receive, headers), send_guarded)
        except HTTPException as refusal:
            if not begun:
                await _answer(send_guarded, refusal.status_code, refusal.detail, refusal.headers)
        except ClientDisconnect:  # there is nobody left to answer
            pass
        except Exception as error:  # its text may quote the request
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = "" if place is None else f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
            _log.error("unexpected %s%s", type(error).__name__, where)
            if not begun:
                await _answer(send_guarded, 500, "unexpected error in the server; its log says where")

    def _check_origin(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        """Refuse a request that names another server, or that comes from the page of another site."""
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name not in self._access.hosts and not (self._access.any_address and _is_address(name)):
            raise HTTPException(421, "this server does not answer to that name; its operator can allow it")
        if not _is_of(headers.get("origin"), host):
            raise HTTPException(403, "requests from pages of other sites are refused")
        opens_page = scope["method"] == "GET" and scope["path"] == "/"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opens_page:
            raise HTTPException(403, "requests from pages of other sites are refused")

    def _check_token(self, path: str, headers: dict[str, str]) -> None:
        token = self._access.token
        if token is None or path in PUBLIC or path.startswith("/static/"):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), token.encode()):
            raise HTTPException(
                401, "this server requires its token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    def _bounded(self, receive: Receive, headers: dict[str, str]) -> Receive:
        """`receive`, but raising HTTPException if the body is too large or too slow."""
        most = self._limits.upload_bytes + FORM_BYTES
        hang_up = {"Connection": "close"}  # do not wait for the rest of the body
        too_large = HTTPException(413, f"the upload is larger than {self._limits.upload_bytes >> 20} MiB", hang_up)
        stated = headers.get("content-length", "0")
        if not stated.isdecimal() or len(stated) > LENGTH_DIGITS or int(stated) > most:
            raise too_large
        received, complete = 0, False
        began = asyncio.get_running_loop().time()

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            allowed = min(self._limits.upload_seconds, SLOW_START_SECONDS + received / self._limits.upload_rate)
            left = began + allowed - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError:
                reason = f"{received} bytes of the upload came in {allowed:.0f} seconds; expected more, or all of it"
                raise HTTPException(408, reason, hang_up) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > most:
                raise too_large
            return message

        return bounded


def _is_of(origin: str | None, host: str) -> bool:
    """Whether a page's origin is the server that was asked; a request that is of no page has none."""
    try:
        return origin is None or urlsplit(origin).netloc == host
    except ValueError:  # such as `http://[`
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
    body = json.dumps({"detail": reason}).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    more = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": own + more})
    await send({"type": "http.response.body", "body": body})
