"""Run all checks, in the order in which a person would look for a problem."""

import asyncio
import os

from cwm_connector.core.errors import CWMError
from cwm_connector.settings import Settings
from cwm_mcp.api.offline import OfflineCatalog
from cwm_mcp.doctor import engine, home, packages, passport, plugin, redis, vllm
from cwm_mcp.doctor.report import Check, Diagnosis, summarize
from cwm_mcp.doctor.variables import check_variables
from cwm_mcp.settings import client_settings


async def run_checks(against: str | None = None) -> Diagnosis:
    """Run all checks. With an invalid setting, run only those that need no settings.

    `against`: a window that the engine should be able to load.
    """
    found = await asyncio.to_thread(packages.check_packages)
    try:
        settings = client_settings()
    except CWMError as problem:
        name = str(problem.context.get("setting", "home")).upper()
        step = f"unset CWM_{name}"
        return summarize([*found, Check(name="settings", status="error", message=str(problem), next=step)])
    fits = [] if against is None else [await asyncio.to_thread(passport.check_against, settings, against)]
    return summarize([*found, check_variables(os.environ), *await _checks_of(settings), *fits])


async def _checks_of(settings: Settings) -> list[Check]:
    read_totals = OfflineCatalog(settings.catalog_path).totals
    catalog, totals = await asyncio.to_thread(home.check_catalog, settings, read_totals)
    (of_engine, welcome), of_redis = await asyncio.gather(engine.check_engine(settings), redis.check_redis(settings))
    of_vllm = await vllm.check_vllm(settings, welcome)
    limit = None if welcome is None else await engine.disk_limit(settings)
    flags = [] if welcome is None else [await asyncio.to_thread(engine.check_flags, welcome)]
    return [
        home.check_home(settings),
        home.check_http_token(settings),
        home.check_disk(settings, totals, limit),
        *of_engine,
        *of_vllm,
        *flags,
        catalog,
        of_redis,
        plugin.check_plugin(),
    ]
