"""vLLM's tracing: spans of our own beside those of its requests. Any thread; nothing here blocks.

vLLM's engine process has a tracer once `--otlp-traces-endpoint` is set. Its exporter sends from a thread of its own.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def span_recorder(
    vllm_config: "VllmConfig",
) -> Callable[[str, int, int, Mapping[str, str | int | float]], None] | None:
    """Return a function that takes a span's name, start and end in nanoseconds, and attributes.

    Return None if vLLM has tracing off, or OpenTelemetry's packages are missing.
    """
    from vllm.tracing import is_tracing_available

    is_on = vllm_config.observability_config.otlp_traces_endpoint is not None and is_tracing_available()
    return _record_span if is_on else None


def _record_span(name: str, begun: int, ended: int, attributes: Mapping[str, str | int | float]) -> None:
    from opentelemetry.context import Context
    from vllm.tracing import instrument_manual

    # Without a context of its own, a span would belong to the trace of vLLM's start, which is in the environment.
    instrument_manual(name, begun, ended, dict(attributes), Context())
