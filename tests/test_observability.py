"""The files of docker/ that watch the engine: every metric exists, every file is mounted, the alerts fire."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cwm_connector.metrics import Metrics
from cwm_mcp.api.metrics import engine_up

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
ALERTS = DOCKER / "prometheus" / "alerts.yaml"
DASHBOARD = DOCKER / "grafana" / "cwm.json"
TEXT = (ROOT / "docs" / "observability.md").read_text()
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def known() -> set[str]:
    """Return the names of all samples that a scrape may have."""
    families = Metrics().registry.collect()
    return {engine_up(True).name} | {f"{one.name}{end}" for one in families for end in SUFFIXES[one.type]}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules()]


def named(text: str) -> set[str]:
    return set(re.findall(r"\bcwm_\w+", text))


def test_every_metric_of_dashboard_and_alerts_exists() -> None:
    assert len(expressions()) > 30
    assert {name for each in expressions() for name in named(each)} - known() == set()


def test_every_metric_of_the_text_of_an_alert_exists() -> None:
    for rule in rules():
        assert named(rule["annotations"]["action"]) <= known()


def test_there_are_five_alerts_and_the_document_says_what_to_do_about_each() -> None:
    assert len(rules()) == 5
    for rule in rules():
        assert f"`{rule['alert']}`" in TEXT


def test_the_document_lists_every_metric() -> None:
    families = {f"{one.name}{SUFFIXES[one.type][0].replace('_bucket', '')}" for one in Metrics().registry.collect()}
    assert families - named(TEXT) == set()


def test_compose_mounts_each_file_and_scrapes_the_exporter() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    mounts = [each.split(":") for name in ("prometheus", "grafana") for each in services[name]["volumes"]]
    mounted = {DOCKER / source: target for source, target, *_ in mounts if source.startswith("./")}
    folders = (DOCKER / "prometheus", DOCKER / "grafana")
    assert set(mounted) == {path for folder in folders for path in folder.iterdir()} - {ALERTS.with_stem("alerts_test")}
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    assert mounted[ALERTS] in scraped["rule_files"]
    targets = [target for job in scraped["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    assert all(target.split(":")[0] in services for target in targets)
    assert f"0.0.0.0:{targets[0].split(':')[1]}" in services["metrics"]["entrypoint"]
    provider = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text())["providers"][0]
    assert Path(mounted[DASHBOARD]).parent == Path(provider["options"]["path"])
    source = yaml.safe_load((DOCKER / "grafana" / "datasource.yaml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in json.loads(DASHBOARD.read_text())["panels"]} == {source["uid"]}


def test_nothing_that_watches_is_open_to_other_machines() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for name in ("prometheus", "grafana", "metrics"):
        assert all(port.startswith("127.0.0.1:") for port in services[name].get("ports", []))


@pytest.mark.parametrize(
    "words",
    [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")],
    ids=["is valid", "fires when it should and only then"],
)
def test_promtool_says_that_every_alert(words: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian and Ubuntu: apt-get install prometheus)")
    ran = subprocess.run([promtool, *words], cwd=ALERTS.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
