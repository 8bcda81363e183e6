"""Measure CWM on a CUDA device: the time to the first token, freezes, and what they cost a request beside them.

    python -m benchmarks.gpu MODEL --output gpu.jsonl [--lengths 8192,32768,131000] [--phases …] [-- vLLM's options]

MODEL is a folder with a config. The weights are dummy ones, whose values change no time. Each row is written to the
output as soon as it is measured. The ceilings come from the same run. A thaw counts only if vLLM reports its tokens as
cached. Tokens and logprobs after each thaw are compared with vLLM's own prefix hit.
"""

import argparse
import itertools
import json
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

from benchmarks import gpu_peers
from benchmarks.gpu_server import Answer, Server, drop_page_cache, prompt, with_cwm
from cwm_connector.protocol.calls import CloneArgs, FreezeArgs, Op, ThawArgs
from tests.support.machine import describe
from tests.support.redis_server import redis_server

Row = dict[str, Any]

PHASES: Final = ("ceilings", "worker", "offload", "memory", "again", "beside", "disk", "files", "redis")
AGAIN: Final = 5
BESIDE: Final = 3
"""Rounds beside a running request."""
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

    @property
    def settings(self) -> dict[str, str]:
        """Return CWM's settings."""
        return {"CWM_CPU_CACHE_GB": str(self.cpu_gb), "CWM_DISK_CACHE_GB": "45"}

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
    """Measure the gaps between a running request's tokens: alone, and beside a prefix hit, a freeze and a thaw.

    A thaw comes with a request that loads the window. The prefix hit is that request without a load.
    """
    length = plan.lengths[min(1, len(plan.lengths) - 1)]
    ids, numbers = prompt(77, length), itertools.count()
    server.complete(ids, 1, session_id="beside")

    def hit() -> None:
        server.complete(ids, 1, session_id="beside")

    def freeze() -> None:
        server.call(Op.FREEZE, FreezeArgs(session_id=f"beside-{turn}", window_name=f"beside-{turn}"))

    def thaw() -> None:
        arguments = ThawArgs(window_name="beside-0", new_session_id=f"thawed-{next(numbers)}")
        server.complete(ids, 1, cache_salt=server.call(Op.THAW, arguments)[0]["cache_salt"])

    acts: dict[str, Callable[[], object]] = {"nothing": lambda: time.sleep(1)}
    acts |= {"freeze": freeze, "prefix hit": hit, "thaw and load": thaw}
    for turn in range(BESIDE):
        # The first freeze is of the prompt that is thawed later, the others store chunks of their own.
        server.complete(prompt(77 + turn, length), 1, session_id=f"beside-{turn}")
        for what, act in acts.items():
            yield {"beside": what, "tokens": length, **_gaps(server, act)}


def _gaps(server: Server, act: Callable[[], object]) -> Row:
    """Return the gaps during the act and those of the rest of the answer, in milliseconds."""
    arrivals: list[float] = []
    running = threading.Thread(target=lambda: arrivals.extend(server.token_times(prompt(5, 64), 300)))
    running.start()
    time.sleep(0.5)
    began = time.perf_counter()
    act()
    ended = time.perf_counter()
    running.join()
    pairs = list(itertools.pairwise(arrivals))[10:]  # the first ones still belong to the start
    during = [(later - earlier) * 1000 for earlier, later in pairs if later > began and earlier < ended]
    rest = [(later - earlier) * 1000 for earlier, later in pairs if not (later > began and earlier < ended)]
    return {"act_s": round(ended - began, 3), **_spread("during", during), **_spread("rest", rest)}


def _spread(name: str, gaps: list[float]) -> Row:
    if not gaps:
        return {f"{name}_gaps": 0}
    ordered = sorted(gaps)
    row = {"p50_ms": statistics.median(gaps), "p99_ms": ordered[int(len(gaps) * 0.99)], "max_ms": ordered[-1]}
    return {f"{name}_gaps": len(gaps), **{f"{name}_{each}": round(ms, 2) for each, ms in row.items()}}


def disk(server: Server, plan: Plan) -> Iterator[Row]:
    """Measure requests whose window lies on disk only, after kill -9 and a restart."""
    server.kill()
    drop_page_cache(plan.folder)
    yield {"restarted_s": round(server.start(), 1)}
    for length in plan.lengths:
        yield _first_request(server, plan, length, "disk")


def redis(plan: Plan) -> Iterator[Row]:
    """Measure requests whose window another engine has frozen, through a Redis server that both share."""
    with redis_server(append_fsync="everysec") as shared:
        settings = {**plan.settings, "CWM_REDIS_URL": shared.url, "CWM_CATALOG": "redis"}
        for name in ("writer", "reader"):
            command = with_cwm(plan.model, plan.options)
            with Server(command, plan.folder / name, plan.log(name), settings) as server:
                yield from _write(server, plan) if name == "writer" else _read(server, plan)


def _write(server: Server, plan: Plan) -> Iterator[Row]:
    for length in plan.lengths:
        ids, session = prompt(length, length), f"s{length}"
        server.complete(ids, 1, session_id=session)
        plan.reference[length] = server.complete(ids, TOKENS, logprobs=True, session_id=session)
        _, ms = server.call(Op.FREEZE, FreezeArgs(session_id=session, window_name=window(length)))
        yield {"tokens": length, "freeze_to_redis_ms": round(ms)}


def _read(server: Server, plan: Plan) -> Iterator[Row]:
    for length in plan.lengths:
        yield _first_request(server, plan, length, "redis")


def _first_request(server: Server, plan: Plan, length: int, tier: str) -> Row:
    """Thaw without reading ahead, and measure the first request, which reads the window from `tier`."""
    thaw = ThawArgs(window_name=window(length), new_session_id=f"{tier}-{length}", prewarm=False)
    answer, ms = server.call(Op.THAW, thaw)
    first = server.complete(prompt(length, length), 1, cache_salt=answer["cache_salt"])
    return {
        "tokens": length,
        "thaw_ms": round(ms, 1),
        f"thawed_from_{tier}_s": round(first.seconds, 3),
        "cached": first.cached,
        "by_tier": answer["restored_by_tier"],
        **_compare(server, plan, length, answer["cache_salt"]),
    }


def measure_cwm(plan: Plan, phases: list[str]) -> None:
    """Carry out the phases that need a server with CWM."""
    todo = {"memory": memory, "again": again, "beside": beside, "disk": disk}
    with Server(with_cwm(plan.model, plan.options), plan.folder / "cwm", plan.log("cwm"), plan.settings) as server:
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
        plan.write({"machine": describe(), "options": sys.argv[split + 1 :]})
        if {"ceilings", "worker"} & set(phases):
            from benchmarks import gpu_copies

            if "ceilings" in phases:
                for ceiling in (gpu_copies.bus, gpu_copies.checksums, lambda: gpu_copies.disk(plan.folder)):
                    plan.carry_out("ceilings", ceiling)
            if "worker" in phases:
                plan.carry_out("worker", gpu_copies.worker)
        peer = (plan.model, plan.lengths, plan.cpu_gb, plan.options)
        if "offload" in phases:
            plan.carry_out("offload", lambda: gpu_peers.memory(*peer, plan.folder / "offload"))
        if {"memory", "again", "beside", "disk"} & set(phases):
            measure_cwm(plan, phases)
        if "files" in phases:
            plan.carry_out("files", lambda: gpu_peers.files(*peer, plan.folder / "files"))
        if "redis" in phases:
            plan.carry_out("redis", lambda: redis(plan))
        plan.write({"done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
