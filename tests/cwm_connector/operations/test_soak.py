"""Nothing grows with the number of thaws. The long form is `python -m benchmarks.soak`."""

import logging
from pathlib import Path

import pytest

from tests.support.miniature import Miniature
from tests.support.soak import WINDOWS, soak

LIMIT = 60
"""Instead of 1,024, so that a few hundred thaws show what is left of older ones."""


@pytest.mark.timeout(180)
async def test_nothing_is_left_of_old_thaws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "cwm_connector")  # pytest keeps the line of each thaw
    monkeypatch.setattr("cwm_connector.sessions.thaw_bindings.MAX_THAWS", LIMIT)
    monkeypatch.setattr("cwm_connector.catalog.sqlite.thaws.BINDINGS", LIMIT)
    monkeypatch.setattr("cwm_connector.catalog.sqlite.thaws.SESSIONS", LIMIT)
    engine = await Miniature.started(tmp_path)
    before, *_, after = [left async for left in soak(engine, thaws=600, every=200)]
    engine.close()
    assert (after.bindings, after.files) == (LIMIT, before.files)
    assert after.sessions <= LIMIT + WINDOWS
    # A few objects for each thaw would be 400 more at least.
    assert after.objects - before.objects < 200
    bound = engine.engine.thaw_bindings
    assert max(len(bound._by_session), len(bound._by_salt), len(bound._session_of)) <= LIMIT
