"""weights_digest.py: windows are bound to what the weights are, not to what they are called."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.weights_digest import files_digest


def test_one_changed_byte_changes_the_digest(tmp_path: Path) -> None:
    weights, cache = tmp_path / "model.safetensors", tmp_path / "cache.json"
    weights.write_bytes(b"a" * 1000)
    before = files_digest([weights], cache)
    weights.write_bytes(b"a" * 999 + b"b")
    assert files_digest([weights], cache) != before


def test_the_same_bytes_elsewhere_have_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        digests.add(files_digest([tmp_path / name / "model.safetensors"], tmp_path / f"{name}.json"))
    assert len(digests) == 1


def test_files_are_read_once_and_remembered(tmp_path: Path) -> None:
    weights, cache = tmp_path / "model.safetensors", tmp_path / "cache.json"
    weights.write_bytes(b"weights")
    before = files_digest([weights], cache)
    weights.chmod(0o000)
    assert files_digest([weights], cache) == before


def test_a_damaged_memory_is_made_anew(tmp_path: Path) -> None:
    weights, cache = tmp_path / "model.safetensors", tmp_path / "cache.json"
    weights.write_bytes(b"weights")
    before = files_digest([weights], cache)
    cache.write_text("{")
    assert files_digest([weights], cache) == before


def test_what_was_read_before_a_failed_start_is_remembered(tmp_path: Path) -> None:
    files, cache = [tmp_path / f"{name}.safetensors" for name in "abc"], tmp_path / "cache.json"
    for file in files[:2]:
        file.write_bytes(b"weights of " + file.name.encode())
    files[2].mkdir()
    with pytest.raises(OSError):
        files_digest(files, cache)
    assert len(json.loads(cache.read_text())) == 2
    files[2].rmdir()
    files[2].write_bytes(b"last")
    after = files_digest(files, cache)
    assert after == files_digest(files, tmp_path / "other.json")


def test_files_are_read_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    both, digest = threading.Barrier(2), hashlib.file_digest

    def together(*arguments: Any) -> Any:
        both.wait(20)
        return digest(*arguments)

    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file in files:
        file.write_bytes(file.name.encode())
    expected = files_digest(files, tmp_path / "one.json")
    monkeypatch.setattr("hashlib.file_digest", together)
    assert files_digest(files, tmp_path / "two.json") == expected


def test_files_that_are_not_the_model_s_any_more_are_forgotten(tmp_path: Path) -> None:
    old, new, cache = tmp_path / "old.bin", tmp_path / "new.bin", tmp_path / "cache.json"
    for file in (old, new):
        file.write_bytes(b"weights")
    files_digest([old], cache)
    files_digest([new], cache)
    assert [str(new) in stamp for stamp in json.loads(cache.read_text())] == [True]
