"""Takes proofs and repeats them, each with a request of our own for one greedy token after a window's tokens.

    freeze   under the session's own salt. vLLM has to find every whole block in its prefix cache, so that the token
             comes from the very KV that was captured
    thaw     under a salt that nobody else knows and that is used once. Every whole block has to be loaded

Both requests compute the same few tokens after the last whole block, so that on an idle engine their logprobs are equal
bit for bit. `chunk_lock` is free meanwhile. Control thread.
"""

import asyncio
import secrets
from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from cwm_connector.catalog.base import Proof
from cwm_connector.compat import FirstToken
from cwm_connector.control.async_helpers import finish_even_if_cancelled, wait_done
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec, boundaries_of
from cwm_connector.core.keys.extras import PLAIN, Extras
from cwm_connector.core.types import now_micros
from cwm_connector.operations.context import EngineContext
from cwm_connector.operations.extras import adapter_serving
from cwm_connector.protocol.proofs import Outcome, ProofCheck
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.save_plan import Prefilled

TAKE_LIMIT_S: Final = 60.0
"""A freeze waits no longer for its proof. Its window is durable already. An engine's first proof takes seconds, because
vLLM compiles its kernel for logprobs then."""
REPEAT_LIMIT_S: Final = 600.0
"""The window may have to come from a slow tier first."""
UNPROVED: Final = "the window has no proof; freeze its session again with prove=true (`cwm freeze --prove`)"
_NOTHING: Final = BoundWindow(name="", token_ids=array("i"), chunks=(), usable_blocks=0)


@dataclass(frozen=True, slots=True)
class _Answered:
    """The answer to one of our requests."""

    token: FirstToken
    prefilled: Prefilled


class Prover:
    """Keeps no state of its own: each operation may have one."""

    def __init__(self, engine: EngineContext) -> None:
        self._engine = engine

    async def take(self, name: str, token_ids: "array[int]", cache_salt: str | None, extras: Extras = PLAIN) -> Proof:
        """Take the proof of a window that was just frozen and store it with the window.

        Raises: `Code.STATE` if the engine is paused or has evicted some of the window's blocks,
        `Code.OPERATION_TIMEOUT` if it is too busy, and what the catalog raises.
        """
        answered = await self._ask(token_ids, cache_salt, _NOTHING, TAKE_LIMIT_S, extras)
        evicted = self._whole_tokens(len(token_ids)) - answered.prefilled.hit_tokens
        if evicted > 0:
            raise CWMError(
                Code.STATE,
                f"vLLM has evicted {evicted} of its tokens; continue the session and freeze it again",
            )
        proof = Proof(token_id=answered.token.token_id, logprob=answered.token.logprob, taken_at=now_micros())
        await finish_even_if_cancelled(self._engine.catalog.run(lambda catalog: catalog.add_proof(name, proof)))
        return proof

    async def repeat(
        self,
        name: str,
        token_ids: "array[int]",
        chunks: Sequence[ChunkSpec],
        proof: Proof | None,
        extras: Extras = PLAIN,
    ) -> tuple[Outcome, ProofCheck]:
        """Load the window for a request that nobody sees, and compare its token with the proof. Never raises CWMError.

        The window is opened to nobody by it.
        """
        if proof is None:
            return _uncompared(None, UNPROVED)
        window = BoundWindow(
            name=name,
            token_ids=token_ids,
            chunks=tuple(chunks),
            usable_blocks=chunks[-1].end_block if chunks else 0,
            boundaries=boundaries_of(self._engine.geometry, chunks),
        )
        try:
            salt = f"cwm-{secrets.token_urlsafe(24)}"
            answered = await self._ask(token_ids, salt, window, REPEAT_LIMIT_S, extras)
        except CWMError as problem:
            return _uncompared(proof, problem.message)
        expected = min(window.blocks * self._engine.geometry.block_tokens, self._whole_tokens(len(token_ids)))
        return compared(proof, answered.token, answered.prefilled, len(token_ids), expected)

    def _whole_tokens(self, tokens: int) -> int:
        """Return the tokens in the whole blocks that a request need not compute. vLLM computes at least one token."""
        size = self._engine.geometry.block_tokens
        return (tokens - 1) // size * size

    async def _ask(
        self, token_ids: "array[int]", cache_salt: str | None, loadable: BoundWindow, limit_s: float, extras: Extras
    ) -> _Answered:
        """Have the engine compute one token. The request is aborted if the caller is cancelled or the time is over."""
        engine = self._engine
        if extras.items:
            raise CWMError(
                Code.STATE, "a window with images or embeddings can't be proved, because CWM keeps only their KV"
            )
        adapter = await adapter_serving(engine, extras.adapter) if extras.adapter else None
        request_id = f"cwm-proof-{secrets.token_hex(8)}"
        prefilled = await engine.on_engine_thread(lambda side: side.expect_proof(request_id, loadable))
        submit = partial(engine.submit_proof, request_id, memoryview(token_ids), cache_salt, adapter)
        submitting = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            token = await asyncio.shield(submitting)
            if not (await wait_done(token, limit_s) and await wait_done(prefilled, limit_s)):
                raise CWMError(
                    Code.OPERATION_TIMEOUT, f"the engine was too busy to answer in {limit_s:.0f} s; try again later"
                )
            return _Answered(token.result(), prefilled.result())
        except BaseException:
            await self._give_up(request_id, submitting, prefilled)
            raise

    async def _give_up(
        self, request_id: str, submitting: "asyncio.Future[Future[FirstToken]]", prefilled: "Future[Prefilled]"
    ) -> None:
        token: Future[FirstToken] | None = None
        with suppress(CWMError):
            token = await finish_even_if_cancelled(submitting)  # so that the abort comes after it
        prefilled.cancel()
        if token is None or (token.done() and not token.cancelled()):
            # The engine does not have the request.
            self._engine.step_queue.call(lambda: self._engine.scheduler.forget_own(request_id))
        else:
            token.cancel()
            self._engine.abort_request(request_id)


def compared(
    proof: Proof, token: FirstToken, prefilled: Prefilled, tokens: int, expected: int
) -> tuple[Outcome, ProofCheck]:
    """Return the outcome of a repetition over `tokens` tokens, of which `expected` can be loaded."""
    loaded = prefilled.loaded_tokens
    same = (token.token_id, token.logprob) == (proof.token_id, proof.logprob)
    outcome: Outcome
    if loaded == 0 or loaded < expected:
        outcome = "none"
        because = f"only {loaded} of {expected} tokens could be loaded; `cwm verify` finds damaged chunks"
    elif same:
        outcome, because = "equal", f"the same token and logprob came after {loaded} loaded tokens"
    else:
        outcome = "different"
        because = "the KV or the batch beside it differs; repeat it while the engine is idle, then run `cwm verify`"
    return outcome, ProofCheck(
        equal=outcome == "equal",
        token_id=proof.token_id,
        repeated_token_id=token.token_id,
        logprob=proof.logprob,
        repeated_logprob=token.logprob,
        difference=token.logprob - proof.logprob,
        loaded_tokens=loaded,
        computed_tokens=tokens - prefilled.hit_tokens - loaded,
        because=because,
    )


def _uncompared(proof: Proof | None, because: str) -> tuple[Outcome, ProofCheck]:
    return "none", ProofCheck(
        equal=False,
        token_id=None if proof is None else proof.token_id,
        repeated_token_id=None,
        logprob=None if proof is None else proof.logprob,
        repeated_logprob=None,
        difference=None,
        loaded_tokens=0,
        computed_tokens=None,
        because=because,
    )
