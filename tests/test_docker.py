"""The files in docker/ start vLLM as `cwm serve` does, with this version's packages and settings."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement

from cwm_connector.settings import Settings, load_settings
from cwm_mcp.serve import Build, compose

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
HOME = "/var/lib/cwm"


def services() -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert isinstance(found, dict)
    return found


def printed(model: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables and the words of the line that `cwm serve --dry-run` prints on the CUDA build."""
    words = shlex.split(str(compose(Build.CUDA, model, [], {})))
    program = next(place for place, word in enumerate(words) if word.endswith("/vllm"))
    return dict(word.split("=", 1) for word in words[:program]), words[program + 1 :]


def grouped(words: list[str]) -> dict[str, list[str]]:
    """Return each option with its values, whatever their order; the words before the first option are under ""."""
    options: dict[str, list[str]] = {"": []}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            options[name] = []
        else:
            options[name].append(word)
    return options


def stage(name: str) -> str:
    """Return the Dockerfile's text from where the stage begins up to the next stage."""
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found, f"no stage {name}"
    return found[1]


def variables(name: str) -> dict[str, str]:
    """Return what a stage's ENV instructions set."""
    instructions = re.findall(r"^ENV ((?:.*\\\n)*.*)$", stage(name), re.MULTILINE)
    return dict(word.split("=", 1) for text in instructions for word in shlex.split(text.replace("\\\n", " ")))


def entrypoint(name: str) -> list[str]:
    (found,) = re.findall(r"^ENTRYPOINT (.*)$", stage(name), re.MULTILINE)
    words = json.loads(found)
    assert isinstance(words, list)
    return words


def test_compose_gives_vllm_the_flags_that_cwm_serve_prints() -> None:
    command = services()["vllm"]["command"]
    assert command[0].startswith("${CWM_MODEL:-")
    _, words = printed(command[0])
    started, expected = grouped([*entrypoint("engine")[1:], *command]), grouped(words)
    for options in (started, expected):
        options["--kv-transfer-config"] = [json.loads(value) for value in options["--kv-transfer-config"]]
    assert started == expected


def test_the_image_starts_the_program_that_cwm_serve_starts() -> None:
    assert entrypoint("engine") == ["vllm", "serve"]


def test_the_image_sets_the_variables_that_cwm_serve_sets() -> None:
    expected, _ = printed("m")
    assert variables("engine") == {**expected, "CWM_HOME": HOME}


def test_compose_lets_vllm_shut_down_before_it_kills_it() -> None:
    vllm = services()["vllm"]
    (seconds,) = grouped(vllm["command"])["--shutdown-timeout"]
    assert int(vllm["stop_grace_period"].removesuffix("s")) > int(seconds)


@pytest.mark.parametrize("service", ["vllm", "mcp"])
def test_compose_leads_to_its_own_redis(service: str) -> None:
    url = services()[service]["environment"]["CWM_REDIS_URL"]
    assert load_settings({"redis_url": url}).redis_url == url
    assert services()[urlsplit(url).hostname]["image"].startswith("redis:")


def test_the_redis_of_compose_keeps_what_it_is_given() -> None:
    options = grouped(services()["redis"]["command"][1:])
    assert options == {"": [], "--appendonly": ["yes"], "--maxmemory-policy": ["noeviction"]}
    assert "redis-data:/data" in services()["redis"]["volumes"]


def test_vllm_waits_for_redis() -> None:
    assert services()["vllm"]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_every_variable_of_compose_is_a_setting() -> None:
    named = {name for service in services().values() for name in service.get("environment", {})}
    ours = {name for name in named if name.startswith("CWM_")}
    assert "CWM_REDIS_URL" in ours
    assert ours <= {f"CWM_{field.upper()}" for field in Settings.__dataclass_fields__}


def test_compose_shares_the_engines_home_with_the_mcp_server() -> None:
    for service in ("vllm", "mcp"):
        assert f"cwm-home:{HOME}" in services()[service]["volumes"]
    assert variables("mcp")["CWM_HOME"] == variables("engine")["CWM_HOME"] == HOME


def test_compose_builds_stages_that_exist() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    targets = {service["build"]["target"] for service in services().values() if "build" in service}
    assert targets <= set(stages)


def test_compose_starts_a_connector_that_exists() -> None:
    (text,) = grouped(services()["vllm"]["command"])["--kv-transfer-config"]
    config = json.loads(text)
    source = ROOT / config["kv_connector_module_path"] / "connector.py"
    assert f"class {config['kv_connector']}(" in source.read_text()
    # vLLM's own default fails the request instead.
    assert config["kv_load_failure_policy"] == "recompute"


def test_the_image_has_the_vllm_of_the_cuda_extra() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cuda"]
    (allowed,) = [Requirement(text).specifier for text in extra if Requirement(text).name == "vllm"]
    (locked,) = re.findall(r"^vllm==(\S+)$", (ROOT / "requirements" / "cuda.txt").read_text(), re.MULTILINE)
    assert f"FROM vllm/vllm-openai:v{locked} AS engine" in DOCKERFILE and locked in allowed


def test_the_build_is_sent_every_file_that_the_wheel_needs() -> None:
    # Everything is ignored but what is named.
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == {"pyproject.toml", "README.md", "LICENSE", "cwm_connector", "cwm_mcp", "context_window_manager"}
