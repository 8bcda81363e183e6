"""Connections to the server that CWM_REDIS_URL names, made in one way for everybody.

redis-py reads the URL and speaks TLS. Nothing is retried here: a caller must know whether a command was sent once. The
URL may hold a password, so no error repeats any part of it.
"""

from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.retry import Retry

from cwm_connector.redis.errors import bad_url

_OPTIONS_OF_A_POOL: Final = ("max_connections", "timeout")
"""redis-py allows them in a URL. A single connection does not take them."""

Node = tuple[str | None, int]
"""Another node of the URL's cluster: its host, or None for the URL's own, and its port."""


def new_connection(
    url: str, *, connect_timeout_s: float, timeout_s: float, node: Node | None = None, **more: Any
) -> Any:
    """Return a redis-py connection that is not yet connected. `more` are further options of redis-py.

    Raises: `Code.ARGUMENT` for a malformed URL or an unknown option in it.
    """
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        kind = options.pop("connection_class", Connection)
        for option in _OPTIONS_OF_A_POOL:
            options.pop(option, None)
        if node is not None:
            host, port = node
            options |= {"host": host, "port": port} if host else {"port": port}
        options |= {
            "protocol": 2,
            "decode_responses": False,
            "socket_connect_timeout": connect_timeout_s,
            "socket_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "driver_info": None,
        }
        return kind(**options, **more)
    except (ValueError, TypeError, redis.RedisError):
        raise bad_url() from None
