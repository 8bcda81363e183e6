"""Requests of our own whose first token somebody waits for. Any thread."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from cwm_connector import compat
from cwm_connector.compat import FirstToken
from cwm_connector.core.errors import Code, CWMError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.core import EngineCoreProc


class FirstTokens:
    """One for each engine. The engine's outputs are watched from the first request on."""

    def __init__(self, engine: "EngineCoreProc") -> None:
        self._engine = engine
        self._answers: dict[str, Future[FirstToken]] = {}
        self._watches = False
        self._lock = threading.Lock()

    def submit(
        self,
        request_id: str,
        token_ids: Sequence[int],
        cache_salt: str | None,
        lora_request: "LoRARequest | None" = None,
    ) -> "Future[FirstToken]":
        """Queue a request for one greedy token after `token_ids` and return a future of that token.

        Cancel the future to stop waiting. That does not end the request.
        Raises: `Code.STATE` for an engine that can't take the request, or that is asleep or paused.
        """
        if compat.is_paused(self._engine):
            raise CWMError(Code.STATE, "the engine is asleep or paused; wake it and try again")
        answer: Future[FirstToken] = Future()
        self._answers[request_id] = answer
        answer.add_done_callback(lambda _: self._answers.pop(request_id, None))
        try:
            self._watch()
            compat.submit_prefill(
                self._engine, request_id, token_ids, cache_salt, lora_request=lora_request, logprobs=0
            )
        except BaseException:
            answer.cancel()
            raise
        return answer

    def _watch(self) -> None:
        with self._lock:
            if not self._watches:
                compat.watch_first_tokens(self._engine, self._answers)
                self._watches = True
