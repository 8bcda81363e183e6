"""connector.py: nothing of ours can leave a hook, and every hook that we override still exists in vLLM."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorTransferResults,
    SupportsHMA,
)

from cwm_connector.connector import CWMConnector
from cwm_connector.step.jobs import StepJobs

CONSTRUCTION = {"__init__", "register_kv_caches", "get_handshake_metadata", "set_xfer_handshake_metadata_pp_aware"}
HOOKS = [
    name
    for name, member in vars(CWMConnector).items()
    if inspect.isfunction(member) and name not in CONSTRUCTION and not name.startswith("_abc")
]
SAFE_ANSWERS: dict[str, Any] = {
    "get_num_new_matched_tokens": (0, False),
    "get_finished": (None, None),
    "get_block_ids_with_load_errors": set(),
    "get_external_cache_hit_sources": {},
    "get_transfer_results": KVConnectorTransferResults(),
    "request_finished": (False, None),
    "request_finished_all_groups": (False, None),
    "has_pending_block_frees": False,
    "has_pending_push_work": False,
    "reset_cache": True,
}


class Broken:
    """Raises whatever is done with it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"broken on purpose: {name}")


def broken_connector() -> CWMConnector:
    connector = CWMConnector.__new__(CWMConnector)
    connector._service = connector._worker = Broken()  # type: ignore[assignment]
    connector._connector_metadata = StepJobs()
    return connector


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_whose_inside_fails_answers_what_lets_vllm_serve_on(name: str) -> None:
    hook = getattr(broken_connector(), name)
    parameters = [p for p in inspect.signature(hook).parameters.values() if p.kind is not p.VAR_KEYWORD]
    answer = hook(*[SimpleNamespace(kv_connector_worker_meta=None) for _ in parameters])
    if name == "build_connector_meta":
        assert isinstance(answer, StepJobs) and not answer.jobs
    else:
        assert answer == SAFE_ANSWERS.get(name)


NEWER = {"unregister_kv_caches", "restore_kv_caches"}
"""Hooks of vLLM 0.33, which can't be run here."""


@pytest.mark.parametrize("name", [*HOOKS, "set_xfer_handshake_metadata_pp_aware", "register_kv_caches"])
def test_every_method_is_a_hook_that_vllm_has(name: str) -> None:
    assert hasattr(KVConnectorBase_V1, name) or hasattr(SupportsHMA, name) or name in NEWER


def test_vllm_names_the_constructor_s_arguments_as_we_do() -> None:
    assert list(inspect.signature(CWMConnector.__init__).parameters) == list(
        inspect.signature(KVConnectorBase_V1.__init__).parameters
    )


def test_a_hook_s_failure_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    broken_connector().on_new_request(SimpleNamespace())
    assert "on_new_request failed" in caplog.text and "broken on purpose" in caplog.text
