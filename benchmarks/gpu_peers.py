"""vLLM's own offload, measured beside CWM: its tier in CPU memory, and its file system tier after a restart."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu_server import Server, drop_page_cache, prompt, with_connector
from cwm_connector.core.units import GIB

Row = dict[str, Any]

AGAIN: Final = 5
WRITE_BEHIND_S: Final = 2.0
"""vLLM copies a request's blocks out after it has answered."""
FLUSH_S: Final = 15.0
"""What the file system tier gets to write the rest before the server is killed. It syncs nothing."""


def _connector(cpu_gb: float, more: Mapping[str, object]) -> dict[str, object]:
    extra = {"cpu_bytes_to_use": int(cpu_gb * GIB), **more}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def memory(model: str, lengths: Sequence[int], cpu_gb: float, options: Sequence[str], folder: Path) -> Iterator[Row]:
    """Measure loads from vLLM's tier in CPU memory, beside prefix hits of the same server."""
    command = with_connector(model, _connector(cpu_gb, {}), options)
    with Server(command, folder, folder.with_suffix(".log"), {}) as server:
        for length in lengths:
            ids = prompt(length, length)
            server.complete(ids, 1)
            hits = [server.complete(ids, 1).seconds for _ in range(AGAIN)]
            time.sleep(WRITE_BEHIND_S)
            loads = []
            for _ in range(AGAIN):
                server.forget()
                loads.append(server.complete(ids, 1))
            yield {
                "vllm_offload": length,
                "prefix_hit_s": round(statistics.median(hits), 4),
                "from_memory_s": round(statistics.median(load.seconds for load in loads), 4),
                "all_s": [round(load.seconds, 4) for load in loads],
                "cached": min(load.cached for load in loads),
            }


def files(model: str, lengths: Sequence[int], cpu_gb: float, options: Sequence[str], folder: Path) -> Iterator[Row]:
    """Measure loads from vLLM's file system tier by a server that was killed and started again."""
    kept = folder / "files"
    tiers = {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [{"type": "fs", "root_dir": str(kept)}]}
    command = with_connector(model, _connector(cpu_gb, tiers), options)
    with Server(command, folder, folder.with_suffix(".log"), {}) as server:
        for length in lengths:
            server.complete(prompt(length, length), 1)
        time.sleep(FLUSH_S)
        server.kill()
        drop_page_cache(kept)
        server.start()
        for length in lengths:
            answer = server.complete(prompt(length, length), 1)
            yield {"vllm_files": length, "from_disk_s": round(answer.seconds, 3), "cached": answer.cached}
