"""Check Redis, if it is configured: whether it answers and has an append-only file."""

from typing import Final

from cwm_connector.settings import Settings
from cwm_mcp.api.health import redis_health
from cwm_mcp.doctor.report import Check
from cwm_mcp.settings import without_secrets

_TIMEOUT_S: Final = 2


async def check_redis(settings: Settings) -> Check:
    """Return an error if Redis does not answer, and a warning if it has no append-only file."""
    component = await redis_health(settings)
    if settings.redis_url is None:
        return Check(name="redis", status="ok", message=component.message)
    shown = without_secrets(settings.redis_url)
    if component.status != "healthy":
        message = f"{shown}: {component.message}"
        return Check(name="redis", status="error", message=message, next="redis-server --appendonly yes")
    append_only = await _has_append_only_file(settings.redis_url)
    if append_only is None:
        message = f"{shown} answers, but does not say whether it has an append-only file"
        return Check(name="redis", status="skipped", message=message)
    if not append_only:
        message = f"{shown} has no append-only file, so CWM moves nothing there"
        step = "redis-cli config set appendonly yes"
        return Check(name="redis", status="warning", message=message, next=step)
    return Check(name="redis", status="ok", message=f"{shown} answers and has an append-only file")


async def _has_append_only_file(url: str) -> bool | None:
    """Return None if the server does not say."""
    import redis.asyncio
    from redis.exceptions import RedisError

    try:
        async with redis.asyncio.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as client:
            persistence = await client.info("persistence")
    except (RedisError, OSError, ValueError):
        return None
    return bool(int(persistence.get("aof_enabled", 0)))
