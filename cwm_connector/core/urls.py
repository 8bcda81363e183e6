"""The address of vLLM as people paste it: from a browser, a client's settings or vLLM's log. Pure functions."""

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

_PAGES: Final = re.compile(
    r"/(?:v1(?:/.*)?|health|metrics|docs|redoc|openapi\.json|version|ping|tokenize|detokenize)/?$", re.IGNORECASE
)
"""The end of an address of one of vLLM's own pages. What is before it is the path of a proxy."""
_FORM: Final = "write it as http://localhost:8000"


def vllm_base(text: str) -> str:
    """Return scheme, host, port and a proxy's path, or unix:///PATH. Raise ValueError that shows the right form."""
    pasted = text.strip().strip("'\"<>`").strip().rstrip(",;")
    if pasted.startswith("/") and not pasted.startswith("//"):
        pasted = f"unix://{pasted}"
    elif "://" not in pasted:
        pasted = f"http://{pasted.removeprefix('//')}"
    parts = _split(pasted)
    scheme = parts.scheme.lower()
    if scheme in ("unix", "http+unix"):
        path = parts.path if scheme == "unix" else unquote(parts.netloc)
        if not path.startswith("/"):
            raise ValueError("the path of a unix socket begins with /; write it as unix:///run/vllm.sock")
        return f"unix://{path}"
    if scheme not in ("http", "https"):
        raise ValueError(f"it must begin with http:// or https://; {_FORM}")
    host = parts.hostname or ""
    if not host or re.search(r"[\s\\^<>]", parts.netloc):
        raise ValueError(f"it names no host; {_FORM}")
    return f"{scheme}://{_netloc(parts, _reachable(host))}{_PAGES.sub('', parts.path).rstrip('/')}"


def is_loopback(host: str) -> bool:
    """Return whether the name or address is this machine itself."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as problem:
        raise ValueError(f"{str(problem)[:1].lower()}{str(problem)[1:]}; {_FORM}") from None
    return parts


def _reachable(host: str) -> str:
    """Return an address to call: a server that listens on all addresses logs one that nobody can call everywhere."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(host, host)


def _netloc(parts: SplitResult, host: str) -> str:
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{user}{f'[{host}]' if ':' in host else host}{port}"
