"""Check vLLM over HTTP: whether it answers, accepts the key, and serves the engine's model."""

from typing import Any, Final
from urllib.parse import urlsplit

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.wire import Welcome
from cwm_connector.settings import Settings
from cwm_mcp.doctor.report import Check
from cwm_mcp.network import base_url, open_client, through
from cwm_mcp.settings import without_secrets

_TIMEOUT_S: Final = 3.0
_START: Final = "cwm serve MODEL"


async def check_vllm(settings: Settings, welcome: Welcome | None) -> list[Check]:
    """Return one check for vLLM and its key, and one for the model if vLLM answers."""
    import httpx

    url = without_secrets(settings.vllm_url)
    try:
        async with open_client(settings, _TIMEOUT_S) as client:
            response = await client.get(f"{base_url(settings)}/v1/models")
    except CWMError as problem:
        step = f"export NO_PROXY={urlsplit(url).hostname}"
        return [Check(name="vllm", status="error", message=problem.message, next=step)]
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as problem:
        # Only the type of the error, because its text may repeat a secret.
        proxied = through(settings)
        step = _START if welcome is None else "export CWM_VLLM_URL=http://localhost:PORT"
        step = f"export NO_PROXY={urlsplit(url).hostname}" if proxied else step
        message = f"no answer from {url} ({type(problem).__name__}{proxied})"
        return [Check(name="vllm", status="error", message=message, next=step)]
    if response.status_code in (401, 403):
        message = f"{url} rejects CWM_VLLM_API_KEY" if settings.vllm_api_key else f"{url} requires a key"
        step = "export CWM_VLLM_API_KEY=the value of vLLM's --api-key"
        return [Check(name="vllm", status="error", message=message, next=step)]
    served = _served(response)
    if served is None:
        message = f"the server at {url} is not vLLM (HTTP {response.status_code}{through(settings)})"
        return [Check(name="vllm", status="error", message=message, next="export CWM_VLLM_URL=http://localhost:PORT")]
    return [Check(name="vllm", status="ok", message=f"answers at {url}"), _model(served, welcome)]


def _served(response: Any) -> list[str] | None:
    try:
        return [str(each["id"]) for each in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def _model(served: list[str], welcome: Welcome | None) -> Check:
    names = ", ".join(served) or "nothing"
    if welcome is None:
        message = f"vLLM serves {names}, but no CWM engine answers, so vLLM may run without the connector"
        return Check(
            name="model", status="warning", message=message, next=f"cwm serve {served[0] if served else 'MODEL'}"
        )
    if welcome.model in served:
        return Check(name="model", status="ok", message=f"vLLM and the engine serve {welcome.model}")
    message = f"vLLM at this address serves {names}, but the engine serves {welcome.model}"
    return Check(name="model", status="error", message=message, next="export CWM_VLLM_URL=http://localhost:PORT")
