"""What vLLM says of itself over HTTP: whether it serves, and the counters of its prefix cache.

Imports of httpx and prometheus_client wait until they are needed: they cost start-up time, and most runs never ask.
"""

import time
from dataclasses import dataclass

from cwm_connector.settings import Settings
from cwm_mcp.models import Component, VllmCache

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    text: str
    latency_ms: float


class _Unreachable(Exception):
    """No HTTP answer came; the text says why."""


async def _get(settings: Settings, path: str) -> _Answer:
    import httpx

    headers = {"Authorization": f"Bearer {settings.vllm_api_key}"} if settings.vllm_api_key else {}
    begun = time.monotonic()
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, headers=headers) as client:
            response = await client.get(f"{settings.vllm_url}{path}")
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise _Unreachable(str(problem) or type(problem).__name__) from None
    return _Answer(response.status_code, response.text, round((time.monotonic() - begun) * 1000, 3))


async def vllm_health(settings: Settings) -> Component:
    try:
        answer = await _get(settings, "/health")
    except _Unreachable as reason:
        return Component(
            name="vllm",
            status="unhealthy",
            message=f"no answer from {settings.vllm_url} ({reason}); start vLLM with 'cwm serve' or set CWM_VLLM_URL",
            latency_ms=None,
        )
    if answer.status != 200:
        message = f"{settings.vllm_url}/health answers HTTP {answer.status}; see vLLM's own log"
        return Component(name="vllm", status="unhealthy", message=message, latency_ms=answer.latency_ms)
    message = f"serving at {settings.vllm_url}"
    return Component(name="vllm", status="healthy", message=message, latency_ms=answer.latency_ms)


async def vllm_cache(settings: Settings) -> VllmCache:
    """Hit rates since vLLM's start, None where nothing was looked up yet or vLLM does not say."""
    try:
        answer = await _get(settings, "/metrics")
    except _Unreachable:
        answer = None
    if answer is None or answer.status != 200:
        return VllmCache(connected=False, prefix_cache_hit_rate=None, external_hit_rate=None, cached_tokens=None)
    totals = counter_totals(answer.text)
    cached = totals.get("vllm:prompt_tokens_cached_total")
    return VllmCache(
        connected=True,
        prefix_cache_hit_rate=_rate(totals, "vllm:prefix_cache"),
        external_hit_rate=_rate(totals, "vllm:external_prefix_cache"),
        cached_tokens=None if cached is None else int(cached),
    )


def counter_totals(exposition: str) -> dict[str, float]:
    """Each counter of vLLM's, summed over its engines and models; an unreadable text has none."""
    from prometheus_client.parser import text_string_to_metric_families

    totals: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                if sample.name.startswith("vllm:") and sample.name.endswith("_total"):
                    totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    except ValueError:
        return {}
    return totals


def _rate(totals: dict[str, float], counter: str) -> float | None:
    queries = totals.get(f"{counter}_queries_total")
    hits = totals.get(f"{counter}_hits_total")
    return hits / queries if queries and hits is not None else None
