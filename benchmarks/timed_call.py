"""Calls an operation of CWM for the benchmarks, and measures how long the caller waits."""

import time
from pathlib import Path
from typing import Any

from cwm_connector.protocol.calls import Args, NoArgs, Op
from cwm_mcp.api.client import ControlClient


async def timed_call(home: Path, op: Op, arguments: Args) -> tuple[dict[str, Any], float]:
    """Call an operation on the control socket, as the MCP server does. Return the answer and the milliseconds."""
    client = ControlClient(home / "engine.sock", "benchmark")
    try:
        await client.call(Op.PING, NoArgs())
        began = time.perf_counter()
        answer = await client.call(op, arguments)
        return answer, (time.perf_counter() - began) * 1000
    finally:
        await client.aclose()
