"""A server on the control socket with canned answers, for tests of the code between a client and an engine.

What a real engine answers is tested with a real one, in tests/engine.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from cwm_connector.control.server import ControlServer
from cwm_connector.control.thread import ControlThread
from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.calls import Args, Op
from cwm_connector.settings import Settings

FROZEN = {
    "window_name": "w",
    "session_id": "s",
    "token_count": 700,
    "captured_tokens": 640,
    "recomputed_tokens": 0,
    "block_count": 3,
    "total_size_bytes": 3 << 20,
    "new_bytes": 1 << 20,
    "storage_tier": "disk",
    "tiers": {"cpu": 2, "disk": 1},
    "parent_window": None,
    "duration_ms": 312.5,
}
STATUS = {
    "type": "window",
    "id": "w",
    "state": "frozen",
    "model": "m",
    "token_count": 700,
    "kv_cache": {"block_count": 3, "total_size_bytes": 1, "storage_tier": "disk", "hit_rate": None, "tiers": {}},
    "timestamps": dict.fromkeys(("created_at", "updated_at", "frozen_at", "thawed_at")),
    "lineage": {"parent": None, "children": []},
}
DELETED = {"window_name": "w", "blocks_deleted": 3, "blocks_shared": 0, "space_freed_bytes": 12288}
PROVED = {
    "window_name": "w",
    "token_count": 700,
    "proof": "equal",
    "proof_check": {
        "equal": True,
        "token_id": 7,
        "repeated_token_id": 7,
        "logprob": -0.5,
        "repeated_logprob": -0.5,
        "difference": 0.0,
        "loaded_tokens": 640,
        "computed_tokens": 60,
        "because": "the same token and logprob came after 640 loaded tokens",
    },
    "duration_ms": 80.5,
}
STORE = {
    "total_blocks": 3,
    "total_bytes": 12288,
    "hit_rate": 0.5,
    "hits": 1,
    "misses": 1,
    "dedup_ratio": 1.0,
    "tiers": {"cpu": {"blocks": 2, "bytes": 8192, "limit_bytes": 1 << 30}, "disk": None, "redis": None},
    "trash": {"windows": 1, "bytes": 4096},
}
HEALTH = {
    "status": "healthy",
    "uptime_seconds": 77.0,
    "version": "0",
    "components": [
        {"name": "engine", "status": "healthy", "message": "stepping", "latency_ms": 0.5},
        {"name": "cpu", "status": "healthy", "message": "2 blocks in memory", "latency_ms": None},
    ],
}
SAMPLE = {"name": "cwm_chunks", "type": "gauge", "value": 3, "labels": {}, "help": "Chunks."}


class CannedEngine:
    """Returns the answers that it was given, and records the arguments of every call in `asked`."""

    def __init__(self, answers: dict[Op, dict[str, Any] | CWMError]) -> None:
        self.answers = answers
        self.asked: list[Args] = []

    async def call(self, op: Op, args: Args, progress: Callable[[int, int, str], None]) -> Any:
        self.asked.append(args)
        if op is Op.FREEZE:
            for done in range(4):
                progress(done, 3, "blocks")
                await asyncio.sleep(0)
        prepared = self.answers[op]
        if isinstance(prepared, CWMError):
            raise prepared
        return prepared


@asynccontextmanager
async def canned_engine(settings: Settings, **answers: dict[str, Any] | CWMError) -> AsyncIterator[CannedEngine]:
    """Listen on the control socket, on the test's own event loop. `answers` maps the names of `Op` to results."""
    canned = CannedEngine({Op[name]: prepared for name, prepared in answers.items()})
    server = ControlServer(settings.socket_path, canned, "m")
    await server.start()
    try:
        yield canned
    finally:
        await server.close()


@contextmanager
def canned_engine_on_a_thread(settings: Settings, **answers: dict[str, Any] | CWMError) -> Iterator[CannedEngine]:
    """Listen like `canned_engine`, on the event loop of another thread, for commands that run an event loop."""
    thread = ControlThread()
    thread.start()
    engine = canned_engine(settings, **answers)
    yield thread.submit(engine.__aenter__()).result(10)
    thread.submit(engine.__aexit__(None, None, None)).result(10)
    thread.stop()
