"""Samples of Prometheus series: what is known without an engine, a choice by prefix, and the text format."""

from collections.abc import Iterable, Sequence

from cwm_connector.catalog.base import CatalogTotals
from cwm_connector.protocol.stats import Metric

_PARTS = ("_bucket", "_sum", "_count")


def engine_up(up: bool) -> Metric:
    return Metric(name="cwm_engine_up", type="gauge", value=float(up), labels={}, help="1 if an engine answers.")


def catalog_samples(totals: CatalogTotals) -> list[Metric]:
    """Return the engine's own gauges, under the same names, read from the catalog."""
    return [
        Metric(
            name="cwm_windows", type="gauge", value=float(totals.windows), labels={}, help="Windows in the catalog."
        ),
        Metric(name="cwm_chunks", type="gauge", value=float(totals.chunks), labels={}, help="Chunks in the catalog."),
        Metric(
            name="cwm_chunk_bytes",
            type="gauge",
            value=float(totals.stored_bytes),
            labels={},
            help="Bytes of the catalog's chunks, each once.",
        ),
    ]


def with_prefix(samples: Iterable[Metric], prefix: str | None) -> list[Metric]:
    return [sample for sample in samples if sample.name.startswith(prefix or "")]


def exposition(samples: Sequence[Metric]) -> str:
    """Return Prometheus' text format, version 0.0.4. Samples of one family must be next to each other."""
    lines: list[str] = []
    described = None
    for sample in samples:
        family = _family(sample)
        if family != described:
            help_text = sample.help.replace("\\", "\\\\").replace("\n", "\\n")
            lines += [f"# HELP {family} {help_text}", f"# TYPE {family} {sample.type}"]
            described = family
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
        lines.append(f"{sample.name}{{{labels}}} {sample.value!r}" if labels else f"{sample.name} {sample.value!r}")
    return "".join(f"{line}\n" for line in lines)


def _family(sample: Metric) -> str:
    if sample.type in ("histogram", "summary"):
        for part in _PARTS:
            if sample.name.endswith(part):
                return sample.name.removesuffix(part)
    return sample.name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
