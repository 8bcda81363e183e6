"""`cwm top`: sessions, tiers and transfers in one picture that is drawn again and again."""

import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_connector.protocol.stats import KvStore, VllmCache
from cwm_mcp.api import arguments as a
from cwm_mcp.api.operations import Operations
from cwm_mcp.cli import render
from cwm_mcp.cli.commands.registration import ENGINE, command
from cwm_mcp.cli.runner import Json, print_result, run, run_until_done
from cwm_mcp.cli.table import Column, FittingTable
from cwm_mcp.cli.units import size
from cwm_mcp.cli.watch import watch

app = typer.Typer()
_SESSIONS: Final = 15
_COUNTERS: Final = {
    "cwm_stored_bytes_total": "stored_bytes",
    "cwm_loaded_tokens_total": "loaded_tokens",
    "cwm_missed_tokens_total": "missed_tokens",
    "cwm_recomputed_tokens_total": "recomputed_tokens",
}


class Transfers(msgspec.Struct, frozen=True):
    """Amounts since the engine's start: bytes to the disk, and tokens into vLLM or computed in their place."""

    stored_bytes: int | None = None
    loaded_tokens: int | None = None
    missed_tokens: int | None = None
    recomputed_tokens: int | None = None


class Top(msgspec.Struct, frozen=True):
    """The engine at one moment."""

    at: str
    kv_store: KvStore
    vllm: VllmCache
    transfers: Transfers
    sessions: m.SessionList


@dataclass(slots=True)
class _Screen:
    """The pictures so far, from which rates are made."""

    before: Top | None = None

    def draw(self, now: Top) -> RenderableType:
        shown = picture(now, self.before)
        self.before = now
        return shown


@command(app, ENGINE, examples=["cwm top", "cwm top --json | jq .transfers"])
def top(
    seconds: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two pictures.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Show sessions, tiers and transfers, live.

    Shows what each tier holds and its limit, what moves between vLLM and the tiers, and the sessions that were active
    last. Draws again until Ctrl-C. With --json or in a pipe, prints once. Without the engine, shows what the catalog
    knows.
    """
    if as_json or not sys.stdout.isatty():
        now = run(_read)
        print_result(now, as_json)
        return
    screen = _Screen()
    run_until_done(lambda cwm: watch(lambda: _read(cwm), seconds, False, screen.draw))


async def _read(cwm: Operations) -> Top:
    statistics, sessions, transfers = await asyncio.gather(
        cwm.stats(calls.NoArgs()), cwm.sessions(calls.SessionsArgs(limit=_SESSIONS)), _transfers(cwm)
    )
    return Top(
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        kv_store=statistics.kv_store,
        vllm=statistics.vllm,
        transfers=transfers,
        sessions=sessions,
    )


async def _transfers(cwm: Operations) -> Transfers:
    """Return the sums of the engine's counters, or nothing without an engine."""
    try:
        samples = (await cwm.metrics(a.MetricsArguments())).metrics or []
    except CWMError as problem:
        if problem.code is not Code.ENGINE_UNREACHABLE:
            raise
        samples = []
    sums: dict[str, int] = {}
    for sample in samples:
        if (field := _COUNTERS.get(sample.name)) is not None:
            sums[field] = sums.get(field, 0) + int(sample.value)
    return Transfers(**sums)


@render.renderable.register
def _(result: Top) -> RenderableType:
    return picture(result, None)


def picture(now: Top, before: Top | None) -> RenderableType:
    """Return the tiers, the transfers and the sessions. `before` is an earlier moment for the rates."""
    tiers = FittingTable(
        (Column("tier"), Column("size", numeric=True), Column("limit", numeric=True), Column("chunks", numeric=True))
    )
    for name, tier in now.kv_store.tiers.items():
        values = (None, None, None) if tier is None else (size(tier.bytes), size(tier.limit_bytes), tier.blocks)
        tiers.add(name, *values)
    lines = [Text.assemble((f"{label:11}", "bold"), _text(total, rate)) for label, total, rate in _moved(now, before)]
    return Group(tiers, Text(), *lines, Text(), render.renderable(now.sessions))


def _moved(now: Top, before: Top | None) -> list[tuple[str, str | None, str | None]]:
    """Return a label, the sum and the rate of each transfer."""
    passed = 0.0 if before is None else _seconds(before.at, now.at)
    rows: list[tuple[str, str | None, str | None]] = []
    for label, field in (("saved", "stored_bytes"), ("loaded", "loaded_tokens"), ("recomputed", "recomputed_tokens")):
        total = getattr(now.transfers, field)
        earlier = None if before is None else getattr(before.transfers, field)
        rate = None if total is None or earlier is None or not passed else max(0, total - earlier) / passed
        shown = size if field.endswith("bytes") else _tokens
        rows.append((label, shown(total), None if rate is None else f"{shown(int(rate))}/s"))
    share = now.vllm.prefix_cache_hit_rate
    rows.append(("cache hits", None if share is None else f"{share:.1%} of vLLM's prompt tokens", None))
    return rows


def _tokens(count: int | None) -> str | None:
    return None if count is None else f"{count} tokens"


def _text(total: str | None, rate: str | None) -> str:
    return (total or "-") + (f"   {rate}" if rate is not None else "")


def _seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
