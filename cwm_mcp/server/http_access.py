"""Who may use the MCP server over HTTP: the token, and the names under which it is addressed."""

import hmac
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import private_folder
from cwm_connector.settings import Settings
from cwm_mcp.api.http_address import Address, bracketed
from cwm_mcp.settings import http_token_path

_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_LEAST: Final = 16
"""Characters of a token that can't be guessed."""


class HttpSettings(BaseSettings):
    """Settings of this transport alone; the field's name in capitals behind `CWM_HTTP_` is its variable."""

    model_config = SettingsConfigDict(env_prefix="CWM_HTTP_", extra="ignore", frozen=True)

    token: str | None = Field(default=None, repr=False, min_length=_LEAST, pattern=r"^[\x21-\x7e]+$")
    """The token that callers must send as `Authorization: Bearer …`. At least 16 characters. Default: none."""
    hosts: str = ""
    """More names, separated by commas, under which a proxy addresses the server. Default: none."""


class OneToken:
    """The library's verifier for a single token that everybody shares."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        if not hmac.compare_digest(token.encode(), self._token):
            return None
        return AccessToken(token=token, client_id="cwm", scopes=[])


def http_settings() -> HttpSettings:
    """Return the settings. Raises: `Code.ARGUMENT`, which names the setting but never its value."""
    try:
        return HttpSettings()
    except ValidationError:
        raise CWMError(
            Code.ARGUMENT, "the setting CWM_HTTP_TOKEN can't work: give 16 or more letters, digits and signs, no spaces"
        ) from None


def kept_token(settings: Settings) -> str:
    """Return the stored token, or make and store a new one.

    Raises: `Code.ARGUMENT` if it can't be read or stored, `Code.NOT_ALLOWED` if other users can read it.
    """
    path = http_token_path(settings)
    private_folder(settings.home, "CWM_HOME")
    try:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return _read_token(path)
        with os.fdopen(descriptor, "w") as file:
            token = secrets.token_urlsafe(32)
            file.write(f"{token}\n")
            return token
    except OSError as problem:
        raise CWMError(
            Code.ARGUMENT, f"{path} can't be used ({problem.strerror}); correct its permissions or set CWM_HTTP_TOKEN"
        ) from None


def _read_token(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise CWMError(Code.NOT_ALLOWED, f"{path} can be read by others; delete it, then a new token is made")
    token = path.read_text(errors="replace").strip()
    if len(token) < _LEAST:
        raise CWMError(Code.ARGUMENT, f"{path} holds no token; delete it, then a new one is made")
    return token


def allowed(address: Address, own: HttpSettings) -> TransportSecuritySettings:
    """Return the names that clients may use for this server, with any port, because a proxy may use another one."""
    names = [*_LOOPBACK, *(name.strip() for name in own.hosts.split(",") if name.strip())]
    if address.is_any:
        names += _own_names()
    elif not address.is_loopback:
        names.append(bracketed(address.host))
    return TransportSecuritySettings(
        allowed_hosts=[*_any_port(names)],
        allowed_origins=[*_any_port(f"{scheme}://{name}" for scheme in ("http", "https") for name in names)],
    )


def _any_port(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        yield from (name, f"{name}:*")


def _own_names() -> list[str]:
    """Return this machine's name and its addresses."""
    name = socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None)
    except OSError:
        return [name]
    return [name, *dict.fromkeys(bracketed(str(address[0])) for *_, address in found)]
