"""clients.py: what counts as a violation, and what has a reason. The engine is made up here; a soak has a real one."""

import asyncio
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Op
from tests.support.api import Completion
from tests.torture.soak import clients
from tests.torture.soak.clients import Client, Ledger, Place
from tests.torture.soak.conversations import Conversations, Turn
from tests.torture.soak.oracle import Oracle
from tests.torture.soak.test_oracle import RIGHT, answer
from tests.torture.soak.weather import Places, Weather

WRONG = answer({7: -0.1}, {9: -0.6931, 4: -0.6932}, {6: -0.2, 5: -2.0})


class MadeUp:
    """Answers as it is told to: a completion, or an exception for calls."""

    def __init__(self) -> None:
        self.completion: Completion | None = RIGHT
        self.problem: Exception | None = None

    async def complete(self, prompt: Any, max_tokens: int, **how: Any) -> Completion:
        if self.completion is None:
            await asyncio.sleep(60)
        assert self.completion is not None
        return self.completion

    async def call(self, op: Op, args: Any) -> dict[str, Any]:
        if self.problem is not None:
            raise self.problem
        return {"cache_salt": "salt"}


class Soaked:
    """One client with all that it needs."""

    def __init__(self, tmp_path: Path) -> None:
        self.engine = MadeUp()
        self.ledger = Ledger()
        self.weather = Weather(Places(tmp_path), Random(1))
        turn = Turn("turn", [1, 2, 3], None, 5, 3, answer=RIGHT.token_ids)
        oracle = Oracle()
        oracle._answers["turn"] = RIGHT
        engine: Any = self.engine
        until = time.monotonic() + 0.05
        place = Place(engine, "", Conversations([turn], [turn]), oracle, self.weather, self.ledger, until)
        self.client = Client(place, engine, 0, Random(1))

    def found(self) -> str:
        return "; ".join(map(str, self.ledger.violations))


@pytest.fixture
def soaked(tmp_path: Path) -> Soaked:
    return Soaked(tmp_path)


async def test_right_answers_and_acknowledged_windows_are_taken_down(soaked: Soaked) -> None:
    await soaked.client.ask()
    await soaked.client.freeze()
    await soaked.client.thaw_and_ask()
    await soaked.client.clone()
    assert not soaked.found() and len(soaked.ledger.windows) == 2 and not soaked.ledger.unsettled
    await soaked.client.delete()
    assert not soaked.found() and len(soaked.ledger.windows) == 1


async def test_a_wrong_answer_is_corrupt(soaked: Soaked) -> None:
    soaked.engine.completion = WRONG
    await soaked.client.ask()
    assert "corrupt: turn got token 6 at 2 and not 5" in soaked.found()


async def test_a_refusal_needs_a_reason_and_leaves_the_window_unsettled(soaked: Soaked) -> None:
    await soaked.client.ask()
    soaked.engine.problem = CWMError(Code.BACKEND, "Redis is away; start it")
    soaked.weather._is_bad = True
    await soaked.client.freeze()
    assert not soaked.found() and len(soaked.ledger.unsettled) == 1 and not soaked.ledger.windows
    soaked.weather._is_bad = False
    await soaked.client.freeze()
    assert "window.freeze of None was refused: CWM-5002" in soaked.found()


async def test_a_window_that_another_client_deletes_may_be_missing_and_one_that_stands_may_not(soaked: Soaked) -> None:
    await soaked.client.ask()
    await soaked.client.freeze()
    (name,) = soaked.ledger.windows
    soaked.engine.problem = CWMError(Code.WINDOW_NOT_FOUND, "no such window")
    await soaked.client.delete()
    assert not soaked.found()
    soaked.ledger.windows[name] = soaked.ledger.unsettled.pop(name)
    await soaked.client.thaw_and_ask()
    assert f"window.thaw of {name} was refused: CWM-2002" in soaked.found()


async def test_a_request_that_hangs_is_named(soaked: Soaked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LIMIT_S", 0.01)
    soaked.engine.completion = None
    await soaked.client.ask()
    assert "hung" in soaked.found()


async def test_an_answer_may_be_short_only_if_the_engine_slept_meanwhile(soaked: Soaked) -> None:
    soaked.engine.completion = answer({7: -0.1, 8: -3.0})
    soaked.ledger.asleep_at = float("inf")
    await soaked.client.ask()
    assert not soaked.found()
    soaked.ledger.asleep_at = time.monotonic() - 1
    await soaked.client.ask()
    assert "1 of 3 tokens" in soaked.found()


async def test_a_call_may_be_refused_while_the_engine_sleeps_and_not_before(soaked: Soaked) -> None:
    await soaked.client.ask()
    await soaked.client.freeze()
    soaked.engine.problem = CWMError(Code.STATE, "the engine is asleep or paused; wake it and try again")
    soaked.ledger.asleep_at = float("inf")
    await soaked.client.thaw_and_ask()
    assert not soaked.found()
    soaked.ledger.asleep_at = time.monotonic() - 1
    await soaked.client.thaw_and_ask()
    assert "was refused: CWM-3001" in soaked.found()


async def test_a_client_stops_when_something_was_wrong(soaked: Soaked) -> None:
    soaked.engine.completion = WRONG
    await asyncio.wait_for(soaked.client.work(), 5)
    assert len(soaked.ledger.violations) >= 1
