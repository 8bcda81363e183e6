"""Freeze under a name that a window has already. The old window goes once the new one is safe."""

from datetime import UTC, datetime

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_mcp.api import arguments as a
from cwm_mcp.api.client import OnProgress
from cwm_mcp.api.operations import Operations

_LONGEST = 100
"""Characters of the name in that of the window that is made first."""


async def freeze_again(operations: Operations, args: calls.FreezeArgs, on_progress: OnProgress | None) -> m.Frozen:
    """Freeze a session and let the window take the place of one of the same name.

    Freezes under another name first, so that nothing is lost if the freeze fails. An error after that names this
    window.
    """
    name = args.window_name
    try:
        await operations.live_status(calls.StatusArgs(window_name=name))
    except CWMError as problem:
        if problem.code is not Code.WINDOW_NOT_FOUND:
            raise
        return await operations.freeze(args, on_progress)
    new_name = f"{name[:_LONGEST]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-new"
    frozen = await operations.freeze(msgspec.structs.replace(args, window_name=new_name), on_progress)
    try:
        await operations.delete(a.DeleteArguments(window_name=name, force=True))
        await operations.tag(calls.TagArgs(window_name=new_name, new_name=name))
    except CWMError as problem:
        told = f"the session is frozen as '{new_name}', which could not take the name '{name}': {problem.message}"
        raise CWMError(problem.code, told, **problem.context) from None
    parent = None if frozen.parent_window == name else frozen.parent_window
    return msgspec.structs.replace(frozen, window_name=name, parent_window=parent)
