"""The digests of the adapters that requests use, taken on a thread of their own.

An adapter's name and path say nothing about its weights. Its digest is taken when the adapter is loaded or first used,
and again when one of its files has changed, which every request has checked. A request is matched once its check is
over, and a session is frozen under the digest that its requests had.

vLLM's own hashes hold the name and the path alone. Once files have changed while vLLM served them, nobody can tell
which of the two a block of its cache was computed with. Such an adapter has no digest until it was loaded again and
vLLM has dropped its cache.

Any thread may call. Nothing here blocks its caller.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cwm_connector import compat
from cwm_connector.core.errors import Code, CWMError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

ATTEMPTS: Final = 3
"""Files that change while they are read are read again."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, size, inode and time of each file."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterUse:
    """One request's use of an adapter."""

    lora_request: "LoRARequest"
    checked: "Future[str]"
    """The digest, or CWMError with `Code.STATE` for files that can't be read or that have changed."""

    @property
    def place(self) -> tuple[str, str]:
        """Return the name and the path, which vLLM's own hashes hold."""
        return self.lora_request.lora_name, self.lora_request.lora_path

    @property
    def digest(self) -> str | None:
        """Return the digest. None while it is being taken, and if there is none."""
        return self.checked.result() if self.checked.done() and self.checked.exception() is None else None


@dataclass(slots=True)
class _Known:
    """The files of one adapter when they were last read."""

    stamp: Stamp
    digest: str
    lora_request: "LoRARequest"
    is_mixed: bool = False
    """They have changed while vLLM served them."""
    is_loaded: bool = True
    """They were loaded since."""


class Adapters:
    """One for each engine."""

    def __init__(self, options: str = "", notify: Callable[[], None] = lambda: None) -> None:
        """`options`: those of the engine that decide what an adapter computes. `notify` is called after each check."""
        self._options = options
        self._notify = notify
        self._known: dict[tuple[str, str], _Known] = {}
        """By name and path. Only our thread changes it."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cwm-adapters")

    def use(self, lora_request: "LoRARequest") -> AdapterUse:
        """Begin to check the adapter's files."""
        return self._begin(lora_request, loaded=False)

    def loaded(self, lora_request: "LoRARequest") -> None:
        """Take down that vLLM has just loaded the adapter's files, perhaps for the second time."""
        self._begin(lora_request, loaded=True)

    def cache_dropped(self) -> None:
        """Take down that vLLM has dropped its prefix cache."""
        self._thread.submit(self._forget_mixed)

    def serving(self, digest: str) -> "LoRARequest | None":
        """Return how to ask for the adapter with this digest. None if no request has used it."""
        fitting = (each for each in tuple(self._known.values()) if each.digest == digest and not each.is_mixed)
        return next((each.lora_request for each in fitting), None)

    def close(self) -> None:
        """Stop the thread without waiting for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- our thread ---

    def _begin(self, lora_request: "LoRARequest", *, loaded: bool) -> AdapterUse:
        checked = self._thread.submit(self._check, lora_request, loaded)
        checked.add_done_callback(lambda _: self._notify())
        return AdapterUse(lora_request, checked)

    def _check(self, lora_request: "LoRARequest", loaded: bool) -> str:
        """Return the digest. Raises: `Code.STATE`."""
        place = lora_request.lora_name, lora_request.lora_path
        try:
            stamp, digest = self._read(place)
        except (OSError, ValueError) as problem:
            raise CWMError(
                Code.STATE,
                f"the files of adapter {place[0]!r} can't be read ({type(problem).__name__}); put them back, and "
                "continue the session",
            ) from None
        before = self._known.get(place)
        changed = before is not None and before.digest != digest
        self._known[place] = known = _Known(
            stamp=stamp,
            digest=digest,
            lora_request=lora_request,
            is_mixed=changed or (before is not None and before.is_mixed),
            is_loaded=loaded or (not changed and (before is None or before.is_loaded)),
        )
        if known.is_mixed:
            raise CWMError(
                Code.STATE,
                f"the files of adapter {place[0]!r} changed while vLLM served it; load it under another name, or load "
                "it again and reset vLLM's prefix cache (POST /reset_prefix_cache?reset_external=true)",
            )
        return digest

    def _read(self, place: tuple[str, str]) -> tuple[Stamp, str]:
        files = _files(compat.adapter_folder(place[1]))
        known = self._known.get(place)
        for _ in range(ATTEMPTS):
            stamp = _stamp(files)
            if known is not None and known.stamp == stamp:
                return stamp, known.digest
            digest = self._digest(files)
            if _stamp(files) == stamp:
                return stamp, digest
        raise OSError("the files are being written")

    def _digest(self, files: list[Path]) -> str:
        total = hashlib.sha256(f"cwm-adapter-1:{self._options}\n".encode())
        for path in files:
            with path.open("rb") as content:
                total.update(f"{path.name}:{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    def _forget_mixed(self) -> None:
        for known in self._known.values():
            known.is_mixed = known.is_mixed and not known.is_loaded


def _files(folder: Path) -> list[Path]:
    """Return the files that decide what the adapter computes. Raises: OSError if there are none."""
    wanted = [
        path
        for path in folder.iterdir()
        if path.name == compat.ADAPTER_CONFIG or path.name.endswith(compat.ADAPTER_SUFFIXES)
    ]
    if not wanted:
        raise FileNotFoundError(folder)
    return sorted(wanted)


def _stamp(files: list[Path]) -> Stamp:
    stats = [(path.name, path.stat()) for path in files]
    return tuple((name, each.st_size, each.st_ino, each.st_mtime_ns) for name, each in stats)
