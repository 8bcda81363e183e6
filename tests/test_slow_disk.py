"""slow_disk.py: reads below one folder take as long as on a disk of that speed, and no others."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.powercut import compiler
from tests.support.slow_disk import SlowDisk

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler (cc, gcc): a slow disk can't be made")

SIZE = 65_536
SCRIPT = """
import os, sys, time
for path, size in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    descriptor = os.open(path, os.O_RDONLY)
    began = time.perf_counter()
    content = os.read(descriptor, size)
    print(time.perf_counter() - began, content == bytes(range(256)) * (size // 256))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "slow").mkdir()
    for folder in ("slow", "."):
        (tmp_path / folder / "file").write_bytes(bytes(range(256)) * (SIZE // 256))
    return tmp_path / "slow" / "file"


def read(disk: SlowDisk, *reads: tuple[Path, int]) -> list[float]:
    """Read the beginnings of files in a process of its own. Return the seconds that each took."""
    arguments = [str(word) for pair in reads for word in pair]
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=disk.environment(), capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in told.stdout.splitlines()]
    assert all(same == "True" for _, same in lines) and len(lines) == len(reads)
    return [float(seconds) for seconds, _ in lines]


def test_only_long_reads_below_the_folder_are_slow(file: Path) -> None:
    disk = SlowDisk(file.parent.parent, file.parent)
    disk.slow_to(SIZE / 0.5)
    whole, half, short, outside = read(
        disk, (file, SIZE), (file, SIZE // 2), (file, 2048), (file.parents[1] / "file", SIZE)
    )
    assert whole >= 0.5 and 0.25 <= half < whole
    assert max(short, outside) < 0.25


def test_it_is_as_fast_as_the_disk_is_before_and_after(file: Path) -> None:
    disk = SlowDisk(file.parent.parent, file.parent)
    assert read(disk, (file, SIZE))[0] < 0.5
    disk.slow_to(SIZE)
    disk.slow_to(0)
    assert read(disk, (file, SIZE))[0] < 0.5


def test_reads_of_several_threads_share_the_disk(file: Path) -> None:
    disk = SlowDisk(file.parent.parent, file.parent)
    disk.slow_to(SIZE / 0.2)
    script = (
        "import os, sys, threading, time; began = time.perf_counter(); "
        "go = lambda: os.read(os.open(sys.argv[1], os.O_RDONLY), 65536); "
        "all_ = [threading.Thread(target=go) for _ in range(3)]; "
        "[each.start() for each in all_]; [each.join() for each in all_]; print(time.perf_counter() - began)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(file)], env=disk.environment(), capture_output=True, text=True, check=True
    )
    assert float(told.stdout) >= 0.6


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="install one"):
        SlowDisk(tmp_path, tmp_path)
