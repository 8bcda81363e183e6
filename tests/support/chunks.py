"""The disk tier as it lies in the folder: for tests that damage it or count its bytes."""

from pathlib import Path


def stored_bytes(home: Path) -> int:
    """Length of all files of the disk tier together."""
    return sum(path.stat().st_size for path in (home / "chunks").rglob("*") if path.is_file())


def chunk_files(home: Path, chunk_hash: str) -> list[Path]:
    """The files of one chunk, one for each rank, found by the hash that window_status shows.

    Raises: FileNotFoundError where the tier has none.
    """
    found = [path for path in (home / "chunks").rglob("*") if path.is_file() and chunk_hash in path.name]
    if not found:
        raise FileNotFoundError(f"no file of the chunk {chunk_hash}")
    return found


def flip_a_byte(file: Path, at: int) -> None:
    """Changes one byte in place; `at` counts from the end where it is negative."""
    with file.open("r+b") as content:
        content.seek(at, 0 if at >= 0 else 2)
        before = content.read(1)
        content.seek(-1, 1)
        content.write(bytes([before[0] ^ 0x01]))
