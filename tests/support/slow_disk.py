"""A disk of a chosen speed: `slow_disk.c` is preloaded into a process and slows its reads below a folder."""

import subprocess
from pathlib import Path
from typing import Final

from tests.support.powercut import compiler

_SOURCE: Final = Path(__file__).with_suffix(".c")


class SlowDisk:
    """Slows the reads below `root` in processes that have the `environment`. It begins as fast as the disk is."""

    def __init__(self, folder: Path, root: Path) -> None:
        """Compile the shim into `folder`, which exists. Raises: RuntimeError without a C compiler."""
        tool = compiler()
        if tool is None:
            raise RuntimeError("no C compiler (cc, gcc): a slow disk can't be made; install one")
        self._library, self._rate, self._root = folder / "slow_disk.so", folder / "bytes_per_second", root
        options = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
        subprocess.run([tool, *options, "-o", self._library, _SOURCE, "-ldl"], check=True)

    def environment(self) -> dict[str, str]:
        """Return what a process needs in its environment, from its start."""
        return {
            "LD_PRELOAD": str(self._library),
            "CWM_SLOW_ROOT": str(self._root.resolve()),
            "CWM_SLOW_RATE": str(self._rate),
        }

    def slow_to(self, bytes_per_second: float) -> None:
        """Set the speed of reads that begin from now on, also in processes that run. 0 slows nothing."""
        self._rate.write_text(str(bytes_per_second))
