"""All checks, in the order in which one would look."""

import asyncio

from cwm_connector.core.errors import CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.offline import OfflineCatalog
from cwm_mcp.doctor import clients, engine, installed, redis, store, vllm
from cwm_mcp.doctor.report import Check, Diagnosis, diagnosis
from cwm_mcp.settings import client_settings


async def examine() -> Diagnosis:
    """The diagnosis. With a setting that can't work only what needs no settings is looked at."""
    found = await asyncio.to_thread(installed.checks)
    try:
        settings = client_settings()
    except CWMError as problem:
        name = str(problem.context.get("setting", "home")).upper()
        step = f"unset CWM_{name}"
        return diagnosis([*found, Check(name="settings", status="error", message=str(problem), next=step)])
    return diagnosis([*found, Check(name="settings", status="ok", message="all can work"), *await _rest(settings)])


async def _rest(settings: Settings) -> list[Check]:
    catalog, totals = await asyncio.to_thread(store.catalog, settings, OfflineCatalog(settings.catalog_path).totals)
    (answers, welcome), redis_check = await asyncio.gather(engine.socket(settings), redis.check(settings))
    http = await vllm.checks(settings, welcome)
    flags = [] if welcome is None else [await asyncio.to_thread(engine.flags, welcome)]
    return [
        store.home(settings),
        store.disk(settings, totals),
        *answers,
        *http,
        *flags,
        catalog,
        redis_check,
        clients.check(),
    ]
