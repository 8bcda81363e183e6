"""The part of `benchmarks.llama_cpp` that runs in llama.cpp's own environment: it imports nothing else but the standard
library.

    python llama_cpp_peer.py TASK.json > SAMPLES.json

The task names the model, the prompts and the folder for the state files. For each prompt: compute it from nothing, then
repeat its last tokens on the cache (a prefix hit), save the slot to a file and to memory, and restore it from both. A
restored slot computes the same last tokens as the hit. llama.cpp's own functions save and restore, those behind the
server's /slots and behind `Llama.save_state`.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as llama  # type: ignore[import-not-found]

CONTINUED = 16
"""Tokens that are generated greedily to compare a restored slot with one that was never interrupted."""
SLOT = 0


class Peer:
    """One model and one context."""

    def __init__(self, model: Path, threads: int, context: int, number_type: int) -> None:
        model_options, options = llama.llama_model_default_params(), llama.llama_context_default_params()
        options.n_ctx = context
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = number_type
        self._model = llama.llama_model_load_from_file(os.fsencode(model), model_options)
        self._context = llama.llama_init_from_model(self._model, options)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = options.n_batch
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        """Forget everything."""
        llama.llama_memory_clear(self._memory, True)

    def keep(self, tokens: int) -> None:
        """Forget what comes after the first `tokens` tokens of the slot."""
        if not llama.llama_memory_seq_rm(self._memory, SLOT, tokens, -1):
            raise RuntimeError("llama.cpp could not cut the slot")

    def compute(self, tokens: list[int]) -> list[float]:
        """Compute the tokens behind those of the slot and return the logits of the last one."""
        for start in range(0, len(tokens), self._batch):
            part = tokens[start : start + self._batch]
            ids = (llama.llama_token * len(part))(*part)  # the batch only points to them
            if (failure := llama.llama_decode(self._context, llama.llama_batch_get_one(ids, len(part)))) != 0:
                raise RuntimeError(f"llama_decode returned {failure}")
        return llama.llama_get_logits_ith(self._context, -1)[: self._vocabulary]

    def continued(self, logits: list[float]) -> list[int]:
        """Return the tokens that follow greedily."""
        tokens = []
        for _ in range(CONTINUED):
            tokens.append(max(range(len(logits)), key=logits.__getitem__))
            logits = self.compute(tokens[-1:])
        return tokens

    def save(self, path: Path, tokens: list[int]) -> int:
        """Save the slot to a file and return its size, as /slots?action=save does."""
        ids = (llama.llama_token * len(tokens))(*tokens)
        return int(llama.llama_state_seq_save_file(self._context, os.fsencode(path), SLOT, ids, len(tokens)))

    def load(self, path: Path, tokens: int) -> bool:
        """Restore the slot from a file, as /slots?action=restore does. Return whether llama.cpp reports success."""
        ids, count = (llama.llama_token * tokens)(), ctypes.c_size_t()
        args = (self._context, os.fsencode(path), SLOT, ids, tokens, ctypes.byref(count))
        return bool(llama.llama_state_seq_load_file(*args)) and count.value == tokens

    def copy_out(self) -> Any:
        """Return the slot's state in memory."""
        size = llama.llama_state_seq_get_size(self._context, SLOT)
        state = (ctypes.c_uint8 * size)()
        if llama.llama_state_seq_get_data(self._context, state, size, SLOT) != size:
            raise RuntimeError("llama.cpp could not copy the slot")
        return state

    def copy_in(self, state: Any) -> None:
        """Restore the slot from memory."""
        if not llama.llama_state_seq_set_data(self._context, state, len(state), SLOT):
            raise RuntimeError("llama.cpp could not restore the slot")


def measure(peer: Peer, prompt: list[int], kept: int, path: Path, again: int) -> dict[str, Any]:
    """Return the samples of one prompt, of which a hit or a restore brings the first `kept` tokens."""
    samples: dict[str, Any] = {"hit_s": [], "restored_memory_s": [], "restored_file_s": []}
    peer.clear()
    samples["cold_s"], cold = timed(lambda: peer.compute(prompt))
    expected = peer.continued(cold)
    for _ in range(again):
        peer.keep(kept)
        seconds, hit = timed(lambda: peer.compute(prompt[kept:]))
        samples["hit_s"].append(seconds)
    samples["save_s"], samples["file_bytes"] = timed(lambda: peer.save(path, prompt))
    samples["sync_s"], _ = timed(lambda: synced(path))
    samples["copy_out_s"], state = timed(peer.copy_out)

    def restored(restore: Any) -> list[float]:
        restore()
        peer.keep(kept)
        return peer.compute(prompt[kept:])

    for _ in range(again):
        peer.clear()
        seconds, logits = timed(lambda: restored(lambda: peer.copy_in(state)))
        samples["restored_memory_s"].append(seconds)
    samples["equal_memory"] = logits == hit and peer.continued(logits) == expected
    for _ in range(again):
        peer.clear()
        seconds, logits = timed(lambda: restored(lambda: peer.load(path, len(prompt))))
        samples["restored_file_s"].append(seconds)
    samples["equal_file"] = logits == hit and peer.continued(logits) == expected
    peer.clear()
    dropped(path)
    samples["restored_disk_s"], logits = timed(lambda: restored(lambda: peer.load(path, len(prompt))))
    flip(path)
    peer.clear()
    samples["flipped_bit_is_refused"] = not peer.load(path, len(prompt))
    path.unlink()
    return samples


def timed(call: Any) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def synced(path: Path) -> None:
    """Write a file that is in the page cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def dropped(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))


def calls_fsync() -> bool:
    """Return whether llama.cpp's library refers to a function that waits for the disk."""
    library = Path(llama.__file__).parent / "lib" / "libllama.so"
    return any(name in library.read_bytes() for name in (b"fsync", b"fdatasync", b"msync"))


def main() -> None:
    """Carry out the task and print its samples."""
    task = json.loads(Path(sys.argv[1]).read_text())
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    peer = Peer(Path(task["model"]), task["threads"], task["context"], task["number_type"])
    peer.compute(task["prompts"][0][:64])  # pays for lazy initialisation
    path = Path(task["folder"]) / "slot.state"
    samples = [measure(peer, prompt, task["kept"], path, task["again"]) for prompt in task["prompts"]]
    print(json.dumps({"version": llama.__version__, "calls_fsync": calls_fsync(), "samples": samples}))


if __name__ == "__main__":
    main()
