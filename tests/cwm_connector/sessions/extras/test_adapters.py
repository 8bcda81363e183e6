import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.lora.request import LoRARequest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.sessions.extras.adapters import Adapters


@pytest.fixture
def adapters() -> Iterator[Adapters]:
    one = Adapters()
    yield one
    one.close()


def adapter(folder: Path, weights: bytes, name: str = "poet") -> LoRARequest:
    """Write an adapter's files and return how a request asks for it."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return LoRARequest(lora_name=name, lora_int_id=1, lora_path=str(folder))


def digest_of(adapters: Adapters, lora_request: LoRARequest) -> str:
    return adapters.use(lora_request).checked.result(10)


def test_the_weights_decide_and_not_the_name_or_the_path(tmp_path: Path, adapters: Adapters) -> None:
    one, same = adapter(tmp_path / "one", b"weights"), adapter(tmp_path / "two", b"weights", "other name")
    other = adapter(tmp_path / "three", b"others")
    assert digest_of(adapters, one) == digest_of(adapters, same) != digest_of(adapters, other)


def test_the_configuration_of_the_adapter_and_of_the_engine_decide_too(tmp_path: Path, adapters: Adapters) -> None:
    one, other = adapter(tmp_path / "one", b"weights"), adapter(tmp_path / "two", b"weights")
    (tmp_path / "two" / "adapter_config.json").write_text('{"lora_alpha": 2}')
    (tmp_path / "one" / "README.md").write_text("of no matter")
    assert digest_of(adapters, one) != digest_of(adapters, other)
    assert digest_of(Adapters("lora_dtype=float32"), one) != digest_of(adapters, one)


def test_files_that_have_not_changed_are_not_read_again(
    tmp_path: Path, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = adapter(tmp_path / "one", b"weights")
    first = digest_of(adapters, one)
    monkeypatch.setattr(Adapters, "_digest", None)
    assert digest_of(adapters, one) == first


def test_files_that_change_under_a_running_engine_have_no_digest_until_the_cache_was_dropped(
    tmp_path: Path, adapters: Adapters
) -> None:
    one = adapter(tmp_path / "one", b"weights")
    first = digest_of(adapters, one)
    adapter(tmp_path / "one", b"new weights")
    for prepare in (lambda: None, adapters.cache_dropped, lambda: adapters.loaded(one)):
        prepare()  # neither dropping the cache nor loading the files is enough
        with pytest.raises(CWMError, match="changed while vLLM served it") as refused:
            digest_of(adapters, one)
        assert refused.value.code is Code.STATE
    adapters.cache_dropped()
    second = digest_of(adapters, one)
    assert second != first and adapters.serving(second) is one and adapters.serving(first) is None


def test_an_adapter_that_is_loaded_from_a_new_path_has_its_digest_at_once(tmp_path: Path, adapters: Adapters) -> None:
    old, new = adapter(tmp_path / "one", b"weights"), adapter(tmp_path / "two", b"new weights")
    assert digest_of(adapters, old) != digest_of(adapters, new)


def test_files_that_are_gone_are_said_to_be(tmp_path: Path, adapters: Adapters) -> None:
    one = adapter(tmp_path / "one", b"weights")
    for file in (tmp_path / "one").iterdir():
        file.unlink()
    with pytest.raises(CWMError, match="the files of adapter 'poet' can't be read"):
        digest_of(adapters, one)
    assert adapters.use(LoRARequest(lora_name="n", lora_int_id=1, lora_path="never/there")).checked.exception(10)


def test_the_caller_does_not_wait_and_is_notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, notified = threading.Event(), threading.Event()
    adapters = Adapters(notify=notified.set)
    read = Adapters._digest
    monkeypatch.setattr(Adapters, "_digest", lambda self, files: go_on.wait(10) and read(self, files))
    use = adapters.use(adapter(tmp_path / "one", b"weights"))
    assert use.digest is None and not notified.is_set()
    go_on.set()
    assert notified.wait(10) and use.digest is not None
    adapters.close()
