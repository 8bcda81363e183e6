"""weights_digest.py: windows are bound to what the weights are, not to what they are called."""

from pathlib import Path

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
