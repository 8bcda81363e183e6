"""Redis, if there is one: whether it answers, and keeps what it is given."""

from typing import Final

from cwm_connector.settings import Settings
from cwm_mcp.api.health import redis_health
from cwm_mcp.doctor.report import Check
from cwm_mcp.settings import without_secrets

_PATIENCE_S: Final = 2


async def check(settings: Settings) -> Check:
    component = await redis_health(settings)
    if settings.redis_url is None:
        return Check(name="redis", status="ok", message=component.message)
    shown = without_secrets(settings.redis_url)
    if component.status != "healthy":
        message = f"{shown}: {component.message}"
        return Check(name="redis", status="error", message=message, next="redis-server --appendonly yes")
    kept = await _kept(settings.redis_url)
    if kept is None:
        message = f"{shown} answers, but does not tell whether it keeps an append-only file"
        return Check(name="redis", status="skipped", message=message)
    if not kept:
        message = f"{shown} keeps no append-only file, so that nothing moves there"
        step = "redis-cli config set appendonly yes"
        return Check(name="redis", status="warning", message=message, next=step)
    return Check(name="redis", status="ok", message=f"{shown} answers and keeps an append-only file")


async def _kept(url: str) -> bool | None:
    """None where the server won't say."""
    import redis.asyncio
    from redis.exceptions import RedisError

    try:
        async with redis.asyncio.from_url(
            url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S
        ) as client:
            facts = await client.info("persistence")
    except (RedisError, OSError, ValueError):
        return None
    return bool(int(facts.get("aof_enabled", 0)))
