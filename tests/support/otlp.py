"""A real receiver of OpenTelemetry's spans over gRPC, as a collector is."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver(service.TraceServiceServicer):
    """Keeps every span that arrives."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.port = 0

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return messages.ExportTraceServiceResponse()

    def named(self, name: str, within_s: float = 20) -> Span:
        """Return the first span of this name, which exporters send every few seconds."""
        limit = time.monotonic() + within_s
        while time.monotonic() < limit:
            for span in list(self.spans):
                if span.name == name:
                    return span
            time.sleep(0.05)
        raise TimeoutError(f"no span {name} among {sorted({span.name for span in self.spans})}")


def attributes(span: Span) -> dict[str, Any]:
    """Return a span's attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on a free port of this machine."""
    server, receiver = grpc.server(ThreadPoolExecutor(2)), Receiver()
    service.add_TraceServiceServicer_to_server(receiver, server)
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None)
