"""service.py: an engine that could keep no window does not start, and says why in one line."""

from pathlib import Path

import pytest

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
