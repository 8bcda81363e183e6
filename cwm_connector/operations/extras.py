"""The extras of a session that is frozen, and the adapter of a window that is proved. Control thread."""

from typing import TYPE_CHECKING, Final

from cwm_connector.control.async_helpers import wait_done
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.keys.extras import Extras
from cwm_connector.operations.context import EngineContext
from cwm_connector.sessions.extras.carried import Carried

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

CHECK_LIMIT_S: Final = 30.0
"""A freeze waits so long for the digest of an adapter's files."""


async def extras_of(engine: EngineContext, carried: Carried) -> Extras:
    """Return what a session's requests carried beside their token ids. Its adapter's files are checked again.

    Raises: `Code.STATE` for KV that can't be named, and for an adapter whose files have changed or can't be read.
    """
    if carried.fault is not None:
        raise CWMError(Code.STATE, carried.fault)
    if carried.adapter is None:
        return Extras(items=carried.items)
    now = engine.adapters.use(carried.adapter.lora_request)
    for use in (carried.adapter, now):
        if not await wait_done(use.checked, CHECK_LIMIT_S):
            raise CWMError(Code.STATE, f"the files of adapter {use.place[0]!r} are still being read; try again")
        use.checked.result()
    if carried.adapter.digest != now.digest:
        raise CWMError(
            Code.STATE,
            f"the files of adapter {now.place[0]!r} have changed since the session used it; continue the session and "
            "freeze it again",
        )
    return Extras(now.checked.result(), carried.items)


async def adapter_serving(engine: EngineContext, digest: str) -> "LoRARequest":
    """Return how to ask for the adapter with this digest. Raises: `Code.STATE` if the engine does not serve it."""
    found = engine.adapters.serving(digest)
    if found is not None:
        now = engine.adapters.use(found)
        if await wait_done(now.checked, CHECK_LIMIT_S) and now.digest == digest:
            return found
    raise CWMError(
        Code.STATE, "no request has used the window's adapter since the engine started; send one, and try again"
    )
