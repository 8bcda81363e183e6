"""lock.py: one engine for each home, however the last one ended."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.store.lock import HomeLock

HOLD = """
import os, sys
from pathlib import Path
from cwm_connector.store.lock import HomeLock
lock = HomeLock(Path(sys.argv[1]))
lock.acquire()
if "fork" not in sys.argv or os.fork() == 0:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the home's lock, and the id of its fork, or of itself."""
    command = [sys.executable, "-c", HOLD, str(home), *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_a_second_engine_is_refused_with_the_holder_s_process_and_the_first_goes_on(folder: Path) -> None:
    with holder(folder) as (first, _):
        with pytest.raises(CWMError) as refusal:
            HomeLock(folder).acquire()
        assert refusal.value.code is Code.STATE
        assert refusal.value.context == {"pid": first.pid}
        assert str(first.pid) in refusal.value.message
        assert "CWM_HOME" in refusal.value.message
        assert first.poll() is None
        assert (folder / "engine.lock").read_text() == str(first.pid)


def test_a_killed_engine_s_lock_is_free_at_once(folder: Path) -> None:
    with holder(folder) as (first, _):
        first.kill()
        first.wait()
        lock = HomeLock(folder)
        lock.acquire()
        assert (folder / "engine.lock").read_text() == str(os.getpid())
        lock.release()


def test_a_forked_child_does_not_keep_a_killed_engine_s_lock(folder: Path) -> None:
    with holder(folder, "fork") as (first, child):
        try:
            first.kill()
            first.wait()
            os.kill(child, 0)  # it lives
            lock = HomeLock(folder)
            lock.acquire()
            lock.release()
        finally:
            os.kill(child, 9)


def test_the_lock_file_is_private_and_its_lock_can_be_released_twice(folder: Path) -> None:
    (folder / "engine.lock").touch(0o644)
    first, second = HomeLock(folder), HomeLock(folder)
    first.acquire()
    assert stat.S_IMODE((folder / "engine.lock").stat().st_mode) == 0o600
    with pytest.raises(CWMError):
        second.acquire()
    second.release()
    with pytest.raises(CWMError):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_a_missing_home_and_a_symlinked_lock_are_refused(folder: Path) -> None:
    (folder / "engine.lock").symlink_to(folder / "elsewhere")
    for home in (folder / "missing", folder):
        with pytest.raises(CWMError) as refusal:
            HomeLock(home).acquire()
        assert refusal.value.code is Code.WRITE_FAILED
    assert not (folder / "elsewhere").exists()
