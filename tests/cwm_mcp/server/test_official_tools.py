"""The protocol's own inspector and conformance suite on the real server, in both eras.

The suite's other scenarios call fixture tools of its own, so its total says nothing of a server like this one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cwm_mcp.npm import Node, mcp_tools
from tests.cwm_mcp.server.test_http import serving
from tests.cwm_mcp.server.test_tools import TABLE
from tests.support.clients.npm import INSTALL_S
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(INSTALL_S + 120)

CONNECT_MS = "60000"
"""The inspector gives a server 15 s otherwise, which is short on a busy machine."""
INSPECTOR_ERAS = ["legacy", "modern"]
OLDER, NEWER = "2025-11-25", "2026-07-28"
SCENARIOS = [
    ("server-initialize", OLDER),
    ("server-session-lifecycle", OLDER),
    ("ping", OLDER),
    *((name, era) for name in ("tools-list", "resources-list", "prompts-list") for era in (OLDER, NEWER)),
    *((name, era) for name in ("dns-rebinding-protection", "server-sse-multiple-streams") for era in (OLDER, NEWER)),
    ("caching", NEWER),
    ("sep-2164-resource-not-found", NEWER),
    ("server-stateless", NEWER),
]
WANT_A_FIXTURE_TOOL = {
    "server-stateless": {
        "sep-2575-server-rejects-undeclared-capability",
        "sep-2575-missing-capability-http-400",
    }
}
"""Checks that call a tool of the suite's own, which this server has not."""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return mcp_tools(tmp_path)


# --- conformance ---


@pytest.mark.parametrize(("scenario", "era"), SCENARIOS)
def test_the_conformance_scenario_passes(filled: Path, tmp_path: Path, node: Node, scenario: str, era: str) -> None:
    results = tmp_path / "results"
    with serving(tmp_path) as server:
        arguments = ["--url", server.url, "--scenario", scenario, "--spec-version", era, "-o", str(results)]
        ran = node.run("conformance", "server", *arguments)
    (written,) = results.rglob("checks.json")
    checks = json.loads(written.read_text())
    failed = {check["id"] for check in checks if check["status"] == "FAILURE"}
    assert failed == WANT_A_FIXTURE_TOOL.get(scenario, set()), ran.out
    assert any(check["status"] == "SUCCESS" for check in checks)


# --- inspector ---


def inspect(node: Node, home: Path, era: str, *request: str) -> tuple[int, dict[str, Any]]:
    """Exit code and result of one request over stdio."""
    server = ["-e", f"CWM_HOME={home}", "--cwd", str(ROOT), sys.executable, "-m", "cwm_mcp"]
    ran = node.run("inspector", "--cli", "--protocol-era", era, "--connect-timeout", CONNECT_MS, *server, *request)
    assert ran.out, ran.err
    result = json.loads(ran.out)
    assert isinstance(result, dict)
    return ran.code, result


@pytest.mark.parametrize("era", INSPECTOR_ERAS)
def test_the_inspector_lists_what_there_is(filled: Path, node: Node, era: str) -> None:
    _, tools = inspect(node, filled, era, "--method", "tools/list")
    _, resources = inspect(node, filled, era, "--method", "resources/list")
    _, templates = inspect(node, filled, era, "--method", "resources/templates/list")
    _, prompts = inspect(node, filled, era, "--method", "prompts/list")
    assert {tool["name"] for tool in tools["tools"]} == TABLE.keys()
    assert "window://stem" in {resource["uri"] for resource in resources["resources"]}
    assert len(templates["resourceTemplates"]) == 5
    assert {prompt["name"] for prompt in prompts["prompts"]} == {"resume", "branch", "handover"}


@pytest.mark.parametrize("era", INSPECTOR_ERAS)
def test_the_inspector_gets_results_and_errors(filled: Path, node: Node, era: str) -> None:
    call = ("--method", "tools/call", "--tool-name")
    done, windows = inspect(node, filled, era, *call, "window_list", "--tool-arg", "limit=2")
    failed, thaw = inspect(node, filled, era, *call, "window_thaw", "--tool-arg", "window_name=stem")
    _, stem = inspect(node, filled, era, "--method", "resources/read", "--uri", "window://stem")
    arguments = ("--prompt-name", "resume", "--prompt-args", "window=stem")
    _, resume = inspect(node, filled, era, "--method", "prompts/get", *arguments)
    assert (done, failed) == (0, 5), "5 says that the tool answered with an error"
    assert (len(windows["structuredContent"]["windows"]), windows["structuredContent"]["has_more"]) == (2, True)
    assert thaw["_meta"]["cwm/error"]["code"] == 5001
    assert json.loads(stem["contents"][0]["text"])["name"] == "stem"
    assert "window_thaw" in resume["messages"][0]["content"]["text"]


@pytest.mark.parametrize("era", INSPECTOR_ERAS)
def test_the_inspector_gets_in_over_http_with_the_token_only(
    filled: Path, tmp_path: Path, node: Node, era: str
) -> None:
    token = "a-token-of-the-inspector"
    request = ["--cli", "--protocol-era", era, "--transport", "http", "--method", "tools/list", "--server-url"]
    with serving(tmp_path, CWM_HTTP_TOKEN=token) as server:
        refused = node.run("inspector", *request, server.url)
        ran = node.run("inspector", *request, server.url, "--header", f"Authorization: Bearer {token}")
    assert refused.code != 0
    assert ran.code == 0, ran.err
    assert {tool["name"] for tool in json.loads(ran.out)["tools"]} == TABLE.keys()


@pytest.mark.parametrize("era", INSPECTOR_ERAS)
def test_the_inspector_finds_no_error_in_the_schemas(filled: Path, node: Node, era: str) -> None:
    # It exits with 6 for an error; that `type` may be an array is a warning, and JSON Schema all the same.
    code, _ = inspect(node, filled, era, "--strict", "--method", "tools/list")
    assert code == 0
