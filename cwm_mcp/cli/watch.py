"""Print something that changes repeatedly until the user stops the command."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from cwm_connector.core.errors import CWMError
from cwm_mcp.cli import render

Show = Callable[[msgspec.Struct], None]
Read = Callable[[], Awaitable[msgspec.Struct]]


async def watch(
    read: Read, interval_s: float, as_json: bool, draw: Callable[[Any], RenderableType] = render.renderable
) -> None:
    """Print what `read` returns every `interval_s` seconds until SIGINT, SIGTERM or a closed stdout.

    When the engine stops, print what the catalog knows. When the engine is back, use it again.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, ended.set)
    try:
        if as_json:
            await _print_repeatedly(read, interval_s, ended, _print_line)
        elif not sys.stdout.isatty():
            await _print_repeatedly(read, interval_s, ended, _print_table)
        else:
            with Live(auto_refresh=False) as live:

                def redraw(stats: msgspec.Struct) -> None:
                    live.update(draw(stats), refresh=True)

                await _print_repeatedly(read, interval_s, ended, redraw)
    except BrokenPipeError:
        # Python flushes stdout again at exit, and would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for ending in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(ending)


async def _print_repeatedly(read: Read, interval_s: float, ended: asyncio.Event, show: Show) -> None:
    while not ended.is_set():
        reading = asyncio.ensure_future(read())
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if ended.is_set():
            reading.cancel()
            await asyncio.wait({reading})
            return
        try:
            show(reading.result())
        except CWMError as problem:
            print(problem, file=sys.stderr, flush=True)
        try:
            await asyncio.wait_for(ended.wait(), interval_s)
        except TimeoutError:
            continue


def _print_line(stats: msgspec.Struct) -> None:
    content: dict[str, Any] = msgspec.to_builtins(stats)
    print(json.dumps(content, ensure_ascii=False, separators=(",", ":")), flush=True)


def _print_table(stats: msgspec.Struct) -> None:
    Console().print(render.renderable(stats), Text())
    sys.stdout.flush()
