"""The real LiteLLM proxy in front of a server that speaks OpenAI's API."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.clients.pypi import program
from tests.support.clients.serving import serving

START_S: Final = 120
FORWARDING: Final[Mapping[str, Any]] = {"forward_client_headers_to_llm_api": True}
"""The setting that passes `x-*` headers on."""
KEY: Final = f"sk-{secrets.token_hex(32)}"
"""The key of its clients. Without one it does not start."""


@contextmanager
def proxy(folder: Path, url: str, model: str, general: Mapping[str, Any]) -> Iterator[str]:
    """Run the proxy in front of `url` with these general settings, and yield its own URL."""
    command = program("litellm", "litellm", "litellm")
    config = folder / "litellm.json"
    entry = {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "dummy"}
    models = [{"model_name": model, "litellm_params": entry}]
    config.write_text(json.dumps({"model_list": models, "general_settings": dict(general)}))
    variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
    with serving((command, "--config", config), folder, variables, "/health/liveliness", START_S) as front:
        yield front
