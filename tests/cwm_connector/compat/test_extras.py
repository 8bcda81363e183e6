"""What is read of vLLM's requests and adapters, against the installed vLLM."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from vllm.config import LoRAConfig
from vllm.lora.request import LoRARequest
from vllm.v1.engine.core import EngineCore, EngineCoreProc

from cwm_connector import compat

POET = LoRARequest(lora_name="poet", lora_int_id=1, lora_path="/adapters/poet")


class _Core(EngineCore):
    """An engine that loads adapters and nothing else."""

    def __init__(self) -> None:
        self.loaded: list[LoRARequest] = []
        self.model_executor: Any = SimpleNamespace(add_lora=self._add_lora)

    def _add_lora(self, lora: LoRARequest) -> bool:
        self.loaded.append(lora)
        return True


def test_a_load_is_told_and_its_argument_is_still_decoded_as_vllm_does() -> None:
    engine, told = _Core(), list[LoRARequest]()
    compat.watch_adapter_loads(engine, told.append)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(POET))
    (argument,) = EngineCoreProc._convert_msgspec_args(engine.add_lora, [sent])
    assert engine.add_lora(argument)
    assert told == engine.loaded == [POET] and told[0].lora_path == POET.lora_path


def test_a_load_that_fails_is_not_told() -> None:
    engine, told = _Core(), list[LoRARequest]()
    engine.model_executor = SimpleNamespace(add_lora=lambda _: 1 / 0)
    compat.watch_adapter_loads(engine, told.append)
    with pytest.raises(ZeroDivisionError):
        engine.add_lora(POET)
    assert told == []


def test_the_options_that_decide_an_adapters_kv_are_named() -> None:
    plain, narrow = (SimpleNamespace(lora_config=LoRAConfig(lora_dtype=each)) for each in ("auto", "float16"))
    assert compat.adapter_options(plain) != compat.adapter_options(narrow)
    assert compat.adapter_options(SimpleNamespace(lora_config=None)) == ""
    assert {name.partition("=")[0] for name in compat.adapter_options(plain).split(",")} <= set(
        LoRAConfig.__dataclass_fields__
    )


def test_a_folder_is_the_one_that_vllm_reads(tmp_path: Path) -> None:
    from vllm.lora.utils import get_adapter_absolute_path

    for path in (str(tmp_path), "~"):
        assert str(compat.adapter_folder(path)) == get_adapter_absolute_path(path)
