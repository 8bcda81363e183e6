"""What befalls the engine from outside: a Redis that is killed or silent, a disk that is full, read-only or slow, and
chunks whose bytes change. One fault at a time, for a few seconds, with fair weather between them."""

import asyncio
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from tests.support.powercut import compiler
from tests.support.redis_server import RedisServer
from tests.support.slow_disk import SlowDisk

GRACE_S: Final = 20.0
"""After a fault has ended, until the engine has noticed it."""
SLOW: Final = 2e6
"""Bytes a second of the slow disk: a chunk takes more than a second."""
DISK_MIB: Final = 384
_BAD_S: Final = (0.5, 5.0)
_FAIR_S: Final = (1.0, 4.0)
_DAMAGE: Final = 1 << 16
"""Bytes that change in the middle of a chunk."""


@dataclass(slots=True)
class Places:
    """Where faults can be made. None: not on this machine, which is said by name."""

    chunks: Path
    redis: RedisServer | None = None
    mount: Path | None = None
    """The file system of the chunks, which has nothing else on it."""
    slow: SlowDisk | None = None
    missing: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, str]:
        """Return the environment in which an engine meets the faults."""
        found = {"CWM_DISK_PATH": str(self.chunks)} if self.mount else {}
        if self.redis is not None:
            found["CWM_REDIS_URL"] = self.redis.url
        return found | ({} if self.slow is None else self.slow.environment())


@contextmanager
def small_disk(at: Path) -> Iterator[Path | None]:
    """A file system of its own at the folder, or None where this user may not mount one."""
    options = ("-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs")
    mounted = subprocess.run(["mount", *options, str(at)], capture_output=True).returncode == 0
    try:
        yield at if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(at)], check=True)


def slow_disk(folder: Path, chunks: Path) -> SlowDisk | None:
    """Return a disk that can be slowed, or None without a C compiler."""
    return None if compiler() is None else SlowDisk(folder, chunks)


class Weather:
    """Of one run. `damaged` are the hashes of the chunks whose bytes were changed on the disk."""

    def __init__(self, places: Places, dice: Random) -> None:
        self._places = places
        self._dice = dice
        self._is_bad = False
        self._ended_at = -float("inf")
        self.is_over = False
        """Set by whoever wants no more faults. `blow` then returns within seconds."""
        self.damaged: set[str] = set()
        self.count: Counter[str] = Counter()

    def was_bad_since(self, since: float) -> bool:
        """Return whether there was a fault, or one had just ended, at any time from `since` on (time.monotonic)."""
        return self._is_bad or self._ended_at + GRACE_S > since

    async def blow(self, until: float) -> None:
        """Make one fault after the other. None is left at the end."""
        kinds = self._kinds()
        while time.monotonic() < until and kinds and not self.is_over:
            name = self._dice.choice(sorted(kinds))
            begin, end = kinds[name]
            self._is_bad = True
            try:
                if await asyncio.to_thread(begin):
                    self.count[name] += 1
                    await asyncio.sleep(self._dice.uniform(*_BAD_S))
            finally:
                await asyncio.to_thread(end)
                self._ended_at, self._is_bad = time.monotonic(), False
            await asyncio.sleep(self._dice.uniform(*_FAIR_S))

    def _kinds(self) -> Mapping[str, tuple[Callable[[], bool], Callable[[], None]]]:
        kinds: dict[str, tuple[Callable[[], bool], Callable[[], None]]] = {
            "damaged chunk": (self._damage, lambda: None)
        }
        if (redis := self._places.redis) is not None:
            kinds["redis killed"] = (_done(redis.kill), redis.start)
            kinds["redis silent"] = (_done(redis.pause), redis.resume)
        if self._places.mount is not None:
            kinds["disk full"] = (self._fill, self._ballast().unlink)
            kinds["disk read-only"] = (lambda: self._remount("ro"), self._require_writable)
        if (slow := self._places.slow) is not None:
            kinds["disk slow"] = (_done(lambda: slow.slow_to(SLOW)), lambda: slow.slow_to(0))
        return kinds

    def _damage(self) -> bool:
        """Change bytes in the middle of one chunk."""
        found = sorted(self._places.chunks.glob("*.data"))
        if not found:
            return False
        path = self._dice.choice(found)
        self.damaged.add(path.name)
        try:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 4)
                file.write(self._dice.randbytes(_DAMAGE))
        except OSError:  # it was deleted meanwhile
            return False
        return True

    def _ballast(self) -> Path:
        assert self._places.mount is not None
        return self._places.mount / "ballast"

    def _fill(self) -> bool:
        size = os.statvfs(self._ballast().parent)
        with self._ballast().open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, (size.f_bavail - 8) * size.f_frsize))
            except OSError:  # somebody was quicker, so it is full
                return True
        return True

    def _require_writable(self) -> None:
        if not self._remount("rw"):
            raise RuntimeError(f"{self._places.mount} stays read-only")

    def _remount(self, how: str) -> bool:
        """Return False while files are open for writing, as the kernel then refuses."""
        command = ["mount", "-o", f"remount,{how}", str(self._places.mount)]
        return subprocess.run(command, capture_output=True).returncode == 0


def _done(act: Callable[[], None]) -> Callable[[], bool]:
    def begin() -> bool:
        act()
        return True

    return begin
