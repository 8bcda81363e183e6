"""Statistics that follow what happens, until somebody has seen enough."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cwm_connector.core.errors import CWMError
from cwm_mcp.api import arguments as a
from cwm_mcp.api.operations import Operations
from cwm_mcp.api.results import as_content
from cwm_mcp.cli import render

Show = Callable[[BaseModel], None]


async def watch_stats(operations: Operations, interval_s: float, as_json: bool) -> None:
    """Shows the statistics every `interval_s`, until SIGINT, SIGTERM, or nobody reads stdout any more.

    An engine that goes away leaves what the catalog knows, and is found again when it is back.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, ended.set)
    try:
        if as_json:
            await _follow(operations, interval_s, ended, _print_line)
        elif not sys.stdout.isatty():
            await _follow(operations, interval_s, ended, _print_table)
        else:
            with Live(auto_refresh=False) as live:
                await _follow(operations, interval_s, ended, lambda stats: live.update(render.of(stats), refresh=True))
    except BrokenPipeError:
        # Python writes what is left once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for ending in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(ending)


async def _follow(operations: Operations, interval_s: float, ended: asyncio.Event, show: Show) -> None:
    while not ended.is_set():
        asked = asyncio.create_task(operations.stats(a.NoArguments()))
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({asked, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if ended.is_set():
            asked.cancel()
            await asyncio.wait({asked})
            return
        try:
            show(asked.result())
        except CWMError as problem:
            print(problem, file=sys.stderr, flush=True)
        try:
            await asyncio.wait_for(ended.wait(), interval_s)
        except TimeoutError:
            continue


def _print_line(stats: BaseModel) -> None:
    content: dict[str, Any] = as_content(stats)
    print(json.dumps(content, ensure_ascii=False, separators=(",", ":")), flush=True)


def _print_table(stats: BaseModel) -> None:
    Console().print(render.of(stats), Text())
    sys.stdout.flush()
