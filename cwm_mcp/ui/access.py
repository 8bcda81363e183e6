"""Admit only browsers on this machine that open the address which `cwm ui` printed.

The address contains a token. The server exchanges it for a cookie with another secret, so that neither the address bar
nor the history shows a secret that opens the page. Both are new at each start and end with the process. Neither is ever
logged.

Another web page can make a browser send requests here, also under a host name of its own that points to 127.0.0.1. So
the Host header must be ours, including the port, and so must the Origin header, if there is one. Browsers share cookies
between ports, so the cookie's name contains the port. Otherwise two pages would overwrite each other's cookie.
"""

import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cwm_connector.core.errors import Code, CWMError

_HEADERS: Final = {
    # Trusted types make the browser itself refuse to turn text into markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NEXT_STEP: Final = "open the address that 'cwm ui' printed, with its token"


def _secret() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Access:
    """The secrets of one server, and its port."""

    port: int
    token: str = field(default_factory=_secret, repr=False)
    cookie: str = field(default_factory=_secret, repr=False)

    @property
    def url(self) -> str:
        """Return the address to open. It contains the token."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie_name(self) -> str:
        """Return the name of this server's cookie."""
        return f"cwm_ui_{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the allowed values of the Host header."""
        return (f"127.0.0.1:{self.port}", f"localhost:{self.port}")

    def has_cookie(self, headers: Headers) -> bool:
        """Return whether the request has this server's cookie."""
        try:
            sent = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return sent is not None and _equal(sent.value, self.cookie)

    def is_token(self, text: str) -> bool:
        """Return whether the text is this server's token."""
        return _equal(text, self.token)


class Guard:
    """Wraps the application: refuses requests, exchanges the token for a cookie, and adds the security headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._own_answer(scope) or self._app
        await answer(scope, receive, send_with_headers)

    def _own_answer(self, scope: Scope) -> Response | None:
        """Return the refusal or the redirect, or None for a request that may pass to the application."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._access.hosts:
            return _refusal(421, f"this page does not belong to that host; {_NEXT_STEP}")
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return _refusal(403, f"the request comes from another page; {_NEXT_STEP}")
        if scope["method"] != "GET":
            return _refusal(405, "this page is read-only; use 'cwm' or the MCP tools to change something", allow="GET")
        tokens = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("token")
        if tokens is not None and scope["path"] == "/":
            if not self._access.is_token(tokens[0]):
                return _refusal(403, f"the token is wrong or from an earlier start; {_NEXT_STEP}")
            return self._admission(came_by_link=headers.get("sec-fetch-site", "none") not in ("none", "same-origin"))
        if not self._access.has_cookie(headers):
            return _refusal(401, f"this page needs the cookie of the person who started it; {_NEXT_STEP}")
        return None

    def _admission(self, came_by_link: bool) -> Response:
        """Return the cookie and a redirect to the page without the token.

        A browser does not send a strict cookie along a redirect that began on another site, for instance in a web
        terminal or in the file that opens the browser. Such a browser gets a page of ours that loads the next one.
        """
        answer: Response
        if came_by_link:
            answer = PlainTextResponse("One moment …", headers={"Refresh": "0; url=/"})
        else:
            answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(self._access.cookie_name, self._access.cookie, path="/", httponly=True, samesite="strict")
        return answer


def _refusal(status: int, message: str, **headers: str) -> Response:
    return PlainTextResponse(f"{CWMError(Code.NOT_ALLOWED, message)}\n", status_code=status, headers=headers)


def _equal(one: str, other: str) -> bool:
    """Compare in a time that does not depend on how many characters are equal."""
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())
