"""Settings come from the environment or the engine's own options, and one that can't work is named in a line."""

from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.settings import AutoThaw, load_settings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("cpu_cache_gb", " 1.5", 1.5),
        ("disk_cache_gb", "20", 20.0),
        ("chunk_tokens", "512", 512),
        ("auto_freeze_enabled", "true", True),
        ("auto_freeze_enabled", "Yes", True),
        ("auto_freeze_enabled", "0", False),
        ("auto_thaw", "prefix", AutoThaw.PREFIX),
        ("log_level", "debug", "DEBUG"),
        ("vllm_api_key", "Bearer hush ", "hush"),
        ("disk_path", "/srv/chunks", Path("/srv/chunks")),
    ],
)
def test_a_variable_is_read_as_the_type_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any
) -> None:
    monkeypatch.setenv(f"CWM_{name.upper()}", text)
    assert getattr(load_settings(), name) == value


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_DISK_CACHE_GB", "")
    assert load_settings().disk_cache_gb == 50


def test_the_engines_own_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_CHUNK_TOKENS", "512")
    assert load_settings({"chunk_tokens": 1024, "of_another_connector": 1}).chunk_tokens == 1024


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("cpu_cache_gb", "much", "it must be a number"),
        ("disk_cache_gb", "-1", "it must be a number above 0"),
        ("disk_cache_gb", "nan", "it must be a number above 0"),
        ("chunk_tokens", "0", "it must be a whole number above 0"),
        ("auto_freeze_enabled", "maybe", "it must be true or false"),
        ("tier_policy", "fifo", "it must be one of lru, slru"),
        ("redis_namespace", "a b", "it must be 1 to 64 of"),
        ("redis_url", "http://hush", "it must begin with redis://"),
        ("vllm_api_key", "h\nush", "it has characters that no key has"),
        ("log_level", "loud", "use DEBUG, INFO, WARNING or ERROR"),
        ("catalog", "redis", "redis needs CWM_REDIS_URL"),
        ("socket", "/" + "s" * 120, "the socket's path is over 107 bytes; set CWM_SOCKET"),
        ("home", 5, "it must be text"),
    ],
)
def test_a_value_that_cannot_work_is_named_and_not_repeated(name: str, value: Any, said: str) -> None:
    with pytest.raises(CWMError) as refused:
        load_settings({name: value})
    assert refused.value.code is Code.ARGUMENT and refused.value.context == {"setting": name}
    assert refused.value.message.startswith(f"the setting CWM_{name.upper()} can't work: {said}")
    assert "hush" not in refused.value.message


def test_secrets_are_not_in_the_text_of_the_settings() -> None:
    settings = load_settings({"redis_url": "redis://:hush@localhost", "vllm_api_key": "hush"})
    assert "hush" not in repr(settings)
