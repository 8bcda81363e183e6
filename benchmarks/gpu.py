"""Measure CWM on a CUDA device: the time to the first token, freezes, and what they cost a request beside them.

    python -m benchmarks.gpu MODEL --output gpu.jsonl [--lengths 8192,32768,131000] [--phases …] [-- vLLM's options]

MODEL is a folder with a config. The weights are dummy ones, whose values change no time. Each row is written to the
output as soon as it is measured. The ceilings come from the same run. A thaw counts only if vLLM reports its tokens as
cached. Tokens and logprobs after each thaw are compared with vLLM's own prefix hit.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu_server import Answer, Server, prompt, with_connector, with_cwm
from cwm_connector.core.units import GIB
from cwm_connector.protocol.calls import CloneArgs, FreezeArgs, Op, ThawArgs
from tests.support.machine import describe

Row = dict[str, Any]

PHASES: Final = ("ceilings", "worker", "memory", "again", "beside", "disk", "offload")
AGAIN: Final = 5
TOKENS: Final = 24
"""Tokens that are compared after a thaw."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The lengths to measure, and the file for the rows."""

    model: str
    lengths: list[int]
    cpu_gb: float
    output: Path
    folder: Path
    options: list[str]
    reference: dict[int, Answer] = field(default_factory=dict)
    """An answer from vLLM's own prefix cache."""
    began: float = field(default_factory=time.monotonic)

    def write(self, row: Row) -> None:
        """Append a row to the output and print it."""
        text = json.dumps({"at": round(time.monotonic() - self.began, 1), **row})
        with self.output.open("a") as file:
            file.write(f"{text}\n")
        print(text, flush=True)

    def log(self, name: str) -> Path:
        """Return the path of a server's log, beside the output."""
        return self.output.with_name(f"{self.output.stem}-{name}.log")

    def carry_out(self, what: str, phase: Callable[[], Iterator[Row]]) -> None:
        """Write the rows of a phase. A failure is a row as well, and the next phase goes on."""
        try:
            for row in phase():
                self.write(row)
        except Exception:
            self.write({"failed": what, "why": traceback.format_exc()[-3000:]})


def window(length: int) -> str:
    """Return the name of the window of so many tokens."""
    return f"w{length}"


def memory(server: Server, plan: Plan) -> Iterator[Row]:
    """Measure cold requests, prefix hits, freezes, clones and thaws from CPU memory."""
    for length in plan.lengths:
        ids, session = prompt(length, length), f"s{length}"
        cold = server.complete(ids, 1, session_id=session)
        hits = [server.complete(ids, 1, session_id=session).seconds for _ in range(AGAIN)]
        plan.reference[length] = server.complete(ids, TOKENS, logprobs=True, session_id=session)
        hit = statistics.median(hits)
        yield {"tokens": length, "cold_s": round(cold.seconds, 3), "prefix_hit_s": round(hit, 4)}
        frozen, ms = server.call(Op.FREEZE, FreezeArgs(session_id=session, window_name=window(length)))
        size = frozen["total_size_bytes"]
        yield {
            "tokens": length,
            "capture_ms": frozen["capture_ms"],
            "capture_GBs": round(size / frozen["capture_ms"] / 1e6, 1),
            "freeze_ms": round(ms),
            "bytes": size,
        }
        _, clone_ms = server.call(
            Op.CLONE, CloneArgs(source_window=window(length), target_window=f"{window(length)}-clone")
        )
        yield {"tokens": length, "clone_ms": round(clone_ms, 2), **_thaws(server, plan, length, hit, size)}


def _thaws(server: Server, plan: Plan, length: int, hit: float, size: int) -> Row:
    ids = prompt(length, length)
    calls, requests, cached = [], [], []
    for turn in range(AGAIN):
        thaw = ThawArgs(window_name=window(length), new_session_id=f"t{length}-{turn}", prewarm=True)
        answer, ms = server.call(Op.THAW, thaw)
        calls.append(round(ms, 1))
        got = server.complete(ids, 1, cache_salt=answer["cache_salt"])
        requests.append(round(got.seconds, 4))
        cached.append(got.cached)
    answer, _ = server.call(Op.THAW, ThawArgs(window_name=window(length), new_session_id=f"t{length}-x"))
    thawed = statistics.median(requests)
    return {
        "thaw_ms": calls,
        "thawed_from_memory_s": thawed,
        "all_s": requests,
        "cached": cached,
        "by_tier": answer["restored_by_tier"],
        "load_GBs": round(size / max(thawed - hit, 1e-6) / 1e9, 1),
        **_compare(server, plan, length, answer["cache_salt"]),
    }


def _compare(server: Server, plan: Plan, length: int, salt: str) -> Row:
    """Return whether the tokens and logprobs after a thaw equal those of vLLM's own prefix hit."""
    answer = server.complete(prompt(length, length), TOKENS, logprobs=True, cache_salt=salt)
    expected = plan.reference[length]
    return {
        "tokens_equal": answer.token_ids == expected.token_ids,
        "logprobs_equal": answer.logprobs == expected.logprobs,
        "distinct_tokens": len(set(answer.token_ids)),
    }


def again(server: Server, plan: Plan) -> Iterator[Row]:
    """Measure a second freeze, after 200 more tokens."""
    length = plan.lengths[0]
    server.complete(prompt(length, length) + prompt(1234, 200), 1, session_id=f"s{length}")
    name = f"{window(length)}-longer"
    frozen, ms = server.call(Op.FREEZE, FreezeArgs(session_id=f"s{length}", window_name=name))
    yield {"second_freeze": length, "ms": round(ms, 1), "new_bytes": frozen["new_bytes"]}


def beside(server: Server, plan: Plan) -> Iterator[Row]:
    """Measure the gaps between a running request's tokens: alone, beside a freeze, and beside a thaw with its load."""
    length = plan.lengths[min(1, len(plan.lengths) - 1)]
    ids = prompt(77, length)
    server.complete(ids, 1, session_id="beside")

    def freeze() -> None:
        server.call(Op.FREEZE, FreezeArgs(session_id="beside", window_name="beside"))

    def thaw() -> None:
        answer, _ = server.call(Op.THAW, ThawArgs(window_name="beside", new_session_id="beside-thawed"))
        server.complete(ids, 1, cache_salt=answer["cache_salt"])

    for what, act in (("nothing", lambda: None), ("freeze", freeze), ("thaw and load", thaw)):
        yield {"beside": what, "tokens": length, **_gaps(server, act)}


def _gaps(server: Server, act: Callable[[], object]) -> Row:
    """Return the gaps during the act and those of the whole answer, in milliseconds."""
    arrivals: list[float] = []
    running = threading.Thread(target=lambda: arrivals.extend(server.token_times(prompt(5, 64), 300)))
    running.start()
    time.sleep(0.8)
    began = time.perf_counter()
    act()
    ended = time.perf_counter()
    running.join()
    pairs = list(itertools.pairwise(arrivals))
    gaps = sorted((later - earlier) * 1000 for earlier, later in pairs)
    during = sorted((later - earlier) * 1000 for earlier, later in pairs if later > began and earlier < ended)
    row: Row = {"act_s": round(ended - began, 3), "gaps": len(gaps), "gaps_during": len(during)}
    row |= {"p50_ms": round(statistics.median(gaps), 2), "p99_ms": round(gaps[int(len(gaps) * 0.99)], 2)}
    if during:
        row |= {"during_p50_ms": round(statistics.median(during), 2), "during_max_ms": round(during[-1], 2)}
    return row


def disk(server: Server, plan: Plan) -> Iterator[Row]:
    """Measure requests whose window lies on disk only, after kill -9 and a restart."""
    server.kill()
    _drop_page_cache(plan.folder)
    yield {"restarted_s": round(server.start(), 1)}
    for length in plan.lengths:
        ids = prompt(length, length)
        answer, ms = server.call(
            Op.THAW, ThawArgs(window_name=window(length), new_session_id=f"r{length}", prewarm=False)
        )
        first = server.complete(ids, 1, cache_salt=answer["cache_salt"])
        exact = _compare(server, plan, length, answer["cache_salt"])
        row = {"tokens": length, "thaw_ms": round(ms, 1), "thawed_from_disk_s": round(first.seconds, 3)}
        yield {**row, "cached": first.cached, "by_tier": answer["restored_by_tier"], **exact}


def _drop_page_cache(folder: Path) -> None:
    for path in folder.rglob("*.data"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def offload(plan: Plan) -> Iterator[Row]:
    """Measure vLLM's own offload to CPU memory in the same way."""
    connector = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"cpu_bytes_to_use": int(plan.cpu_gb * GIB)},
    }
    command = with_connector(plan.model, connector, plan.options)
    with Server(command, plan.folder / "offload", plan.log("offload"), {}) as server:
        for length in plan.lengths:
            ids = prompt(length, length)
            server.complete(ids, 1)
            hit = statistics.median(server.complete(ids, 1).seconds for _ in range(3))
            time.sleep(2)  # it writes behind
            loads, cached = [], 0
            for _ in range(3):
                server.forget()
                answer = server.complete(ids, 1)
                loads.append(answer.seconds)
                cached = answer.cached
            row = {
                "offload": length,
                "prefix_hit_s": round(hit, 4),
                "from_memory_s": round(statistics.median(loads), 4),
            }
            yield {**row, "cached": cached}


def measure_cwm(plan: Plan, phases: list[str]) -> None:
    """Carry out the phases that need a server with CWM."""
    settings = {"CWM_CPU_CACHE_GB": str(plan.cpu_gb), "CWM_DISK_CACHE_GB": "45"}
    todo = {"memory": memory, "again": again, "beside": beside, "disk": disk}
    with Server(with_cwm(plan.model, plan.options), plan.folder / "cwm", plan.log("cwm"), settings) as server:
        for name in [name for name in todo if name in phases]:
            plan.carry_out(name, partial(todo[name], server, plan))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--lengths", default="8192,32768,131000")
    parser.add_argument("--cpu-gb", type=float, default=44)
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--phases", default=",".join(PHASES))
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:split])
    lengths = [int(each) for each in given.lengths.split(",")]
    phases = given.phases.split(",")
    common = ["--served-model-name", "m", "--load-format", "dummy", "--max-model-len", str(max(lengths) + 1000)]
    common += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log", *sys.argv[split + 1 :]]
    with tempfile.TemporaryDirectory(prefix="cwm-gpu-") as folder:
        plan = Plan(given.model, lengths, given.cpu_gb, given.output, Path(folder), common)
        plan.write({"machine": describe()})
        if {"ceilings", "worker"} & set(phases):
            from benchmarks import gpu_copies

            if "ceilings" in phases:
                for ceiling in (gpu_copies.bus, gpu_copies.checksums, lambda: gpu_copies.disk(plan.folder)):
                    plan.carry_out("ceilings", ceiling)
            if "worker" in phases:
                plan.carry_out("worker", gpu_copies.worker)
        if {"memory", "again", "beside", "disk"} & set(phases):
            measure_cwm(plan, phases)
        if "offload" in phases:
            plan.carry_out("offload", lambda: offload(plan))
        plan.write({"done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
