"""`python -m benchmarks.facade`: measure lists while the engine is saturated, and the MCP server's cost.

One real engine has 200 sessions and 1,000 windows frozen from them. The lists are requested through a real MCP client
on stdio and directly over the socket, first from the idle engine, then while it computes prompts and answers without a
pause. The start of the MCP process is measured alone: from exec to the answer to `initialize`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.timing import show_times
from cwm_connector.protocol.calls import FreezeArgs, ListArgs, Op, SessionsArgs
from cwm_mcp.api.client import ControlClient
from tests.support.engine import ROOT, Engine, EngineOptions
from tests.support.machine import describe
from tests.support.mcp_client import mcp_client
from tests.support.texts import prompt_of

SESSION_TOKENS: Final = 160
"""One full block of the CPU build, and a few tokens more."""
BUSY_STREAMS: Final = 4
BUSY_PROMPT_TOKENS: Final = 1500
BUSY_ANSWER_TOKENS: Final = 40

Ask = Callable[[], Awaitable[dict[str, Any]]]


async def fill(engine: Engine, client: ControlClient, sessions: int, windows: int) -> None:
    """Create the sessions and freeze the windows from them."""
    for number in range(sessions):
        name = f"session-{number:03}"
        await engine.api.complete(await prompt_of(engine.api, 5000 + number, SESSION_TOKENS), 1, session_id=name)
        for turn in range(number * windows // sessions, (number + 1) * windows // sessions):
            tags = [f"project-{turn % 20}", "wip" if turn % 2 else "done"]
            await client.call(Op.FREEZE, FreezeArgs(name, f"window-{turn:04}", f"the state after turn {turn}", tags))


@asynccontextmanager
async def saturated(engine: Engine) -> AsyncIterator[None]:
    """Keep the engine busy with requests that follow each other without a pause."""

    async def keep_busy(stream: int) -> None:
        number = 0
        while True:
            prompt = await prompt_of(engine.api, 9000 + 1000 * stream + number, BUSY_PROMPT_TOKENS)
            await engine.api.complete(prompt, BUSY_ANSWER_TOKENS, session_id=f"busy-{stream}")
            number += 1

    streams = [asyncio.create_task(keep_busy(stream)) for stream in range(BUSY_STREAMS)]
    await asyncio.sleep(2)
    try:
        yield
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def computed(engine: Engine) -> float:
    """Return the tokens of prompts and answers so far, by vLLM's own counters."""
    metrics = await engine.api.metrics()
    return metrics["vllm:prompt_tokens_total"] + metrics["vllm:generation_tokens_total"]


async def measured(ask: Ask, rounds: int) -> list[float]:
    """Return the milliseconds of each call. The first does not count."""
    await ask()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await ask()
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.01)  # a client does not call without a pause
    return times


def starts(home: Path, rounds: int) -> tuple[list[float], float]:
    """Return the milliseconds until `python -m cwm_mcp` answers `initialize`, and the MiB that it takes then."""
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"}}
    hello = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}) + "\n"
    times, resident = [], 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        command = [sys.executable, "-m", "cwm_mcp"]
        environment = {**os.environ, "CWM_HOME": str(home)}
        with subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(hello)
            process.stdin.flush()
            process.stdout.readline()
            times.append((time.perf_counter() - began) * 1000)
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
            process.stdin.close()
    return times, resident


async def lists(engine: Engine, client: ControlClient, rounds: int) -> dict[str, Sequence[float]]:
    """Return the milliseconds of each list, over the socket and over MCP."""
    async with mcp_client(engine) as cwm:
        asks: dict[str, Ask] = {
            "socket: window_list, newest 20": lambda: client.call(Op.LIST, ListArgs()),
            "socket: window_list, 100 by size": lambda: client.call(Op.LIST, ListArgs(limit=100, sort_by="size")),
            "socket: window_list, tag and search": lambda: client.call(
                Op.LIST, ListArgs(tags=["project-7"], search="state turn")
            ),
            "socket: session_list, 50": lambda: client.call(Op.SESSIONS, SessionsArgs()),
            "MCP: window_list, newest 20": lambda: cwm.call("window_list"),
            "MCP: window_list, 100": lambda: cwm.call("window_list", limit=100),
            "MCP: session_list, 50": lambda: cwm.call("session_list"),
        }
        return {what: await measured(ask, rounds) for what, ask in asks.items()}


async def run(console: Console, engine: Engine, options: argparse.Namespace) -> None:
    """Fill the engine, and print the times of the lists, first idle, then saturated."""
    client = ControlClient(engine.home / "engine.sock", "benchmarks.facade")
    began = time.monotonic()
    await fill(engine, client, options.sessions, options.windows)
    filled = (
        (await client.call(Op.LIST, ListArgs(limit=1)))["total"],
        (await client.call(Op.SESSIONS, SessionsArgs(limit=1)))["total"],
    )
    console.print(f"{filled[0]} windows and {filled[1]} sessions, created in {time.monotonic() - began:.0f} s.")
    show_times(console, "Idle engine", await lists(engine, client, options.rounds))
    async with saturated(engine):
        began, before = time.monotonic(), await computed(engine)
        times = await lists(engine, client, options.rounds)
        rate = (await computed(engine) - before) / (time.monotonic() - began)
    show_times(console, f"Saturated engine: {BUSY_STREAMS} streams, {rate:.0f} tokens per second", times)
    await client.aclose()


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=200, help="how often each list is timed")
    options = parser.parse_args()
    console = Console()
    console.print(describe())
    with Engine(EngineOptions(dtype="bfloat16", max_model_len=4096, kv_tokens=40_960)) as engine:
        asyncio.run(run(console, engine, options))
        home = engine.home
        engine.kill_hard()
        times, resident = starts(home, 20)
    show_times(console, "MCP process", {"start to the answer to initialize": times})
    console.print(f"The MCP process takes {resident:.0f} MiB. The load at the end was {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
