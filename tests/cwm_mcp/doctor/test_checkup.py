"""`cwm doctor` over real catalogs and real sockets."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.settings import Settings, load_settings
from cwm_mcp.cli.app import app
from cwm_mcp.server.http_access import kept_token
from tests.cwm_mcp.canned import STORE, CannedEngine, canned_engine_on_a_thread
from tests.support.paths import ROOT


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def checks() -> dict[str, Any]:
    return {each["name"]: each for each in json.loads(cwm("doctor", "--json").stdout)["checks"]}


@pytest.fixture
def engine(settings: Settings) -> Iterator[CannedEngine]:
    with canned_engine_on_a_thread(settings, PING={"model": "m"}) as canned:
        yield canned


def test_without_an_engine_it_says_what_to_type(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_VLLM_URL", "http://127.0.0.1:9")
    ran = cwm("doctor")
    assert ran.exit_code == 1 and "→ cwm serve MODEL" in ran.stdout
    found = checks()
    assert found["socket"]["status"] == found["vllm"]["status"] == "error"
    assert found["catalog"]["status"] == "ok" and "3 windows" in found["catalog"]["message"]


def test_an_engine_that_answers_is_well(filled: Path, engine: CannedEngine) -> None:
    assert checks()["socket"]["status"] == "ok"


def test_a_folder_that_others_can_read_is_warned_of_with_the_command_that_closes_it(
    filled: Path, settings: Settings
) -> None:
    settings.home.chmod(0o755)
    home = checks()["home"]
    assert home["status"] == "warning" and home["next"] == f"chmod 700 {settings.home}"
    settings.home.chmod(0o700)
    assert checks()["home"]["status"] == "ok"


def test_the_token_of_http_is_found_by_its_path_and_mode_and_never_shown(
    filled: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settings.home / "http-token"
    assert "does not exist yet" in checks()["http token"]["message"]
    token = kept_token(settings)
    found = checks()["http token"]
    assert found["status"] == "ok" and found["message"].startswith(f"{path} ") and "mode 600" in found["message"]
    path.chmod(0o644)
    found = checks()["http token"]
    assert found["status"] == "error" and "mode 644" in found["message"] and found["next"].startswith(f"rm {path} ")
    monkeypatch.setenv("CWM_HTTP_TOKEN", "another-token-of-32-letters")
    assert "CWM_HTTP_TOKEN" in checks()["http token"]["message"]
    for form in ([], ["--json"]):
        assert token not in cwm("doctor", *form).output and "another-token" not in cwm("doctor", *form).output


def test_a_socket_open_to_others_is_warned_of_and_the_engine_asked_all_the_same(
    filled: Path, settings: Settings, engine: CannedEngine
) -> None:
    settings.socket_path.chmod(0o666)
    found = checks()
    assert (found["socket"]["status"], found["socket"]["next"]) == ("warning", f"chmod 600 {settings.socket_path}")
    assert found["engine"]["status"] == "ok"


@pytest.mark.parametrize("words", [["doctor"], ["diff", "stem", "branch"], ["health"], ["stats"]])
def test_what_a_url_holds_beside_the_address_is_repeated_nowhere(
    filled: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("CWM_VLLM_URL", "http://anna:hush-hush@127.0.0.1:9/v?token=hush")
    for form in ([], ["--json"]):
        assert "hush" not in cwm(*words, *form).output


def test_a_setting_that_can_t_work_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_DISK_CACHE_GB", "-1")
    ran = cwm("doctor", "--json")
    assert ran.exit_code == 1
    assert (
        "CWM_DISK_CACHE_GB" in {each["name"]: each for each in json.loads(ran.stdout)["checks"]}["settings"]["message"]
    )


def test_a_misspelt_setting_is_found_and_its_value_not_repeated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks()["settings"]["status"] == "ok"
    monkeypatch.setenv("CWM_PYTHON", "/usr/bin/python3")
    assert checks()["settings"]["status"] == "ok"
    monkeypatch.setenv("CWM_CPUCACHE_GB", "hush")
    found = checks()["settings"]
    assert (found["status"], found["next"]) == ("warning", "unset CWM_CPUCACHE_GB")
    assert "CWM_CPU_CACHE_GB" in found["message"] and "hush" not in found["message"]


@pytest.mark.parametrize(("url", "said"), [("http://localhost:99999", "port"), ("ftp://localhost", "http://")])
def test_a_url_that_cannot_work_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    monkeypatch.setenv("CWM_VLLM_URL", url)
    for words in (["health"], ["stats"], ["ls"]):
        ran = cwm(*words)
        (line,) = ran.stderr.splitlines()
        assert ran.exit_code == 2
        assert line.startswith("CWM-1003: the setting CWM_VLLM_URL can't work: ") and said in line
    assert "CWM_VLLM_URL" in checks()["settings"]["message"]


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://localhost:8000/v1/", "http://localhost:8000/"])
def test_the_base_url_of_openais_clients_is_understood(home: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CWM_VLLM_URL", url)
    assert load_settings().vllm_url == "http://localhost:8000"


def test_the_disk_is_checked_against_the_engines_limit(filled: Path, settings: Settings) -> None:
    store = {**STORE, "tiers": {"cpu": None, "disk": {"blocks": 1, "bytes": 1, "limit_bytes": 1 << 20}}}
    with canned_engine_on_a_thread(settings, PING={"model": "m"}, STATS={"kv_store": store}):
        disk = checks()["disk"]
    assert disk["status"] == "ok" and "the engine's CWM_DISK_CACHE_GB is 0.000976562" in disk["message"]


def test_a_disk_that_is_too_small_for_any_limit_is_not_answered_with_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_mcp.doctor.home.free_bytes", lambda folder: 100 << 20)
    disk = checks()["disk"]
    assert disk["status"] == "error" and "100 MiB free" in disk["message"]
    assert disk["next"].startswith("df -h ")


def test_the_plugin_is_started_with_the_python_that_has_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("sys.executable", "/venv/bin/python")
    assert "run: CWM_PYTHON=/venv/bin/python claude --plugin-dir " in checks()["mcp"]["message"]
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    assert "run: claude --plugin-dir " in checks()["mcp"]["message"] or not Path("/usr/bin/python3").exists()


def test_a_redis_that_is_away_is_found_and_its_password_shown_nowhere(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWM_REDIS_URL", "redis://anna:hush-hush@127.0.0.1:9/0")
    monkeypatch.setenv("CWM_VLLM_API_KEY", "key-hush-hush")
    ran = cwm("doctor", "--json")
    assert "hush" not in ran.output
    assert checks()["redis"]["status"] == "error"


def test_a_damaged_catalog_is_found(filled: Path, settings: Settings) -> None:
    settings.catalog_path.write_bytes(b"no database" * 100)
    assert checks()["catalog"]["status"] == "error"


def test_it_looks_at_versions_without_importing_what_it_looks_for(filled: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom cwm_mcp.cli.app import app\n"
        "CliRunner().invoke(app, ['doctor'])\n"
        "assert not {'torch', 'vllm', 'lmcache'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert {"torch", "lmcache"} <= checks().keys()
