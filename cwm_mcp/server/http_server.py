"""The MCP server over streamable HTTP, at /mcp: for clients that can't start a process, or that are elsewhere.

A token is required (`Authorization: Bearer …`): CWM_HTTP_TOKEN, else one that is made once and kept, mode 0600, in
$CWM_HOME/http-token. Every user of the machine can reach loopback, so `--no-token` opens it by choice only. A request
whose Host or Origin is none of this server's names is refused, so that no web page can reach it by rebinding a name.
CWM_HTTP_HOSTS, separated by commas, adds names under which a proxy is addressed.
"""

import logging
import sys
from typing import Final

from mcp.server.auth.settings import AuthSettings

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.http_address import Address, bracketed
from cwm_mcp.current_session import forget_environment
from cwm_mcp.server.app import build_server
from cwm_mcp.server.http_access import HttpSettings, OneToken, allowed, http_settings, kept_token
from cwm_mcp.server.lost_sessions import with_lost_sessions
from cwm_mcp.settings import http_token_path

_PATH: Final = "/mcp"
_SHUTDOWN_S: Final = 2
"""Streams that clients hold open don't keep the process longer."""
_TALKATIVE: Final = ("mcp.server.streamable_http", "mcp.server.streamable_http_manager")
"""At INFO they log the ids of clients' sessions, with which somebody else could go on in these."""


def run(settings: Settings, where: str, *, with_token: bool = True) -> None:
    """Serve at [HOST:]PORT until a signal ends the process.

    Raises: `Code.ARGUMENT` for an address or a setting that can't work, `Code.NOT_ALLOWED`.
    """
    import uvicorn

    address = Address.of(where)
    # It names the conversation of whoever started this process, and not of the clients that come over HTTP.
    forget_environment()
    own = http_settings()
    if not with_token and not address.is_loopback:
        raise CWMError(Code.ARGUMENT, f"--no-token is for loopback, and {address.host} is not; leave one of them out")
    token = own.token or (kept_token(settings) if with_token else None)
    listener = address.listen()
    url = f"http://{bracketed(address.host)}:{listener.getsockname()[1]}{_PATH}"
    server = build_server(
        settings,
        # No authorization server stands behind the one token; the library wants a name for it and shows it to nobody.
        auth=AuthSettings.model_validate({"issuer_url": url, "resource_server_url": None}) if token else None,
        token_verifier=OneToken(token) if token else None,
    )
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    known, sessionless = (
        server.streamable_http_app(
            streamable_http_path=_PATH, transport_security=allowed(address, own), stateless_http=stateless
        )
        for stateless in (False, True)
    )
    app = with_lost_sessions(known, sessionless)
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=_SHUTDOWN_S
    )
    print(f"serving MCP at {url}{_how_to_enter(settings, own, token)}", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _how_to_enter(settings: Settings, own: HttpSettings, token: str | None) -> str:
    """Return where to find the token. The token itself is never printed."""
    if token is None:
        return ""
    where = "CWM_HTTP_TOKEN" if own.token else str(http_token_path(settings))
    return f"; clients send 'Authorization: Bearer …' with the token in {where}"
