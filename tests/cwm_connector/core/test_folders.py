"""folders.py: a folder of the store is made for its user alone, and its state is told in words that lead on."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.folders import folder_state, free_space, private_folder
from cwm_connector.core.units import GIB


def test_a_new_folder_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "new", "CWM_HOME")
    assert folder.stat().st_mode & 0o777 == 0o700 and not list(folder.iterdir())


def test_a_folder_that_can_t_be_made_is_refused_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CWMError, match=r"CWM-1003.*CWM_DISK_PATH.*choose another folder"):
        private_folder(tmp_path / "file" / "chunks", "CWM_DISK_PATH")


def test_a_folder_that_can_be_used_has_no_fault(tmp_path: Path) -> None:
    state = folder_state(tmp_path)
    assert state.fault is None and state.free_bytes > 0


def test_a_missing_folder_is_reported_as_unreadable(tmp_path: Path) -> None:
    assert "can't be read" in (folder_state(tmp_path / "gone").fault or "")


def test_a_folder_on_a_read_only_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY, f_bavail=9, f_blocks=9, f_bfree=9, f_frsize=1)
    )
    assert "correct its mount" in (folder_state(tmp_path).fault or "")


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert "is full; free some space" in (folder_state(tmp_path).fault or "")


def test_free_space_is_given_in_gibibytes() -> None:
    assert free_space(Path("/chunks"), 3 * GIB // 2) == "1.5 GiB free in /chunks"
