"""A freeze that replaces a window: the old one goes only once the new one is safe."""

from pathlib import Path

import pytest

from cwm_connector.control.server import ControlServer
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_connector.settings import Settings
from cwm_mcp.api.operations import Operations
from cwm_mcp.cli.commands.replacing import freeze_again
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)
AGAIN = calls.FreezeArgs("alice", "save")


async def test_the_new_window_takes_the_name_and_the_old_one_is_gone(home: Path, settings: Settings) -> None:
    engine = await Miniature.started(home)
    server = ControlServer(settings.socket_path, engine.operations, "small")
    await server.start()
    operations = Operations(settings, "test")
    try:
        await engine.serve(TEXT[:64], "alice")
        first = await freeze_again(operations, AGAIN, None)
        await engine.serve(TEXT, "alice")
        second = await freeze_again(operations, AGAIN, None)
        assert (first.window_name, second.window_name, second.parent_window) == ("save", "save", None)
        assert second.token_count > first.token_count
        listed = (await operations.list_windows(calls.ListArgs())).windows
        assert [(each.name, each.token_count) for each in listed] == [("save", second.token_count)]
        with pytest.raises(CWMError) as refused:
            await freeze_again(operations, calls.FreezeArgs("nobody", "save"), None)
        assert refused.value.code is Code.SESSION_NOT_FOUND
        assert (await operations.list_windows(calls.ListArgs())).total == 1
    finally:
        await operations.aclose()
        await server.close()
        engine.close()
