"""The passport of the engine as it serves now."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import Passport

KNOWN_LIMIT_S: Final = 30.0
"""An operation waits so long for the canary."""
POLL_S: Final = 0.02


class CurrentPassport:
    """The named fields, completed by the canary once it is computed. One for each engine.

    It is unknown until then, and again whenever the weights may have been replaced in place. Meanwhile nothing is
    frozen, and requests wait or compute. Any thread, except `known`.
    """

    def __init__(self, *, has_canary: bool) -> None:
        """`has_canary`: whether this engine can compute one. Without, the named fields are all there is."""
        self.has_canary = has_canary
        self.is_known = not has_canary
        self.current = Passport({})
        self.checks = 0
        """How often the weights may have changed. Each time asks for another canary."""
        self._named = Passport({})
        self._first: str | None = None
        self._cache_dropped = True
        self._mixed = False
        self._lock = threading.Lock()

    def name(self, named: Passport) -> None:
        """Take the named fields. Called once, before the first operation."""
        self._named = self.current = named

    def suspect(self, *, cache_dropped: bool = False) -> None:
        """Record that the weights may be others now. `cache_dropped`: vLLM has dropped its prefix cache."""
        with self._lock:
            self.checks += 1
            self.is_known = not self.has_canary
            self._cache_dropped = self._cache_dropped or cache_dropped
            self._mixed = self._mixed and not cache_dropped

    def agrees(self, canary: str, earlier: Mapping[str, str]) -> bool:
        """Return whether an engine with the passport `earlier` is equal to this one, whose print is `canary`."""
        ours = Passport({**self._named.fields, "canary": canary})
        return "canary" in earlier and ours.first_difference(earlier) is None

    def found(self, canary: str, checks: int, on_change: Callable[[], None]) -> None:
        """Take the canary of the weights at check number `checks`.

        If it changes the passport, `on_change` is called before the passport is known again.
        """
        with self._lock:
            if checks != self.checks:
                return  # the weights may have changed again
            first = self._first is None
            self._first = self._first or canary
            fields: dict[str, str] = {**self._named.fields, "canary": canary}
            if canary != self._first:
                fields["weights"] = f"{self._named.fields.get('weights', '')}, replaced in place by {canary[:16]}"
            changed = not first and fields != self.current.fields
            self._mixed = self._mixed or (changed and not self._cache_dropped)
            self._cache_dropped = False
            self.current = Passport(fields)
            if changed:
                on_change()
            self.is_known = True

    async def known(self, limit_s: float | None = None) -> Passport:
        """Return the passport, once it is known.

        Raises: `Code.STATE` if it does not become known in time, or if vLLM's cache holds KV of two sets of weights.
        """
        for _ in range(round((KNOWN_LIMIT_S if limit_s is None else limit_s) / POLL_S)):
            if self.is_known:
                break
            await asyncio.sleep(POLL_S)
        else:
            raise CWMError(Code.STATE, "the engine has not yet shown which weights it serves; try again in a moment")
        if self._mixed:
            raise CWMError(
                Code.STATE,
                "the weights were replaced while vLLM kept the KV of the old ones; reset its prefix cache, with the "
                "external one (POST /reset_prefix_cache?reset_external=true), and try again",
            )
        return self.current

    def require_still(self, passport: Mapping[str, str]) -> None:
        """Raise `Code.STATE` if the weights are no longer known to be those of `passport`. Call it after `known`."""
        if not self.is_known or self.current.fields != Passport(passport).of_engine.fields:
            raise CWMError(Code.STATE, "the weights were replaced meanwhile; continue the session and freeze it again")
