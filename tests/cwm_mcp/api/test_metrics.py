"""Samples of metrics: which are chosen, and a text that Prometheus' own parser reads back."""

from prometheus_client.parser import text_string_to_metric_families

from cwm_connector.catalog.base import CatalogTotals
from cwm_connector.core.types import TierName
from cwm_connector.metrics import Metrics as EngineMetrics
from cwm_mcp.api.metrics import catalog_samples, engine_up, exposition, with_prefix


def test_the_text_format_reads_back_sample_by_sample() -> None:
    engine = EngineMetrics()
    engine.operations.labels('say "hi"\\\n', "done").inc(3)
    engine.freeze_seconds.observe(0.3)
    engine.loaded(TierName.DISK, 2, 512)
    samples = engine.samples()
    text = exposition(samples)
    assert text.count("# TYPE cwm_freeze_seconds ") == 1, "one family, not one for each of its samples"
    families = list(text_string_to_metric_families(text))
    read = {(each.name, *sorted(each.labels.items())): each.value for family in families for each in family.samples}
    assert read == {(each.name, *sorted(each.labels.items())): each.value for each in samples}
    assert {family.name: family.type for family in families}["cwm_freeze_seconds"] == "histogram"
    assert {family.name: family.type for family in families}["cwm_operations"] == "counter"


def test_a_prefix_chooses_by_name() -> None:
    samples = [engine_up(False), *catalog_samples(CatalogTotals(3, 20, 4096, 8192, {}))]
    assert [each.name for each in with_prefix(samples, "cwm_ch")] == ["cwm_chunks", "cwm_chunk_bytes"]
    assert with_prefix(samples, None) == samples


def test_the_catalogs_gauges_are_the_engines_own_by_name() -> None:
    theirs = {sample.name: sample.help for sample in EngineMetrics().samples()}
    ours = {each.name: each.help for each in catalog_samples(CatalogTotals(3, 20, 4096, 8192, {}))}
    assert ours == {name: theirs[name] for name in ours}
