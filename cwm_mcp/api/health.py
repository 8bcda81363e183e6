"""The parts of the system that can be looked at without the engine, and what they add up to."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final, TypeVar

from cwm_connector.core.errors import CWMError
from cwm_connector.core.folders import folder_state, free_space, is_nearly_full
from cwm_connector.protocol.stats import Component, HealthState
from cwm_connector.settings import Settings

if TYPE_CHECKING:
    from cwm_connector.redis import RedisLink, ServerState

T = TypeVar("T")
_REDIS_TIMEOUT_S: Final = 2.0
_ESSENTIAL = frozenset({"vllm", "engine", "catalog"})
"""Without one of these no window can be frozen or thawed; without the others it goes slower or stores less."""


def overall(components: Sequence[Component]) -> HealthState:
    faulty = [component for component in components if component.status != "healthy"]
    if len(components) == 1:
        return components[0].status
    if any(component.status == "unhealthy" and component.name in _ESSENTIAL for component in faulty):
        return "unhealthy"
    return "degraded" if faulty else "healthy"


async def without_engine(
    settings: Settings, unreachable: CWMError, read_catalog: Callable[[], object]
) -> list[Component]:
    """Return every component but vLLM when no engine answers. `read_catalog` raises CWMError if it can't be read."""
    catalog, disk = await asyncio.gather(
        asyncio.to_thread(_catalog_health, settings, read_catalog), asyncio.to_thread(_disk_health, settings)
    )
    cpu = "the CPU tier lives in the engine, which does not answer"
    return [
        Component(name="engine", status="unhealthy", message=unreachable.message, latency_ms=None),
        catalog,
        Component(name="cpu", status="unhealthy", message=cpu, latency_ms=None),
        disk,
        await redis_health(settings),
    ]


def _catalog_health(settings: Settings, read_catalog: Callable[[], object]) -> Component:
    if not settings.catalog_path.exists():
        message = f"{settings.catalog_path} is not there yet; the engine makes it at its first start"
        return Component(name="catalog", status="degraded", message=message, latency_ms=None)
    begun = time.monotonic()
    try:
        read_catalog()
    except CWMError as problem:
        return Component(name="catalog", status="unhealthy", message=problem.message, latency_ms=None)
    return Component(name="catalog", status="healthy", message="readable", latency_ms=_since_ms(begun))


def _since_ms(begun: float) -> float:
    return round((time.monotonic() - begun) * 1000, 3)


def _disk_health(settings: Settings) -> Component:
    folder = settings.chunks_path
    if not folder.is_dir():
        message = f"{folder} is not there yet; the engine makes it at its first start"
        return Component(name="disk", status="degraded", message=message, latency_ms=None)
    state = folder_state(folder)
    if state.fault is not None:
        return Component(name="disk", status="unhealthy", message=state.fault, latency_ms=None)
    message = free_space(folder, state.free_bytes)
    status: HealthState = "degraded" if is_nearly_full(state.free_bytes) else "healthy"
    return Component(name="disk", status=status, message=message, latency_ms=None)


async def redis_health(settings: Settings) -> Component:
    """Ping Redis and return its health. A Redis that is not configured is healthy."""
    if settings.redis_url is None:
        return Component(name="redis", status="healthy", message="not configured", latency_ms=None)
    begun = time.monotonic()
    try:
        await asyncio.to_thread(_ask_redis, settings.redis_url, lambda link: link.call("PING"))
    except CWMError as problem:
        return Component(name="redis", status="unhealthy", message=problem.message, latency_ms=None)
    return Component(name="redis", status="healthy", message="answers", latency_ms=_since_ms(begun))


async def redis_state(url: str) -> "ServerState":
    """Return what the server tells of itself. Raises: `Code.BACKEND`; `Code.ARGUMENT` for a malformed URL."""
    return await asyncio.to_thread(_ask_redis, url, lambda link: link.state())


def _ask_redis(url: str, question: "Callable[[RedisLink], T]") -> T:
    from cwm_connector.redis import RedisLink  # a process without a Redis need not load the client

    with closing(RedisLink(url, connect_timeout_s=_REDIS_TIMEOUT_S, timeout_s=_REDIS_TIMEOUT_S)) as link:
        return question(link)
