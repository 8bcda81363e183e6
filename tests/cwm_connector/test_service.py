"""service.py: an engine that could keep no window does not start, and says why in one line."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cwm_connector.control.thread import ControlThread
from cwm_connector.core.errors import CWMError
from cwm_connector.service import EngineSide
from cwm_connector.settings import load_settings
from cwm_connector.store.lock import HomeLock
from tests.cwm_connector.test_compat import config, engine_config, full


def test_a_second_engine_on_a_store_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    settings = load_settings({"home": str(tmp_path)})
    first = HomeLock(tmp_path)
    first.acquire()
    try:
        with pytest.raises(CWMError, match=r"CWM-3001.*CWM_HOME of its own"):
            EngineSide(engine_config(), config(full()), settings)
        assert not settings.catalog_path.exists() and not (tmp_path / "store.id").exists()
    finally:
        first.release()


def test_an_unsupported_model_is_refused_before_the_store_is_locked(tmp_path: Path) -> None:
    with pytest.raises(CWMError, match="CWM-3001"):
        EngineSide(engine_config(data_parallel_size=2), config(full()), load_settings({"home": str(tmp_path)}))
    HomeLock(tmp_path).acquire()


def test_a_folder_that_can_t_be_made_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings({"home": str(tmp_path / "home"), "disk_path": str(tmp_path / "file" / "chunks")})
    with pytest.raises(CWMError, match=r"CWM-1003.*CWM_DISK_PATH"):
        EngineSide(engine_config(), config(full()), settings)


def test_an_engine_that_vllm_starts_again_after_a_sleep_keeps_its_socket(tmp_path: Path) -> None:
    """vLLM 0.33 hands over the workers' facts again after each sleep. It can't be run here, so this does the same."""
    vllm_config = engine_config(world_size=1)
    vllm_config.model_config = SimpleNamespace(served_model_name="small")
    side = EngineSide(vllm_config, config(full()), load_settings({"home": str(tmp_path)}))
    try:
        side._control = running = ControlThread()
        side.start([])
        assert side._control is running
    finally:
        side._control = None
        side.stop()
