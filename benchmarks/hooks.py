"""Measure how long each hook keeps vLLM's engine thread: `python -m benchmarks.hooks [--json FILE]`.

One scheduler side has 1,000 sessions of 128k tokens, 64 thawed windows and a request that waits for blocks. vLLM's own
requests and block pool are given to it. There is no model and no worker. Each hook gets requests that are expensive for
it. `hook_times.py` says how a call is measured and what counts: the CPU time of the thread, without what the machine's
other work adds. No hook waits, so on an idle machine that is also the time on the wall, which is printed beside it.

Takes about two minutes. Exits with 1 if the 99th percentile of a hook is above the limit of one millisecond.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.hook_state import EngineState, Sizes
from benchmarks.hook_times import Times, best_work, percentile
from cwm_connector.step.jobs import Phase
from tests.support.machine import describe

LIMIT_MS: Final = 1.0
SHARING: Final = 64
"""Requests that wait for the load of another one."""


def hooks(state: EngineState) -> Iterator[tuple[str, Callable[[Times], None]]]:
    """Yield each hook with a function that makes one round: it prepares, measures, and tidies up."""
    yield "request_added, a named session", lambda times: _added(state, times, session="new")
    yield "request_added, nobody's, with 256 conversations alike", lambda times: _added(state, times, session=None)
    yield "get_num_new_matched_tokens, first asked", lambda times: _matched(state, times)
    yield "get_num_new_matched_tokens, waits for blocks", lambda times: _asked_again(state, times)
    yield "update_state_after_alloc and the load's end", lambda times: _allocated(state, times)
    yield "get_num_new_matched_tokens, another one loads it", lambda times: _shared(state, times)
    yield "request_finished, a new prompt", lambda times: _finished(state, times)
    yield "request_finished, a further turn", lambda times: _finished_turn(state, times)
    yield "request_finished, a branch beside 100 others", lambda times: _finished_branch(state, times)
    yield "build_connector_meta after such requests", lambda times: _steps(state, times)
    yield "build_connector_meta while sessions are listed", lambda times: _listed(state, times)
    yield "build_connector_meta while auto-freeze looks", lambda times: _freezable(state, times)
    yield "snapshot of a head that is computed", lambda times: _snapshot(state, times)
    yield "build_connector_meta while a freeze is planned", lambda times: _planned(state, times)
    yield "update_connector_output, blocks of a freeze are read", lambda times: _captured(state, times)
    yield "build_connector_meta while 100 heads are marked as frozen", lambda times: _marked(state, times)


def _added(state: EngineState, times: Times, session: str | None) -> None:
    tokens = state.prompt() if session else [*state.alike, *state.prompt()]
    one = state.request(tokens, session and state.new_name(session))
    times.measure(lambda: state.side.request_added(one))
    state.drop(one)


def _matched(state: EngineState, times: Times) -> None:
    """Ask until there is an answer, as vLLM does, once a step."""
    one = state.request([*state.thawed_tokens, *state.prompt(1000)], state.thawed_session)
    state.side.request_added(one)
    state.answer_finder()
    while times.measure(lambda: state.side.matched_tokens(one, 0)) is None:
        pass
    state.drop(one)


def _asked_again(state: EngineState, times: Times) -> None:
    times.measure(lambda: state.side.matched_tokens(state.waiting, 0))


def _allocated(state: EngineState, times: Times) -> None:
    one = state.request([*state.thawed_tokens, *state.prompt(1000)], state.thawed_session)
    state.side.request_added(one)
    state.answer_finder()
    while (tokens := state.side.matched_tokens(one, 0)) is None:
        pass
    times.measure(lambda: state.side.blocks_allocated(one, state.blocks_for(one), tokens))
    reports = state.finish_loads()
    times.measure(lambda: state.side.deliver(reports))
    state.drop(one)


def _shared(state: EngineState, times: Times) -> None:
    """Let 64 requests wait for the load of another one, and load by themselves when it has failed."""
    tokens = [*state.thawed_tokens, *state.prompt(1000)]
    loader, *others = (state.request(tokens, state.thawed_session) for _ in range(SHARING + 1))
    for one in (loader, *others):
        state.side.request_added(one)
        state.answer_finder()
        while (matched := state.side.matched_tokens(one, 0)) is None and one is loader:
            pass
        if one is loader:
            assert matched is not None
            state.side.blocks_allocated(one, state.blocks_for(one), matched)
    # The last one compares its tokens first. Then it waits.
    for _ in range(30):
        times.measure(lambda: state.side.matched_tokens(others[-1], 0))
    assert state.side.matched_tokens(others[-1], 0) is None
    times.measure(lambda: state.side.deliver(state.fail_loads()))
    times.measure(lambda: state.side.matched_tokens(others[-1], 0))
    for one in (loader, *others):
        state.drop(one)


def _planned(state: EngineState, times: Times) -> None:
    planning = state.plan_freeze()
    while not planning.done():
        times.measure(state.step)
    (plan,) = planning.result()
    assert plan.ticket is not None
    state.side.deliver(state.save_reports(Phase.FINISHED))
    state.settle()


def _captured(state: EngineState, times: Times) -> None:
    planning = state.plan_freeze()
    while not planning.done():
        state.step()
    reports = state.save_reports(Phase.CAPTURED)
    times.measure(lambda: state.side.deliver(reports))
    while state.side.wants_step:
        times.measure(state.step)
    reports = state.save_reports(Phase.FINISHED)
    times.measure(lambda: state.side.deliver(reports))


def _finished(state: EngineState, times: Times) -> None:
    one = state.computed(state.prompt(), state.new_name("new"))
    times.measure(lambda: state.side.request_finished(one))
    state.forget(one)


def _finished_turn(state: EngineState, times: Times) -> None:
    state.said = [*state.said[: state.sizes.tokens], *state.prompt(2000)]
    one = state.computed(state.said, "speaks")
    times.measure(lambda: state.side.request_finished(one))
    state.settle()


def _finished_branch(state: EngineState, times: Times) -> None:
    one = state.computed(state.branch(), "branches")
    times.measure(lambda: state.side.request_finished(one))
    state.settle()


def _steps(state: EngineState, times: Times) -> None:
    one = state.computed(state.prompt(), state.new_name("new"))
    state.side.request_finished(one)
    times.measure(state.step)
    while state.side.wants_step:
        times.measure(state.step)
    state.forget(one)


def _listed(state: EngineState, times: Times) -> None:
    listing = state.list_sessions()
    while not listing.done():
        times.measure(state.step)
    assert len(listing.result()) >= state.sizes.sessions


def _freezable(state: EngineState, times: Times) -> None:
    looking = state.look_for_unfrozen()
    while not looking.done():
        times.measure(state.step)
    assert len(looking.result()) >= state.sizes.sessions


def _snapshot(state: EngineState, times: Times) -> None:
    one = state.computed([*state.said, *state.prompt(state.sizes.tokens)], "speaks")
    times.measure(lambda: state.side.snapshot("speaks", None))
    state.drop(one)


def _marked(state: EngineState, times: Times) -> None:
    snapshot = state.side.snapshot("branches", None)
    assert len(snapshot.token_ids)
    marking = state.queue.collect(state.side.mark_frozen(snapshot))
    while not marking.done():
        times.measure(state.step)
    assert len(marking.result()) >= 100


def show(console: Console, times: Mapping[str, Times], best: float) -> None:
    """Print a row for each hook."""
    table = Table(title="Milliseconds of the engine thread", title_justify="left")
    table.add_column("hook")
    for column in ("calls", "left out", "median", "p99", "max", "CPU p99", "wall p99", "GC max", "limit"):
        table.add_column(column, justify="right")
    for what, each in times.items():
        own = each.undisturbed(best)
        p99 = percentile(own)
        left_out = len(each.samples) - len(own)
        whole = (percentile(each.cpu), percentile(each.wall), max(each.collecting))
        median, shown, most = (f"{value:.2f}" for value in (statistics.median(own), p99, max(own)))
        cpu, wall, collecting = (f"{value:.2f}" for value in whole)
        colour = "red" if p99 > LIMIT_MS else "green"
        table.add_row(
            what,
            str(len(each.samples)),
            str(left_out),
            median,
            f"[{colour}]{shown}[/]",
            most,
            cpu,
            wall,
            collecting,
            f"{LIMIT_MS:.0f}",
        )
    console.print(table)


def write_json(path: Path, sizes: Sizes, times: Mapping[str, Times], best: float) -> None:
    """Write all samples and what they were taken on to `path`."""
    content = {
        "machine": describe(),
        "sessions": sizes.sessions,
        "tokens": sizes.tokens,
        "windows": sizes.windows,
        "limit_ms": LIMIT_MS,
        "fixed_work_ms": best,
        "hooks": {
            what: {
                "p99": percentile(each.undisturbed(best)),
                "cpu_p99": percentile(each.cpu),
                "wall_p99": percentile(each.wall),
                "samples": [asdict(sample) for sample in each.samples],
            }
            for what, each in times.items()
        },
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Run the benchmark, print its table, and exit with 1 if a hook takes longer than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=60, help="how often each hook is called")
    parser.add_argument("--only", default="", help="measure only hooks with this text in their name")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    options = parser.parse_args()
    console = Console(width=130)
    console.print(describe())
    sizes = Sizes(sessions=options.sessions)
    began = time.monotonic()
    state = EngineState(sizes)
    console.print(f"{sizes.sessions} sessions of {sizes.tokens} tokens, made in {time.monotonic() - began:.0f} s.")
    gc.collect()
    gc.freeze()  # as vLLM does after its start
    times: dict[str, Times] = {}
    for what, round_of in hooks(state):
        if options.only not in what:
            continue
        round_of(Times())  # the first does not count
        times[what] = Times()
        for _ in range(options.rounds):
            round_of(times[what])
    best = best_work()
    show(console, times, best)
    if options.json is not None:
        write_json(options.json, sizes, times, best)
    sys.exit(any(percentile(each.undisturbed(best)) > LIMIT_MS for each in times.values()))


if __name__ == "__main__":
    main()
