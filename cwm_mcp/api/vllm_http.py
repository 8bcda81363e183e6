"""vLLM over HTTP: its health, the counters of its prefix cache, and calls that are answered with JSON.

httpx and prometheus_client are imported when they are needed. They cost start-up time, and most runs don't use them.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.stats import Component, VllmCache
from cwm_connector.settings import Settings
from cwm_mcp.network import base_url, open_client, reason_of, through
from cwm_mcp.settings import without_secrets

_TIMEOUT_S: Final = 3.0
_SHOWN: Final = 300
"""Characters of vLLM's own complaint that an error repeats."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    text: str
    latency_ms: float


class _Unreachable(Exception):
    """No HTTP answer came; the text says why."""


class Refused(CWMError):
    """vLLM understood the call and will not carry it out; `message` holds its reason."""


async def _get(settings: Settings, path: str) -> _Answer:
    import httpx

    begun = time.monotonic()
    try:
        async with open_client(settings, _TIMEOUT_S) as client:
            response = await client.get(f"{base_url(settings)}{path}")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as problem:
        raise _Unreachable(reason_of(problem, settings)) from None
    except CWMError as problem:
        raise _Unreachable(problem.message) from None
    return _Answer(response.status_code, response.text, round((time.monotonic() - begun) * 1000, 3))


async def post(
    settings: Settings,
    path: str,
    body: Mapping[str, Any],
    *,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Send a JSON body and return vLLM's JSON answer. Cancelling the waiting task ends the request in vLLM too.

    Raises: `Refused` (`Code.ARGUMENT`) with vLLM's reason, `Code.ENGINE_UNREACHABLE` if no vLLM answers,
    `Code.ENGINE_TIMEOUT` after `timeout_s`, `Code.NOT_ALLOWED` for a key that vLLM does not accept.
    """
    import httpx

    url = without_secrets(settings.vllm_url)
    timeout = httpx.Timeout(timeout_s, connect=_TIMEOUT_S)
    try:
        async with open_client(settings, timeout) as client:
            response = await client.post(f"{base_url(settings)}{path}", json=body, headers=headers)
    except httpx.ReadTimeout:
        raise CWMError(
            Code.ENGINE_TIMEOUT, f"vLLM at {url} gave no answer to {path} within {timeout_s:g} s; try again later"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as problem:
        raise unreachable(settings, problem) from None
    if response.status_code != 200:
        raise refusal_of(settings, path, response.status_code, response.text)
    answer = _parsed(response.text)
    if answer is None:
        raise CWMError(Code.ENGINE_UNREACHABLE, f"the server at {url} is not vLLM; set CWM_VLLM_URL")
    return answer


def unreachable(settings: Settings, problem: Exception) -> CWMError:
    """Return the error for a call to which no answer came."""
    return CWMError(
        Code.ENGINE_UNREACHABLE,
        f"no answer from vLLM at {without_secrets(settings.vllm_url)} ({reason_of(problem, settings)}); start it with "
        "'cwm serve' or set CWM_VLLM_URL",
    )


def refusal_of(settings: Settings, path: str, status: int, text: str) -> CWMError:
    """Return the error for an answer with another status than 200."""
    url = without_secrets(settings.vllm_url)
    if status in (401, 403):
        return CWMError(
            Code.NOT_ALLOWED, f"vLLM at {url} does not accept the key; set CWM_VLLM_API_KEY to its --api-key"
        )
    if status in (400, 413, 422):
        return Refused(Code.ARGUMENT, f"vLLM refuses {path}: {_reason(text)}; change what was asked for")
    return CWMError(
        Code.ENGINE_UNREACHABLE,
        f"{url}{path} answers HTTP {status}; see vLLM's own log{through(settings)}",
    )


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _reason(text: str) -> str:
    """Return the first line of vLLM's error."""
    error = (_parsed(text) or {}).get("error")
    message = str(error.get("message", "")) if isinstance(error, dict) else text
    return (message.strip().splitlines() or ["no reason given"])[0][:_SHOWN].rstrip(".")


async def vllm_health(settings: Settings) -> Component:
    shown = without_secrets(settings.vllm_url)
    try:
        answer = await _get(settings, "/health")
    except _Unreachable as reason:
        return Component(
            name="vllm",
            status="unhealthy",
            message=f"no answer from {shown} ({reason}); start vLLM with 'cwm serve' or set CWM_VLLM_URL",
            latency_ms=None,
        )
    if answer.status != 200:
        message = f"{shown}/health answers HTTP {answer.status}; see vLLM's own log{through(settings)}"
        return Component(name="vllm", status="unhealthy", message=message, latency_ms=answer.latency_ms)
    message = f"serving at {shown}"
    return Component(name="vllm", status="healthy", message=message, latency_ms=answer.latency_ms)


async def vllm_cache(settings: Settings) -> VllmCache:
    """Return hit rates since vLLM's start. One is None if nothing was looked up yet or vLLM does not report it."""
    text = await exposition(settings)
    if text is None:
        return VllmCache(connected=False, prefix_cache_hit_rate=None, external_hit_rate=None, cached_tokens=None)
    totals = counter_totals(text)
    cached = totals.get("vllm:prompt_tokens_cached_total")
    return VllmCache(
        connected=True,
        prefix_cache_hit_rate=_rate(totals, "vllm:prefix_cache"),
        external_hit_rate=_rate(totals, "vllm:external_prefix_cache"),
        cached_tokens=None if cached is None else int(cached),
    )


async def exposition(settings: Settings) -> str | None:
    """Return vLLM's own metrics in Prometheus' text format, or None if it gives none."""
    try:
        answer = await _get(settings, "/metrics")
    except _Unreachable:
        return None
    return answer.text if answer.status == 200 else None


def counter_totals(exposition: str) -> dict[str, float]:
    """Return vLLM's counters, each summed over engines and models. A text that can't be read has none."""
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
