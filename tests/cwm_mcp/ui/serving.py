"""Run `cwm ui` as a process, with the answers of an engine for it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cwm_connector.catalog.base import WindowQuery
from cwm_connector.catalog.results import window_item
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.units import GIB
from cwm_connector.settings import Settings
from tests.cwm_mcp.canned import HEALTH
from tests.support.paths import ROOT

MARKUP: Final = "<script>document.title = 'taken'</script><b>bold</b>"

POLICY: Final = {
    "enabled": True,
    "idle_timeout_minutes": 30,
    "token_threshold": 100_000,
    "naming_pattern": "auto-{session_id}-{timestamp}",
    "keep_last": 3,
    "tags": ["auto"],
    "next_action": {"session_id": "talk", "reason": "idle", "due_at": "2026-01-03T09:30:00.000Z"},
}


@dataclass(frozen=True, slots=True)
class Served:
    """A running `cwm ui`."""

    process: "subprocess.Popen[str]"
    url: str
    """The address to open, with the token."""
    log: Path
    """Everything that the process prints after its first line."""

    @property
    def origin(self) -> str:
        """Return the page's scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def token(self) -> str:
        """Return the token in the printed address."""
        return urlsplit(self.url).query.removeprefix("token=")


@contextmanager
def serving(folder: Path, *words: str, **settings: str) -> Iterator[Served]:
    """Run `cwm ui` with these arguments and variables until the context ends."""
    log = folder / "ui.log"
    with log.open("w") as rest:
        process = subprocess.Popen(
            [sys.executable, "-m", "cwm_mcp.cli", "ui", *words],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=rest,
            text=True,
        )
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            assert first.startswith("open http://127.0.0.1:"), first + log.read_text()
            yield Served(process, first.removeprefix("open ").strip(), log)
        finally:
            process.terminate()
            said, _ = process.communicate(timeout=20)
            rest.write(said)


def session(number: int, title: str | None = None, **changes: Any) -> dict[str, Any]:
    """Return a session as the engine lists it."""
    return {
        "session_id": f"session-{number}",
        "state": "active",
        "model": "m",
        "token_count": 1000 + number,
        "heads": 2,
        "cached_tokens": 640,
        "last_active_at": "2026-01-03T09:00:00.000Z",
        "created_at": "2026-01-02T09:00:00.000Z",
        "windows": [],
        "title": title,
        "auto_freeze_at": "2026-01-03T09:30:00.000Z",
        **changes,
    }


def answers(settings: Settings, *sessions: dict[str, Any]) -> dict[str, Any]:
    """Return the answers of an engine with this catalog, including its counters."""
    catalog = SqliteCatalog.open_read_only(settings.catalog_path)
    page = catalog.list_windows(WindowQuery(descending=False, limit=100))
    catalog.close()
    return {
        "LIST": {"windows": [window_item(row, "cpu") for row in page.windows], "total": page.total, "has_more": False},
        "SESSIONS": {"sessions": list(sessions), "total": len(sessions), "has_more": False},
        "STATS": {
            "kv_store": {
                "total_blocks": 5,
                "total_bytes": 20_480,
                "hit_rate": 0.75,
                "hits": 9,
                "misses": 3,
                "dedup_ratio": 2.2,
                "tiers": {
                    "cpu": {"blocks": 2, "bytes": GIB, "limit_bytes": 4 * GIB},
                    "disk": {"blocks": 5, "bytes": 45 * GIB, "limit_bytes": 50 * GIB},
                    "redis": None,
                },
            },
            "transfers": [
                {"kind": "freeze", "name": "evening", "done": 3, "total": 12, "started_at": "2026-01-03T08:59:00.000Z"},
                {"kind": "verify", "name": None, "done": 0, "total": None, "started_at": "2026-01-03T08:59:30.000Z"},
            ],
        },
        "METRICS": {
            "metrics": [
                sample("cwm_loaded_tokens_total", 6000, tier="disk"),
                sample("cwm_loaded_tokens_total", 1680, tier="cpu"),
                sample("cwm_missed_tokens_total", 256),
                sample("cwm_load_seconds_sum", 1.5),
                sample("cwm_prefill_tokens_per_second", 1200),
            ]
        },
        "HEALTH": HEALTH,
        "POLICY": POLICY,
    }


def sample(name: str, value: float, **labels: str) -> dict[str, Any]:
    """Return a sample of a series."""
    return {"name": name, "type": "counter", "value": value, "labels": labels, "help": name}


VLLM_METRICS: Final = """\
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total 1000
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total 625
"""
