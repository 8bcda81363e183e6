"""The contract's operations, for the MCP tools, the command line and the page.

Each one asks the engine. Lists, status, statistics, health and metrics also work without it, from the catalog, which is
read and never written. The others raise `Code.ENGINE_UNREACHABLE` until an engine is back.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol import calls
from cwm_connector.protocol import results as m
from cwm_connector.protocol.calls import Op
from cwm_connector.protocol.stats import CacheStats, Component, Health, Metrics, StoreStats
from cwm_connector.settings import Settings
from cwm_connector.version import __version__
from cwm_mcp.api import arguments as a
from cwm_mcp.api.client import ControlClient, OnProgress
from cwm_mcp.api.continuation import Prompt, prompt_after, reply_to, text_of, token_ids
from cwm_mcp.api.direct.reads import READ_TIMEOUT_S, checked, wire_arguments
from cwm_mcp.api.health import overall, redis_health, without_engine
from cwm_mcp.api.metrics import catalog_samples, engine_up, exposition, with_prefix
from cwm_mcp.api.offline import OfflineCatalog
from cwm_mcp.api.results import WindowMetadata, page_of
from cwm_mcp.api.uris import tokens_uri, transcript_uri
from cwm_mcp.api.vllm_http import vllm_cache, vllm_health

R = TypeVar("R", bound=m.Answer)

_HEALTH_TIMEOUT_S: Final = 5.0
_CHILDREN_SHOWN: Final = 40


class Operations:
    """One client of one engine. Belongs to one event loop; every method raises CWMError and nothing else of ours."""

    def __init__(self, settings: Settings, client_name: str) -> None:
        self._settings = settings
        self._engine = ControlClient(settings.socket_path, client_name)
        self._offline = OfflineCatalog(settings.catalog_path)
        self._started = time.monotonic()

    async def aclose(self) -> None:
        await self._engine.aclose()

    # --- with the engine only ---

    async def freeze(self, args: calls.FreezeArgs, on_progress: OnProgress | None = None) -> m.Frozen:
        return await self._ask(m.Frozen, Op.FREEZE, args, on_progress=on_progress)

    async def thaw(self, args: a.ThawArguments, on_progress: OnProgress | None = None) -> m.Thawed:
        """Thaw a window, and get vLLM's reply to a `continuation_prompt`. If it can't be sent, nothing is thawed."""
        prompt = None
        if args.continuation_prompt is not None:
            recorded = await self._live_token_ids(args.window_name)
            prompt = await prompt_after(self._settings, recorded, args.continuation_prompt)
        answer = await self._ask(m.Thawed, Op.THAW, args, on_progress=on_progress)
        thawed = msgspec.structs.replace(
            answer, tokens_uri=tokens_uri(args.window_name), transcript_uri=transcript_uri(args.window_name)
        )
        if prompt is None:
            return thawed
        return msgspec.structs.replace(thawed, **await self._reply(thawed, prompt, args.max_tokens))

    async def _reply(self, thawed: m.Thawed, prompt: Prompt, max_tokens: int | None) -> dict[str, Any]:
        """Return the fields of a thaw's result that come from vLLM."""
        try:
            reply = await reply_to(self._settings, prompt, max_tokens, thawed.session_id, thawed.cache_salt)
        except CWMError as problem:
            raise CWMError(
                problem.code,
                f"window '{thawed.window_name}' is thawed into session '{thawed.session_id}', but there is no reply: "
                f"{problem.message}",
                session_id=thawed.session_id,
                cache_salt=thawed.cache_salt,
            ) from None
        used = m.ReplyTokens(prompt=reply.prompt_tokens, cached=reply.cached_tokens, generated=reply.generated_tokens)
        return {"reply": reply.text, "reply_finish_reason": reply.finish_reason, "reply_tokens": used}

    async def prove(self, args: calls.ProveArgs, on_progress: OnProgress | None = None) -> m.Proved:
        return await self._ask(m.Proved, Op.PROVE, args, on_progress=on_progress)

    async def warm(self, args: calls.WarmArgs, on_progress: OnProgress | None = None) -> m.Warmed:
        return await self._ask(m.Warmed, Op.WARM, args, on_progress=on_progress)

    async def clone(self, args: calls.CloneArgs) -> m.Cloned:
        return await self._ask(m.Cloned, Op.CLONE, args)

    async def delete(self, args: a.DeleteArguments) -> m.Deleted:
        return await self._ask(m.Deleted, Op.DELETE, args)

    async def tag(self, args: calls.TagArgs) -> m.Tagged:
        return await self._ask(m.Tagged, Op.TAG, args)

    async def verify(self, args: calls.VerifyArgs, on_progress: OnProgress | None = None) -> m.Verified:
        return await self._ask(m.Verified, Op.VERIFY, args, on_progress=on_progress)

    async def export(self, args: calls.ExportArgs, on_progress: OnProgress | None = None) -> m.Exported:
        return await self._ask(m.Exported, Op.EXPORT, args, on_progress=on_progress)

    async def import_window(self, args: calls.ImportArgs, on_progress: OnProgress | None = None) -> m.Imported:
        return await self._ask(m.Imported, Op.IMPORT, args, on_progress=on_progress)

    async def policy(self, args: calls.PolicyChange) -> m.AutoFreezePolicy:
        return await self._ask(m.AutoFreezePolicy, Op.POLICY, args)

    async def live_status(self, args: calls.StatusArgs) -> m.Status:
        """Return the status from the engine. Raises: `Code.ENGINE_UNREACHABLE` without one."""
        return await self._ask(m.Status, Op.STATUS, args, timeout_s=READ_TIMEOUT_S)

    async def _live_token_ids(self, window_name: str) -> Sequence[int]:
        args = calls.TokensArgs(window_name=window_name)
        answer = await self._ask(m.WindowTokens, Op.TOKENS, args, timeout_s=READ_TIMEOUT_S)
        return token_ids(answer.token_ids)

    # --- with or without the engine ---

    async def list_windows(self, args: calls.ListArgs) -> m.WindowList:
        return await self._read(
            m.WindowList, Op.LIST, args, lambda: self._offline.windows(wire_arguments(Op.LIST, args))
        )

    async def status(self, args: calls.StatusArgs) -> m.Status:
        return await self._read(
            m.Status, Op.STATUS, args, lambda: self._offline.status(wire_arguments(Op.STATUS, args))
        )

    async def window(self, name: str) -> WindowMetadata:
        """Return what list and status know of a window, in one."""
        status = await self.status(calls.StatusArgs(window_name=name))
        if status.progress is not None or status.token_count is None:
            raise CWMError(
                Code.STATE,
                f"window {name!r} is still being frozen; read it when window_status no longer says so",
                window_name=name,
            )
        item = await self._list_item(name, status.timestamps.created_at)
        return WindowMetadata(
            name=item.name,
            description=item.description,
            tags=item.tags,
            model=status.model,
            state=status.state,
            session_id=item.session_id,
            token_count=status.token_count,
            size_bytes=item.size_bytes,
            unique_bytes=item.unique_bytes,
            storage_tier=status.kv_cache.storage_tier,
            tiers=status.kv_cache.tiers,
            created_at=item.created_at,
            thawed_at=status.timestamps.thawed_at,
            parent_window=item.parent_window,
            made_by=status.made_by,
            origin=status.origin,
            children=status.lineage.children[:_CHILDREN_SHOWN],
            child_count=len(status.lineage.children),
            tokens_uri=tokens_uri(name),
            transcript_uri=transcript_uri(name),
        )

    async def _list_item(self, name: str, created_at: str | None) -> m.WindowItem:
        """Return a window's entry in the list. It is found by its time, which is known to the millisecond."""
        around: dict[str, Any] = {"limit": 100}
        if created_at is not None:
            moment = datetime.fromisoformat(created_at)
            around["created_after"] = (moment - timedelta(microseconds=1)).isoformat()
            around["created_before"] = (moment + timedelta(milliseconds=1)).isoformat()
        offset, more = 0, True
        while more:
            page = await self.list_windows(calls.ListArgs(**around, offset=offset))
            for item in page.windows:
                if item.name == name:
                    return item
            offset, more = offset + len(page.windows), page.has_more
        raise CWMError(
            Code.WINDOW_NOT_FOUND, f"window {name!r} is gone; window_list shows what there is", window_name=name
        )

    async def token_ids(self, window_name: str) -> Sequence[int]:
        """Return a window's exact token ids."""
        args = calls.TokensArgs(window_name=window_name)
        answer = await self._read(
            m.WindowTokens, Op.TOKENS, args, lambda: self._offline.token_ids(wire_arguments(Op.TOKENS, args))
        )
        return token_ids(answer.token_ids)

    async def text_of(self, ids: Sequence[int]) -> str:
        """Return token ids as text, from vLLM. Raises: `Code.ENGINE_UNREACHABLE` without one."""
        return await text_of(self._settings, ids)

    async def sessions(self, args: calls.SessionsArgs) -> m.SessionList:
        return await self._read(
            m.SessionList, Op.SESSIONS, args, lambda: self._offline.sessions(wire_arguments(Op.SESSIONS, args))
        )

    async def stats(self, args: calls.NoArgs) -> CacheStats:
        """Return the figures of the engine or of the catalog, and vLLM's from its own /metrics."""
        store, vllm = await asyncio.gather(self._store_stats(args), vllm_cache(self._settings))
        return CacheStats(kv_store=store.kv_store, transfers=store.transfers, vllm=vllm)

    async def _store_stats(self, args: calls.NoArgs) -> StoreStats:
        return await self._read(StoreStats, Op.STATS, args, self._offline.stats)

    async def metrics(self, args: a.MetricsArguments) -> Metrics:
        try:
            answer = await self._ask(Metrics, Op.METRICS, calls.NoArgs(), timeout_s=READ_TIMEOUT_S)
            samples = [engine_up(True), *(answer.metrics or [])]
        except CWMError as problem:
            if problem.code is not Code.ENGINE_UNREACHABLE:
                raise
            samples = [engine_up(False), *catalog_samples(await asyncio.to_thread(self._offline.totals))]
        chosen = with_prefix(samples, args.prefix)
        page, more = page_of(chosen, args.offset, args.limit)
        if args.format == "prometheus":
            return Metrics(text=exposition(page), total=len(chosen), has_more=more)
        return Metrics(metrics=page, total=len(chosen), has_more=more)

    async def health(self, args: calls.HealthArgs) -> Health:
        """Return the health of all components or of one. Without an engine `uptime_seconds` is that of this process."""
        vllm, (uptime_s, others) = await asyncio.gather(vllm_health(self._settings), self._engine_health())
        components = [each for each in (vllm, *others) if args.component in (None, each.name)]
        return Health(
            status=overall(components), uptime_seconds=round(uptime_s, 1), version=__version__, components=components
        )

    async def _engine_health(self) -> tuple[float, list[Component]]:
        """Return the uptime, and every component but vLLM itself."""
        try:
            answer = await self._ask(Health, Op.HEALTH, calls.HealthArgs(), timeout_s=_HEALTH_TIMEOUT_S)
        except CWMError as problem:
            others = await without_engine(self._settings, problem, self._offline.totals)
            return time.monotonic() - self._started, others
        components = answer.components
        if not any(each.name == "redis" for each in components):
            components = [*components, await redis_health(self._settings)]
        return answer.uptime_seconds, components

    # --- how ---

    async def _ask(
        self,
        result: type[R],
        op: Op,
        args: calls.Args,
        *,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> R:
        answer = await self._engine.call(op, wire_arguments(op, args), timeout_s=timeout_s, on_progress=on_progress)
        return checked(result, answer)

    async def _read(self, result: type[R], op: Op, args: calls.Args, offline: Callable[[], R]) -> R:
        """Ask the engine, or the catalog where no engine answers."""
        try:
            return await self._ask(result, op, args, timeout_s=READ_TIMEOUT_S)
        except CWMError as problem:
            if problem.code is not Code.ENGINE_UNREACHABLE:
                raise
        return await asyncio.to_thread(offline)
