"""Looks at everything in a store that has just been started: what is listed, what it restores, what else lies there."""

from array import array
from collections.abc import AsyncIterator, Iterator
from typing import Any

from cwm_connector.catalog.base import Catalog
from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.tiers.base import DurableTier
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS
from tests.torture.events import Damage, Seen
from tests.torture.texts import fingerprint

_PAGE = 100


async def look(engine: Miniature) -> AsyncIterator[Seen | Damage]:
    """One `Seen` for each listed window. The engine must have nothing else to do."""
    windows = [window async for window in _listed(engine)]
    for fault in await engine.catalog.run(lambda catalog: list(_inconsistencies(catalog, stores_of(engine)))):
        yield fault
    for window in windows:
        yield await _restored(engine, window)


def stores_of(engine: Miniature) -> list[DurableTier]:
    """The durable tiers."""
    return list(engine.durable_tiers)


async def _listed(engine: Miniature) -> AsyncIterator[dict[str, Any]]:
    offset, total = 0, 1
    while offset < total:
        page = await engine.call(Op.LIST, limit=_PAGE, offset=offset, sort_by="name", sort_order="asc")
        for window in page["windows"]:
            yield window
        offset, total = offset + _PAGE, page["total"]


async def _restored(engine: Miniature, window: dict[str, Any]) -> Seen:
    """Through a thaw of before, if one stands for this reader: that survives a restart. Else through a new one."""
    name = window["name"]
    ids = array("i", (await engine.call(Op.TOKENS, window_name=name))["token_ids"]).tolist()
    full, reader = len(ids) // BLOCK_TOKENS * BLOCK_TOKENS, f"look-{name}"
    restored, fault, wrong = 0, None, False
    try:
        restored = await engine.resume(ids, reader)
        if restored != full:
            fault = (await engine.call(Op.THAW, window_name=name, new_session_id=reader))["warning"]
            restored = await engine.resume(ids, reader)
    except CWMError as problem:
        fault = str(problem)
    except AssertionError as problem:
        fault, wrong = str(problem), True
    return Seen(
        name=name,
        session_id=window["session_id"],
        ids=fingerprint(ids),
        tokens=window["token_count"],
        description=window["description"],
        tags=tuple(window["tags"]),
        parent=window["parent_window"],
        size_bytes=window["size_bytes"],
        restored=restored,
        fault=None if fault is None else fault[:500],
        wrong_bytes=wrong,
    )


def _inconsistencies(catalog: Catalog, durable_tiers: list[DurableTier]) -> Iterator[Damage]:
    try:
        catalog.check_integrity()
    except CWMError as problem:
        yield Damage(False, str(problem)[:500])
    rows = catalog.all_chunks()
    for store in durable_tiers:
        referred = {row.key for row in rows if store.name in row.tiers}
        held = {chunk.key for chunk, _ in store.inventory()}
        if more := held - referred:
            yield Damage(True, f"{store.name} holds {len(more)} chunks that nobody refers to, {min(more).hex()} first")
        if fewer := referred - held:
            yield Damage(True, f"{store.name} lacks {len(fewer)} chunks that it should have, {min(fewer).hex()} first")
