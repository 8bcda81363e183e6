"""observer.py: what an operator reads of freezes and thaws, and what is never written down."""

import logging
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol.calls import Op
from cwm_connector.tiers.disk.tier import DiskTier
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS

TEXT = range(1000, 1000 + 9 * BLOCK_TOKENS)  # four chunks and one block
SALT = "a-salt-that-nobody-may-read"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="cwm_connector")
    return caplog


def lines(log: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno == level and "anary" not in record.msg]


def outcomes(engine: Miniature) -> dict[str, float]:
    samples = engine.engine.metrics.samples()
    return {one.labels["outcome"]: one.value for one in samples if one.name == "cwm_freezes_total"}


async def test_a_freeze_is_one_line_with_ids_tokens_chunks_seconds_and_tiers(
    engine: Miniature, log: pytest.LogCaptureFixture
) -> None:
    await engine.serve(TEXT, "alice")
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    (line,) = lines(log)
    assert line.startswith(f"froze head {frozen['head']} into window w (asked for): 144 of 144 tokens, ")
    assert f"5 chunks, {frozen['new_bytes']} new bytes, captured in 0." in line
    assert line.endswith(" s (cpu 5, disk 5)")
    assert outcomes(engine) == {"done": 1, "refused": 0, "failed": 0}


async def test_a_thaw_is_one_line_with_ids_tokens_seconds_and_tiers(
    engine: Miniature, log: pytest.LogCaptureFixture
) -> None:
    await engine.serve(TEXT, "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    log.clear()
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    (line,) = lines(log)
    assert line.startswith("thawed window w: 144 of 144 tokens restorable in 0.")
    assert line.endswith(" s (tokens by tier: cpu 144)")


async def test_neither_line_nor_span_holds_salts_or_token_ids(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    log.set_level(logging.DEBUG, logger="cwm_connector")
    spans: list[tuple[Any, ...]] = []
    engine = await Miniature.started(tmp_path, record_span=lambda *span: spans.append(span))
    await engine.serve(TEXT, "alice", salt=SALT)
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    thawed = await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    with pytest.raises(CWMError):
        await engine.call(Op.FREEZE, session_id="alice", window_name="Dear Sir,\nplease freeze 1043")
    engine.close()
    assert len(spans) == 3
    for secret in (SALT, thawed["cache_salt"], "1043", "Dear"):
        assert secret not in log.text and secret not in str(spans)


async def test_a_span_covers_the_freeze_and_names_what_failed(tmp_path: Path) -> None:
    spans: list[tuple[Any, ...]] = []
    engine = await Miniature.started(tmp_path, record_span=lambda *span: spans.append(span))
    await engine.serve(TEXT, "alice")
    frozen = await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    with pytest.raises(CWMError):
        await engine.call(Op.THAW, window_name="nobody")
    engine.close()
    (name, begun, ended, attributes), (failed, *_, why) = spans
    assert name == "cwm.freeze" and (ended - begun) / 1e6 >= frozen["duration_ms"]
    assert attributes["cwm.window"] == "w" and attributes["cwm.session"] == "alice"
    assert (attributes["cwm.tokens"], attributes["cwm.chunks"], attributes["cwm.tiers"]) == (144, 5, "cpu 5, disk 5")
    assert (failed, why) == ("cwm.thaw", {"error.type": "CWM-2002"})


async def test_a_tracer_that_breaks_costs_no_freeze(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    engine = await Miniature.started(tmp_path, record_span=broken)
    await engine.serve(TEXT, "alice")
    assert (await engine.call(Op.FREEZE, session_id="alice", window_name="w"))["captured_tokens"] == 144
    engine.close()
    assert lines(log, logging.WARNING) == ["a span could not be recorded: RuntimeError"]


async def test_a_freeze_that_cannot_be_written_is_a_warning_and_a_wrong_call_is_none(
    engine: Miniature, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.serve(TEXT, "alice")
    with pytest.raises(CWMError, match="CWM-2001"):
        await engine.call(Op.FREEZE, session_id="nobody", window_name="w")
    assert lines(log, logging.WARNING) == []

    def full(tier: DiskTier) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.disk, "sync", full, raising=True)
    with pytest.raises(CWMError):
        await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    assert [line for line in lines(log, logging.WARNING) if line.startswith("the freeze of window w failed: CWM-")]
    assert outcomes(engine) == {"done": 0, "refused": 1, "failed": 1}
