"""vLLM over HTTP: a real server that answers as vLLM does, one that does not, and none."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cwm_connector.settings import Settings
from cwm_mcp.api.vllm_http import counter_totals, vllm_cache, vllm_health

METRICS = """\
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 3000.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 1000.0
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 0.0
# HELP vllm:external_prefix_cache_queries_total External prefix cache queries.
# TYPE vllm:external_prefix_cache_queries_total counter
vllm:external_prefix_cache_queries_total{engine="0",model_name="m"} 0.0
# HELP vllm:external_prefix_cache_hits_total External prefix cache hits.
# TYPE vllm:external_prefix_cache_hits_total counter
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 0.0
# HELP vllm:prompt_tokens_cached_total Number of cached prompt tokens (local + external).
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 1000.0
"""


class Answers(BaseHTTPRequestHandler):
    """vLLM's /health and /metrics; the paths asked for and the authorisation given are kept on the server."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        body = self.server.metrics.encode() if self.path == "/metrics" else b""
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.status, self.metrics = 200, METRICS
        self.seen: list[tuple[str, str | None]] = []

    @property
    def settings(self) -> Settings:
        return Settings(vllm_url=f"http://127.0.0.1:{self.server_port}", vllm_api_key="key")


@pytest.fixture
def vllm() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_serving_vllm_is_healthy_and_its_latency_is_measured(vllm: Server) -> None:
    health = await vllm_health(vllm.settings)
    assert health.status == "healthy"
    assert health.latency_ms is not None
    assert health.latency_ms > 0
    assert vllm.seen == [("/health", "Bearer key")]


async def test_a_vllm_whose_engine_died_is_unhealthy(vllm: Server) -> None:
    vllm.status = 503
    health = await vllm_health(vllm.settings)
    assert health.status == "unhealthy"
    assert "503" in health.message


async def test_rates_are_over_all_engines_and_null_before_the_first_query(vllm: Server) -> None:
    cache = await vllm_cache(vllm.settings)
    assert cache.connected
    assert cache.prefix_cache_hit_rate == 0.25
    assert cache.external_hit_rate is None
    assert cache.cached_tokens == 1000


async def test_without_vllm_every_figure_is_null(vllm: Server) -> None:
    settings = vllm.settings
    vllm.server_close()
    cache = await vllm_cache(settings)
    assert (cache.connected, cache.prefix_cache_hit_rate, cache.cached_tokens) == (False, None, None)
    health = await vllm_health(settings)
    assert health.status == "unhealthy"
    assert settings.vllm_url in health.message
    assert health.latency_ms is None


async def test_something_else_on_the_port_gives_no_figures(vllm: Server) -> None:
    vllm.metrics = "<html>hello {"
    cache = await vllm_cache(vllm.settings)
    assert (cache.prefix_cache_hit_rate, cache.external_hit_rate, cache.cached_tokens) == (None, None, None)


def test_an_unreadable_exposition_has_no_totals() -> None:
    assert counter_totals("vllm:x_total{") == {}
