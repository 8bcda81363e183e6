"""Who may read the page: whoever was given the address that `cwm ui` printed, in a browser on this machine.

The printed address carries a token. It is exchanged for a cookie, another secret, so that neither the address bar nor
the history shows one that opens the page. Both are made at each start and die with the process; neither is ever logged.

A page elsewhere can make a browser send requests here, also under a name of its own that it points to 127.0.0.1. So the
Host has to be ours, port included, and an Origin, where there is one, too. Cookies know no ports: this one is named
after its port, so that two of these pages don't take each other's away.
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
    # Trusted types: the browser itself refuses to make markup out of text.
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
_AGAIN: Final = "open the address that 'cwm ui' has printed, with its token"


def _secret() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Access:
    """The secrets of one start, and the port that they are for."""

    port: int
    token: str = field(default_factory=_secret, repr=False)
    cookie: str = field(default_factory=_secret, repr=False)

    @property
    def url(self) -> str:
        """What the person opens. It holds the token."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie_name(self) -> str:
        return f"cwm_ui_{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        return (f"127.0.0.1:{self.port}", f"localhost:{self.port}")

    def has_cookie(self, headers: Headers) -> bool:
        try:
            sent = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return sent is not None and _equal(sent.value, self.cookie)

    def is_token(self, text: str) -> bool:
        return _equal(text, self.token)


class Guard:
    """In front of the application: refuses, exchanges the token, and puts the headers on every answer."""

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

        answer = self._instead(scope) or self._app
        await answer(scope, receive, send_with_headers)

    def _instead(self, scope: Scope) -> Response | None:
        """None for a request that may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._access.hosts:
            return _refusal(421, f"this is no page of that host; {_AGAIN}")
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return _refusal(403, "another page asks for this one; " + _AGAIN)
        if scope["method"] != "GET":
            return _refusal(405, "this page only reads; use 'cwm' or the MCP tools to change something", allow="GET")
        tokens = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("token")
        if tokens is not None and scope["path"] == "/":
            if not self._access.is_token(tokens[0]):
                return _refusal(403, f"that is no token of this start; {_AGAIN}")
            return self._admission(came_by_link=headers.get("sec-fetch-site", "none") not in ("none", "same-origin"))
        if not self._access.has_cookie(headers):
            return _refusal(401, f"this page is for who started it; {_AGAIN}")
        return None

    def _admission(self, came_by_link: bool) -> Response:
        """The cookie, and the way to the page without the token.

        A strict cookie is not sent along a redirect that began on another site (a link in a terminal that is a page
        itself, the file that opens the browser): there a page of ours has to begin the next step.
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
    """In a time that does not tell how much of it was right."""
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())
