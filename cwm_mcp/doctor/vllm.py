"""vLLM over HTTP: whether it answers, accepts the key, and serves what the engine serves."""

from typing import Any, Final

from cwm_connector.protocol.wire import Welcome
from cwm_connector.settings import Settings
from cwm_mcp.doctor.report import Check
from cwm_mcp.settings import without_secrets

_TIMEOUT_S: Final = 3.0
_START: Final = "cwm serve MODEL"


async def checks(settings: Settings, welcome: Welcome | None) -> list[Check]:
    """vLLM and its key in one line, the model in another."""
    import httpx

    url = without_secrets(settings.vllm_url)
    key = {"Authorization": f"Bearer {settings.vllm_api_key}"} if settings.vllm_api_key else {}
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, headers=key) as client:
            response = await client.get(f"{settings.vllm_url}/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as problem:
        # The kind of the fault only: its text may repeat what must not be shown.
        step = _START if welcome is None else "export CWM_VLLM_URL=http://localhost:PORT"
        message = f"no answer from {url} ({type(problem).__name__})"
        return [Check(name="vllm", status="error", message=message, next=step)]
    if response.status_code in (401, 403):
        message = f"{url} does not accept the key" if key else f"{url} wants a key"
        step = "export CWM_VLLM_API_KEY=the value of vLLM's --api-key"
        return [Check(name="vllm", status="error", message=message, next=step)]
    served = _served(response)
    if served is None:
        message = f"what answers at {url} is no vLLM (HTTP {response.status_code})"
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
        message = f"vLLM serves {names}, but no engine of ours answers: it may run without the connector"
        return Check(
            name="model", status="warning", message=message, next=f"cwm serve {served[0] if served else 'MODEL'}"
        )
    if welcome.model in served:
        return Check(name="model", status="ok", message=f"{welcome.model}, in vLLM and in the engine")
    message = f"vLLM serves {names}, the engine {welcome.model}: these are two servers"
    return Check(name="model", status="error", message=message, next="export CWM_VLLM_URL=http://localhost:PORT")
