"""What a power cut leaves of a folder: a kill -9 keeps the page cache, so it never misses an fsync; this does.

`powercut.c` is preloaded into whatever writes below the root and keeps an image of what was fsynced; `cut` turns the
root into what would have come back with the power.

Modelled: a file's content is durable up to its last fsync or fdatasync; a folder's entries (creations, renames,
unlinks) only up to the last fsync of the folder itself, and each folder's entry only up to that of its parent; this
holds for every process with the shim, SQLite's and Redis' own files included. Without dice nothing else survives: a
name that is durable with a content that is not is an empty file. With dice, each entry that changed since and each
4,096 bytes of a file are the old ones or the new ones by chance, in any order, as POSIX allows; ext4 and xfs keep the
order of most metadata and are kinder than this.

Not modelled: disks that lie about a flush, tearing below 4,096 bytes, modes and times, links, sockets, a folder's own
lock files' locks (those go with the processes), syncfs and sync (nothing here calls them).
"""

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

_SOURCE: Final = Path(__file__).with_suffix(".c")
_BLOCK: Final = 4096
_IDENTITY_BYTES: Final = 300


class Entry(NamedTuple):
    """A folder's entry. `kind` is "d" or "f"."""

    kind: str
    identity: str


Entries = dict[str, Entry]


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """Compiles the shim into `folder`. Raises: RuntimeError without a C compiler, CalledProcessError."""
    tool = compiler()
    if tool is None:
        raise RuntimeError("no C compiler (cc, gcc): power cuts can't be modelled; install one")
    library = folder / "powercut.so"
    subprocess.run(
        [tool, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", library, _SOURCE, "-ldl"], check=True
    )
    return library


@dataclass(frozen=True, slots=True)
class PowerCut:
    """`root` is what the power is cut of; `image`, elsewhere, belongs to the shim."""

    library: Path
    root: Path
    image: Path
    strict: frozenset[str] = frozenset()
    """Names of folders in the root for which no dice are thrown: nothing is left there that was not durable."""

    def environment(self) -> dict[str, str]:
        """For the processes that write below the root."""
        return {
            "LD_PRELOAD": str(self.library),
            "CWM_POWERCUT_ROOT": str(self.root),
            "CWM_POWERCUT_IMAGE": str(self.image),
        }

    def begin(self) -> None:
        """What stands below the root is durable; this process and those that it starts are watched from now on.

        It must have been started with the shim preloaded.
        """
        if os.environ.get("LD_PRELOAD") != str(self.library):
            raise RuntimeError("this process runs without the shim: no fsync of it would be seen")
        self.image.mkdir(exist_ok=True)
        os.environ.update(self.environment())
        self.settle()

    def settle(self) -> None:
        """What stands below the root now is durable."""
        for stale in self.image.iterdir():
            stale.unlink()
        for path in (self.root, *self.root.rglob("*")):
            if _is_kept(path):
                _sync(path)

    def cut(self, dice: Random | None = None) -> None:
        """Leaves below the root what a power cut would, durable. Every process that writes there must be gone."""
        after = self.root.with_name(f"{self.root.name}.after")
        after.mkdir()
        identify = _Identify(self.library)
        standing = {identify(path): path for path in self.root.rglob("*") if _is_kept(path)}
        standing["root"] = self.root
        _Cut(self.image, standing, identify, dice, self.strict).folder("root", after)
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in after.iterdir():
            path.rename(self.root / path.name)
        after.rmdir()
        self.settle()


def cut_after(folder: Path, work: str, *, seed: int | None = None) -> Path:
    """The root after Python code, for which it is `root`, has run in a process of its own and the power was cut.

    `seed`: for a cut with dice. Raises: CalledProcessError if the code fails.
    """
    power = PowerCut(build(folder), (folder / "root").resolve(), (folder / "image").resolve())
    power.root.mkdir()
    script = f"""
from pathlib import Path
from random import Random
from tests.support.powercut import PowerCut

root = Path({str(power.root)!r})
power = PowerCut(Path({str(power.library)!r}), root, Path({str(power.image)!r}))
power.begin()
{work}
power.cut({None if seed is None else f"Random({seed})"})
"""
    environment = os.environ | {"LD_PRELOAD": str(power.library)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=Path(__file__).parents[2])
    return power.root


class _Identify:
    """A path's identity as the shim tells it."""

    def __init__(self, library: Path) -> None:
        self._ask = ctypes.CDLL(str(library), use_errno=True).powercut_identity
        self._ask.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)

    def __call__(self, path: Path) -> str:
        answer = ctypes.create_string_buffer(_IDENTITY_BYTES)
        if self._ask(_HERE, os.fsencode(path), answer) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        return answer.value.decode()


_HERE: Final = -100
"""AT_FDCWD."""


@dataclass(frozen=True, slots=True)
class _Cut:
    image: Path
    standing: dict[str, Path]
    """What is there now, by identity."""
    identify: _Identify
    dice: Random | None
    strict: frozenset[str] = frozenset()

    def folder(self, identity: str, target: Path) -> None:
        """Fills `target` with what is left of the folder."""
        durable, present = self._durable_entries(identity), self._present_entries(identity)
        for name in sorted({*durable, *present}):
            entry = self._one_of(durable.get(name), present.get(name))
            if entry is None:
                continue
            path = target / name
            if entry.kind == "d":
                path.mkdir(mode=0o700)
                inner = replace(self, dice=None) if name in self.strict else self
                inner.folder(entry.identity, path)
            else:
                path.write_bytes(self._content(entry.identity))
                path.chmod(0o600)

    def _one_of(self, durable: Entry | None, present: Entry | None) -> Entry | None:
        return durable if self.dice is None else self.dice.choice((durable, present))

    def _durable_entries(self, identity: str) -> Entries:
        try:
            records = (self.image / f"{identity}.dir").read_bytes().split(b"\0")[:-1]
        except FileNotFoundError:
            return {}
        parts = [os.fsdecode(record).split(" ", 2) for record in records]
        return {name: Entry(kind, inode) for kind, inode, name in parts}

    def _present_entries(self, identity: str) -> Entries:
        folder = self.standing.get(identity)
        if folder is None or not folder.is_dir():
            return {}
        kept = [path for path in folder.iterdir() if _is_kept(path)]
        return {path.name: Entry("d" if path.is_dir() else "f", self.identify(path)) for path in kept}

    def _content(self, identity: str) -> bytes:
        try:
            durable = (self.image / f"{identity}.file").read_bytes()
        except FileNotFoundError:
            durable = b""
        standing = self.standing.get(identity)
        if self.dice is None or standing is None:
            return durable
        present = standing.read_bytes()
        if present == durable:
            return durable
        length = len(self.dice.choice((durable, present)))
        blocks = []
        for at in range(0, length, _BLOCK):
            block = self.dice.choice((durable, present))[at : at + _BLOCK]
            blocks.append(block.ljust(min(_BLOCK, length - at), b"\0")[: length - at])
        return b"".join(blocks)


def _is_kept(path: Path) -> bool:
    return not path.is_symlink() and (path.is_file() or path.is_dir())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
