"""Git for an LLM's KV cache, inside the inference process: a vLLM KV connector that freezes and thaws KV blocks.

vLLM finds the connector by `"kv_connector": "CWMConnector", "kv_connector_module_path": "cwm_connector"`. It is
imported on first use, so that `cwm_connector.protocol` and the catalog load neither torch nor vllm.
"""

from typing import Any

from cwm_connector.version import __version__

__all__ = ["CWMConnector", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "CWMConnector":
        from cwm_connector.connector import CWMConnector

        return CWMConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
