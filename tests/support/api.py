"""vLLM's own HTTP interface as a client sees it: token-exact completions, time to first token, counters.

Every figure here is the engine's (usage, /metrics) or a clock's; nothing comes from CWM.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S: Final = 300
_COUNTERS_SETTLE_S: Final = 10


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. Times in seconds from sending the request; `cached_tokens` is the engine's usage field."""

    prompt_tokens: int
    cached_tokens: int
    token_ids: tuple[int, ...] = field(repr=False)
    top_logprobs: tuple[Mapping[str, float], ...] = field(repr=False)
    """Per generated token; empty unless asked for."""
    text: str
    ttft_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Counters:
    """vLLM's counters since its start, in tokens, summed over engines."""

    prompt_tokens: int
    local_hits: int
    """vllm:prefix_cache_hits_total: found in vLLM's own prefix cache."""
    external_hits: int
    """vllm:external_prefix_cache_hits_total: restored through the KV connector."""
    external_queries: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A completion and what vLLM's counters moved by meanwhile; meaningful only without other requests."""

    completion: Completion
    local_hits: int
    restored: int
    """Tokens that the connector put back, by vLLM's external prefix cache counter."""


class Api:
    """Stateless: every call opens its own connection, so one object serves any event loop and survives a restart."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model

    def _client(self) -> httpx.AsyncClient:
        # Plain http on the loopback: loading certificates would cost every request 30 ms.
        return httpx.AsyncClient(base_url=self._url, timeout=_TIMEOUT_S, verify=False, trust_env=False)

    async def tokenize(self, text: str) -> list[int]:
        """The text's ids without any added ones; special tokens in the text are recognised."""
        async with self._client() as client:
            body = {"model": self._model, "prompt": text, "add_special_tokens": False}
            response = (await client.post("/tokenize", json=body)).raise_for_status()
        return list(response.json()["tokens"])

    async def detokenize(self, ids: Sequence[int]) -> str:
        async with self._client() as client:
            body = {"model": self._model, "tokens": list(ids)}
            response = (await client.post("/detokenize", json=body)).raise_for_status()
        return str(response.json()["prompt"])

    async def complete(
        self,
        prompt: Sequence[int] | str,
        max_tokens: int,
        *,
        session_id: str | None = None,
        cache_salt: str | None = None,
        temperature: float = 0,
        logprobs: int | None = None,
        ignore_eos: bool = True,
        on_token: Callable[[int], None] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Streams a completion; `on_token` gets the number of tokens so far. `fields` are further ones of the request.

        Raises: RuntimeError with the server's answer where it refuses; httpx.TransportError where it is gone.
        """
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "ignore_eos": ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            # Logprobs keyed by id: two ids can have the same text.
            "return_tokens_as_token_ids": True,
            **(fields or {}),
        }
        if cache_salt is not None:
            body["cache_salt"] = cache_salt
        if logprobs is not None:
            body["logprobs"] = logprobs
        headers = {} if session_id is None else {"X-Session-ID": session_id}
        stream = _Stream(on_token)
        async with self._client() as client:
            began = time.perf_counter()
            async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
                async for line in response.aiter_lines():
                    stream.feed(line, time.perf_counter() - began)
        return stream.completion(time.perf_counter() - began)

    async def counters(self) -> Counters:
        metrics = await self.metrics()
        return Counters(
            prompt_tokens=int(metrics["vllm:prompt_tokens_total"]),
            local_hits=int(metrics["vllm:prefix_cache_hits_total"]),
            external_hits=int(metrics["vllm:external_prefix_cache_hits_total"]),
            external_queries=int(metrics["vllm:external_prefix_cache_queries_total"]),
        )

    async def metrics(self) -> dict[str, float]:
        """/metrics: each sample's value summed over its labels."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(await self._metrics_text()):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0) + sample.value
        return values

    async def block_tokens(self) -> int:
        """vLLM's block size in tokens."""
        for family in text_string_to_metric_families(await self._metrics_text()):
            for sample in family.samples:
                if sample.name == "vllm:cache_config_info":
                    return int(sample.labels["block_size"])
        raise RuntimeError("vLLM's /metrics does not tell the block size")

    async def _metrics_text(self) -> str:
        async with self._client() as client:
            return (await client.get("/metrics")).raise_for_status().text

    async def measure(self, prompt: Sequence[int], max_tokens: int, **how: Any) -> Measured:
        """`complete`, with what vLLM's counters say of it. Not while other requests run."""
        before = await self.counters()
        completion = await self.complete(prompt, max_tokens, **how)
        deadline = time.monotonic() + _COUNTERS_SETTLE_S
        # The counters are published after the answer; wait for this request's own prompt to be in them.
        while (after := await self.counters()).prompt_tokens < before.prompt_tokens + completion.prompt_tokens:
            if time.monotonic() > deadline:
                raise RuntimeError("vLLM's counters do not show the request that it has answered")
            await asyncio.sleep(0.02)
        return Measured(
            completion=completion,
            local_hits=after.local_hits - before.local_hits,
            restored=after.external_hits - before.external_hits,
        )


class _Stream:
    """The events of one streamed completion, gathered."""

    def __init__(self, on_token: Callable[[int], None] | None) -> None:
        self._on_token = on_token
        self._ids: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[Mapping[str, float]] = []
        self._usage: dict[str, Any] | None = None
        self._ttft_s: float | None = None

    def feed(self, line: str, seconds: float) -> None:
        payload = line.removeprefix("data: ")
        if not payload or payload == "[DONE]":
            return
        event = json.loads(payload)
        if "error" in event:
            raise RuntimeError(str(event["error"]))
        self._usage = event.get("usage") or self._usage
        for choice in event["choices"]:
            self._text.append(choice["text"])
            if choice["logprobs"]:
                self._logprobs += choice["logprobs"]["top_logprobs"]
            if fresh := choice.get("token_ids"):
                self._ttft_s = self._ttft_s or seconds
                self._ids += fresh
                if self._on_token:
                    self._on_token(len(self._ids))

    def completion(self, total_s: float) -> Completion:
        if self._usage is None or self._ttft_s is None:
            raise RuntimeError("the stream ended without a token or without its usage")
        return Completion(
            prompt_tokens=self._usage["prompt_tokens"],
            # Raises KeyError unless the server runs with --enable-prompt-tokens-details: a missing count is no zero.
            cached_tokens=self._usage["prompt_tokens_details"]["cached_tokens"],
            token_ids=tuple(self._ids),
            top_logprobs=tuple(self._logprobs),
            text="".join(self._text),
            ttft_s=self._ttft_s,
            total_s=total_s,
        )
