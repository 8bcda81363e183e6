"""tests/support/engine.py: the type that the small model is computed in, and the sizes that follow from it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.engine import Engine, EngineOptions, kv_bytes_per_token, quick_dtype
from tests.support.machine import from_proc, gpu_name


def option(options: EngineOptions, name: str) -> str:
    """Return the value of an option that the server would be started with."""
    engine = Engine(options)
    command = engine.command()
    engine.close()
    return command[command.index(name) + 1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = {"num_hidden_layers": 30, "num_key_value_heads": 3, "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 23_040), ("float32", 46_080)])
def test_the_cache_holds_as_many_tokens_in_each_type(model: Path, dtype: str, size: int) -> None:
    options = EngineOptions(model=model, dtype=dtype, kv_tokens=1000)
    assert kv_bytes_per_token(model, dtype) == size
    assert option(options, "--dtype") == dtype
    assert option(options, "--kv-cache-memory-bytes") == str(1000 * size)


def test_bf16_is_chosen_only_where_it_is_computed_in_hardware(model: Path) -> None:
    has_bf16 = any(name in from_proc("/proc/cpuinfo", "flags") for name in ("avx512_bf16", "amx_bf16"))
    assert quick_dtype() == ("bfloat16" if has_bf16 or gpu_name() else "float32")
    assert option(replace(EngineOptions(), model=model), "--dtype") == quick_dtype()
