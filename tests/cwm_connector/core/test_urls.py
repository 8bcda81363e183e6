"""Addresses of vLLM as people paste them."""

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.urls import is_loopback
from cwm_connector.settings import load_settings


@pytest.mark.parametrize(
    ("pasted", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        (" http://localhost:8000\n", "http://localhost:8000"),
        ("'http://localhost:8000'", "http://localhost:8000"),
        ("<http://localhost:8000>", "http://localhost:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("//gpu-box:8000", "http://gpu-box:8000"),
        ("192.168.1.7:8000/v1", "http://192.168.1.7:8000"),
        ("HTTP://GPU.example.com:8000/V1/", "http://GPU.example.com:8000".replace("GPU", "gpu")),
        ("http://gpu:8000/v1/chat/completions", "http://gpu:8000"),
        ("http://gpu:8000/docs#/default/health_health_get", "http://gpu:8000"),
        ("http://gpu:8000/metrics?x=1", "http://gpu:8000"),
        ("https://example.com/vllm/v1", "https://example.com/vllm"),
        ("https://example.com/team/vllm/", "https://example.com/team/vllm"),
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("http://[::]:8000", "http://[::1]:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://me:secret@gpu:8000/v1", "http://me:secret@gpu:8000"),
        ("unix:///run/vllm.sock", "unix:///run/vllm.sock"),
        ("/run/vllm.sock", "unix:///run/vllm.sock"),
        ("http+unix://%2Frun%2Fvllm.sock", "unix:///run/vllm.sock"),
    ],
)
def test_a_pasted_address_is_taken_as_meant(pasted: str, meant: str) -> None:
    assert load_settings({"vllm_url": pasted}).vllm_url == meant


@pytest.mark.parametrize(
    "pasted",
    [
        "ftp://gpu",
        "http://",
        "http://[::1",
        "http://gpu:99999",
        "http://gpu:port",
        "http://two words:8000",
        "unix://run",
    ],
)
def test_an_address_that_can_mean_nothing_is_refused_with_the_right_form(pasted: str) -> None:
    with pytest.raises(CWMError, match=r"CWM-1003: the setting CWM_VLLM_URL can't work: .* write it as ") as refused:
        load_settings({"vllm_url": pasted})
    assert "\n" not in refused.value.message


def test_a_pasted_key_fits_into_a_header() -> None:
    assert load_settings({"vllm_api_key": "Bearer sk-1\n"}).vllm_api_key == "sk-1"
    with pytest.raises(CWMError, match="CWM_VLLM_API_KEY"):
        load_settings({"vllm_api_key": "sk-…"})


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])
def test_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "10.0.0.1", "gpu", "127.0.0.1.example.com", ""])
def test_another_machine_is_not(host: str) -> None:
    assert not is_loopback(host)
