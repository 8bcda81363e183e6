"""The MCP server writes to stderr only what a person should see."""

import logging

import httpx
import pytest

from cwm_connector.settings import Settings
from cwm_mcp.server.app import build_server
from tests.cwm_mcp.vllm_server import vllm_server


def test_questions_to_vllm_are_not_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    build_server(settings)
    with vllm_server() as vllm:
        httpx.post(f"{vllm.url}/detokenize", json={"tokens": []}, trust_env=False)
    assert not [record for record in caplog.records if record.name == "httpx"]
