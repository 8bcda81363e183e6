"""The way to vLLM: directly, through a proxy, over TLS or a unix socket, as the environment says.

The usual variables count: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR,
REQUESTS_CA_BUNDLE, in capitals or not. Loopback is never proxied, because no proxy can reach this machine's own.
"""

import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.urls import is_loopback
from cwm_connector.settings import Settings

if TYPE_CHECKING:
    import httpx

_UNIX: Final = "unix://"
_CA_FILES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXY_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it."""

    url: str
    variable: str


def proxy_for(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a URL. Raise `Code.ARGUMENT` that names the variable for one that can't work."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if url.startswith(_UNIX) or is_loopback(host) or _is_excepted(host, parts.port, environment):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if value := environment.get(variable, "").strip():
                return Proxy(_proxy_url(variable, value, host), variable)
    return None


def base_url(settings: Settings) -> str:
    """Return what the paths of vLLM's API follow."""
    return "http://localhost" if settings.vllm_url.startswith(_UNIX) else settings.vllm_url


def open_client(settings: Settings, timeout: "httpx.Timeout | float") -> "httpx.AsyncClient":
    """Return a client for vLLM. Raise `Code.ARGUMENT` that names the variable of the environment that can't work."""
    import httpx

    headers = {"Authorization": f"Bearer {settings.vllm_api_key}"} if settings.vllm_api_key else {}
    url = settings.vllm_url
    if url.startswith(_UNIX):
        transport = httpx.AsyncHTTPTransport(uds=url.removeprefix(_UNIX))
        return httpx.AsyncClient(transport=transport, timeout=timeout, headers=headers, trust_env=False)
    proxy = proxy_for(url, os.environ)
    secure = url.startswith("https://") or (proxy is not None and proxy.url.startswith("https://"))
    try:
        return httpx.AsyncClient(
            proxy=proxy.url if proxy else None,
            verify=_trusted(os.environ) if secure else True,
            timeout=timeout,
            headers=headers,
            trust_env=False,
        )
    except ImportError:
        assert proxy is not None
        raise CWMError(
            Code.ARGUMENT,
            f"{proxy.variable} names a SOCKS proxy, for which a package is missing; run pip install 'httpx[socks]', "
            f"or set NO_PROXY={urlsplit(url).hostname} if vLLM is reachable without it",
        ) from None


def reason_of(problem: Exception, settings: Settings) -> str:
    """Return why vLLM gave no answer, and the variable that decides about it."""
    text = str(problem) or type(problem).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted; set SSL_CERT_FILE to the file of your certificate authority"
    return f"{text}{through(settings)}"


def through(settings: Settings) -> str:
    """Return a remark for an answer or a fault that may be a proxy's, else nothing."""
    proxy = proxy_for(settings.vllm_url, os.environ)
    if proxy is None:
        return ""
    host = urlsplit(settings.vllm_url).hostname
    return f", through the proxy of {proxy.variable}; set NO_PROXY={host} to go without it"


def _proxy_url(variable: str, value: str, host: str) -> str:
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        scheme = {"socks": "socks5"}.get(parts.scheme.lower(), parts.scheme.lower())
        if scheme in _PROXY_SCHEMES and parts.hostname and parts.port != 0:
            return f"{scheme}://{parts.netloc}"
    except ValueError:
        pass
    raise CWMError(
        Code.ARGUMENT,
        f"{variable} is no address of a proxy; write it as http://HOST:PORT or socks5://HOST:PORT, or set "
        f"NO_PROXY={host}",
    )


def _is_excepted(host: str, port: int | None, environment: Mapping[str, str]) -> bool:
    value = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return any(_matches(entry.lower(), host.lower(), port) for entry in value.replace(",", " ").split())


def _matches(entry: str, host: str, port: int | None) -> bool:
    """Return whether one entry of NO_PROXY covers the host: *, a name, a domain, an address, or a network."""
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, _, number = entry.rpartition(":")
    if name and number.isdigit() and entry.count(":") == 1:
        if port != int(number):
            return False
        entry = name
    domain = entry.removeprefix("*").lstrip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _trusted(environment: Mapping[str, str]) -> ssl.SSLContext:
    """Return the certificate authorities of this machine, of certifi and of the environment."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    for variable in (*_CA_FILES, "SSL_CERT_DIR"):
        if not (value := environment.get(variable)):
            continue
        try:
            if variable == "SSL_CERT_DIR" or os.path.isdir(value):  # noqa: PTH112 - no path of ours
                context.load_verify_locations(capath=value)
            else:
                context.load_verify_locations(cafile=value)
        except OSError as problem:
            raise CWMError(
                Code.ARGUMENT,
                f"{variable} names {value}, which holds no certificates ({problem.strerror or 'it is none'}); correct "
                "or unset it",
            ) from None
    return context
