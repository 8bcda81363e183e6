"""`cwm doctor` over real catalogs and real sockets."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cwm_connector.settings import Settings
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import CannedEngine, canned_engine_on_a_thread
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
