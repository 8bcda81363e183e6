"""`cwm metrics --listen`: what Prometheus scrapes, with an engine and without one."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cwm_connector.settings import load_settings
from tests.cwm_mcp import homes
from tests.cwm_mcp.canned import canned_engine
from tests.support.control import short_folder
from tests.support.paths import ROOT


@pytest.fixture
def home() -> Iterator[Path]:
    with short_folder() as folder:
        homes.fill(folder)
        yield folder


@contextmanager
def exporting(home: Path, *words: str) -> Iterator[str]:
    """Run the command until the context ends, and yield the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cwm_mcp.cli", "metrics", "--listen", *(words or ("0",))],
        cwd=ROOT,
        env={**os.environ, "CWM_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("serving metrics at ").strip()
    finally:
        process.terminate()
        process.wait(20)


def scraped(url: str) -> dict[str, float]:
    answer = httpx.get(url, timeout=20)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {one.name: one.value for family in text_string_to_metric_families(answer.text) for one in family.samples}


async def test_a_scrape_sees_the_engine_come_and_go(home: Path) -> None:
    settings = load_settings({"home": str(home)})
    sample = {"name": "cwm_tier_up", "type": "gauge", "value": 1.0, "labels": {"tier": "disk"}, "help": "Up."}
    with exporting(home) as url:
        assert url.startswith("http://127.0.0.1:") and url.endswith("/metrics")
        assert scraped(url)["cwm_engine_up"] == 0 < scraped(url)["cwm_windows"]
        async with canned_engine(settings, METRICS={"metrics": [sample]}):
            assert await asyncio.to_thread(scraped, url) == {"cwm_engine_up": 1, "cwm_tier_up": 1}
        assert scraped(url)["cwm_engine_up"] == 0


def test_nothing_but_metrics_is_served(home: Path) -> None:
    with exporting(home) as url:
        origin = url.removesuffix("/metrics")
        assert [httpx.get(f"{origin}{path}").status_code for path in ("/", "/api/overview", "/mcp")] == [404] * 3
        assert httpx.post(url).status_code == 405


def test_an_address_that_can_t_be_is_one_line(home: Path) -> None:
    words = [sys.executable, "-m", "cwm_mcp.cli", "metrics", "--listen", "here"]
    ran = subprocess.run(words, cwd=ROOT, env={**os.environ, "CWM_HOME": str(home)}, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.startswith("CWM-1003: 'here' is no address") and "Trace" not in ran.stderr


def test_a_real_prometheus_scrapes_it_with_the_files_of_docker(home: Path, tmp_path: Path) -> None:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian and Ubuntu: apt-get install prometheus)")
    files = ROOT / "docker" / "prometheus"
    with exporting(home) as url:
        text = (files / "prometheus.yaml").read_text()
        text = text.replace("metrics:9464", httpx.URL(url).netloc.decode()).replace("15s", "1s")
        config = tmp_path / "prometheus.yaml"
        config.write_text(text.replace("/etc/prometheus/alerts.yaml", str(files / "alerts.yaml")))
        # 0 can't be given, because nothing says which port was taken then.
        api = f"127.0.0.1:{20000 + os.getpid() % 20000}"
        words = [binary, f"--config.file={config}", f"--web.listen-address={api}"]
        process = subprocess.Popen([*words, f"--storage.tsdb.path={tmp_path}"], stderr=subprocess.DEVNULL)
        try:
            assert query(api, 'cwm_engine_up{job="cwm"}') == "0"
            rules = httpx.get(f"http://{api}/api/v1/rules").json()["data"]["groups"][0]["rules"]
            assert len(rules) == 5
        finally:
            process.terminate()
            process.wait(20)


def query(api: str, expression: str) -> str:
    """Return the value of the expression, once there is one."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        with suppress(httpx.TransportError):
            answer = httpx.get(f"http://{api}/api/v1/query", params={"query": expression})
            # While it starts, it answers that it is unavailable.
            if answer.is_success and (found := answer.json()["data"]["result"]):
                return str(found[0]["value"][1])
        time.sleep(0.1)
    raise TimeoutError(expression)
