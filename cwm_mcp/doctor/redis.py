"""Check Redis, if it is configured: whether it answers and has an append-only file."""

from cwm_connector.core.errors import CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.health import redis_health, redis_state
from cwm_mcp.doctor.report import Check
from cwm_mcp.settings import without_secrets


async def check_redis(settings: Settings) -> Check:
    """Return an error if Redis does not answer, and a warning if it has no append-only file."""
    component = await redis_health(settings)
    if settings.redis_url is None:
        return Check(name="redis", status="ok", message=component.message)
    shown = without_secrets(settings.redis_url)
    if component.status != "healthy":
        message = f"{shown}: {component.message}"
        return Check(name="redis", status="error", message=message, next="redis-server --appendonly yes")
    try:
        state = await redis_state(settings.redis_url)
    except CWMError:
        message = f"{shown} answers, but does not say whether it has an append-only file"
        return Check(name="redis", status="skipped", message=message)
    if not state.append_file:
        message = f"{shown} has no append-only file, so CWM moves nothing there"
        step = "redis-cli config set appendonly yes"
        return Check(name="redis", status="warning", message=message, next=step)
    return Check(name="redis", status="ok", message=f"{shown} answers and has an append-only file")
