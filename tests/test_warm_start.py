"""tests/support/warm.py: a forked server has what a new process would have, and is gone when it is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import ROOT, quiet_environment
from tests.support.warm import Forked, WarmStarter

PROGRAM = """
import multiprocessing, os, sys

def say(who):
    print(who, os.environ.get("OF_THE_CHILD"), os.getsid(0), "fractions" in sys.modules, flush=True)

def spawn():
    os.environ["OF_THE_CHILD"] = "set late"
    grandchild = multiprocessing.get_context("spawn").Process(target=say, args=("grandchild",))
    say("child")
    grandchild.start()
    grandchild.join()
    sys.exit(grandchild.exitcode)

if __name__ == "__main__":
    if sys.argv[1] == "exec":
        os.execvpe(sys.executable, (sys.executable, "-m", "program", "spawn"), {**os.environ, "SET": "by exec"})
    if sys.argv[1] == "sleep":
        import time
        time.sleep(60)
    child = multiprocessing.get_context("spawn").Process(target=spawn)
    say(f"parent {os.environ.get('SET')}")
    child.start()
    child.join()
    sys.exit(3)
"""


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[WarmStarter]:
    (tmp_path / "program.py").write_text(PROGRAM)
    with WarmStarter(quiet_environment() | {"PYTHONPATH": str(tmp_path)}, ["fractions"]) as starter:
        yield starter


RESTING = """
import tests.support.resting_queues, zmq
from vllm.distributed.device_communicators import shm_broadcast

def spins():
    raise SystemExit("it spins")

shm_broadcast.sched_yield = spins
reader = shm_broadcast.SpinCondition(True, zmq.Context(), "inproc://notify")
reader.record_read()
reader.wait(timeout_ms=1)
print("it sleeps")
"""


def test_a_process_that_waits_for_another_one_sleeps_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RESTING], cwd=ROOT, env=quiet_environment(), capture_output=True, text=True
    )
    assert done.stdout.endswith("it sleeps\n"), done.stderr


def run(starter: WarmStarter, log: Path, word: str) -> Forked:
    return starter.launch((sys.executable, "-m", "program", word), {"PATH": os.environ["PATH"]}, log)


@pytest.mark.parametrize(("word", "variable"), [("spawn", None), ("exec", "by exec")])
def test_all_processes_of_a_server_have_the_modules_and_their_parents_environment_in_one_session(
    starter: WarmStarter, tmp_path: Path, word: str, variable: str | None
) -> None:
    log = tmp_path / "log"
    log.write_text("earlier\n")
    server = run(starter, log, word)
    assert server.wait() == 3
    assert log.read_text().splitlines() == [
        "earlier",
        f"parent {variable} None {server.pid} True",
        f"child set late {server.pid} True",
        f"grandchild set late {server.pid} True",
    ]


def test_a_server_that_is_killed_is_told_so_and_another_one_starts(starter: WarmStarter, tmp_path: Path) -> None:
    sleeping = run(starter, tmp_path / "log", "sleep")
    assert sleeping.poll() is None
    os.kill(sleeping.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while sleeping.poll() is None:
        assert time.monotonic() < deadline
    assert sleeping.returncode == -signal.SIGKILL
    sleeping.terminate()
    assert run(starter, tmp_path / "log", "spawn").wait() == 3
