"""compat/tracing.py with vLLM's own tracer and a real receiver of spans."""

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from vllm.tracing import init_tracer, instrument_manual

from cwm_connector import compat
from cwm_connector.protocol.calls import Op
from tests.support.miniature import Miniature
from tests.support.otlp import Receiver, attributes, receiving
from tests.support.vllm_parts import BLOCK_TOKENS

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def config(endpoint: str | None) -> Any:
    return SimpleNamespace(observability_config=SimpleNamespace(otlp_traces_endpoint=endpoint))


@pytest.fixture(scope="module")
def receiver() -> Any:
    """A receiver, and vLLM's tracer in this process, which can be made only once."""
    with receiving() as one:
        init_tracer("vllm.engine_core", f"http://127.0.0.1:{one.port}")
        yield one
        trace.get_tracer_provider().shutdown()  # type: ignore[attr-defined]
        os.environ.pop(ENDPOINT)


def test_without_an_endpoint_there_is_no_recorder() -> None:
    assert compat.span_recorder(config(None)) is None


async def test_a_freeze_and_a_thaw_arrive_as_spans(receiver: Receiver, tmp_path: Any) -> None:
    engine = await Miniature.started(tmp_path, record_span=compat.span_recorder(config("http://somewhere")))
    await engine.serve(range(1000, 1000 + 9 * BLOCK_TOKENS), "alice")
    await engine.call(Op.FREEZE, session_id="alice", window_name="w")
    await engine.call(Op.THAW, window_name="w", new_session_id="bob")
    engine.close()
    freeze, thaw = receiver.named("cwm.freeze"), receiver.named("cwm.thaw")
    assert attributes(freeze)["cwm.tokens"] == 144 and attributes(freeze)["cwm.session"] == "alice"
    assert attributes(thaw)["cwm.restorable_tokens"] == 144
    assert 0 < freeze.end_time_unix_nano - freeze.start_time_unix_nano < 20e9
    assert freeze.end_time_unix_nano <= thaw.start_time_unix_nano


def test_a_span_begins_a_trace_of_its_own(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    record = compat.span_recorder(config("http://somewhere"))
    assert record is not None
    record("ours", time.time_ns(), time.time_ns(), {})
    instrument_manual("theirs", time.time_ns())
    assert receiver.named("theirs").trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert receiver.named("ours").parent_span_id == b"" != receiver.named("theirs").parent_span_id


def test_a_span_takes_less_than_a_millisecond(receiver: Receiver) -> None:
    record = compat.span_recorder(config("http://somewhere"))
    assert record is not None
    begun = time.process_time()
    for _ in range(200):
        record("quick", 1, 2, {"cwm.window": "w"})
    assert (time.process_time() - begun) / 200 < 0.001
