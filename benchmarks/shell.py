"""Time the commands of `cwm` as a person waits for them, over a home with 1,000 windows and no engine.

    python -m benchmarks.shell

Uses hyperfine if it is installed, and its own loop otherwise. Prints the median and the best of the runs, the processor
time, and the machine's load, because another program on the same cores makes every figure larger. The line "python"
is an interpreter that does nothing.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cwm_mcp import homes

WINDOWS = 1000
RUNS = 20
COMMANDS = {
    "cwm --version": ["--version"],
    "cwm --help": ["--help"],
    "cwm ls": ["ls"],
    "cwm ls --json": ["ls", "--json"],
    "cwm show": ["show", "stem"],
    "cwm stats": ["stats"],
    "Tab after thaw": [],
}
COMPLETION = {"_CWM_COMPLETE": "complete_bash", "COMP_WORDS": "cwm thaw ", "COMP_CWORD": "2"}
_PROGRAM = [sys.executable, "-c", "from cwm_mcp.cli import main; main()"]
_NOTHING = [sys.executable, "-c", "pass"]


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the median of the elapsed seconds of one command, and its processor seconds."""
    if shutil.which("hyperfine"):
        return _by_hyperfine(command, environment)
    elapsed = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(RUNS):
        begun = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        elapsed.append(time.perf_counter() - begun)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return statistics.median(elapsed), used / RUNS


def _by_hyperfine(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        line = subprocess.list2cmdline(command)
        words = ["hyperfine", "-N", "--warmup", "3", "--runs", str(RUNS), "--export-json", report.name, line]
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
        (result,) = json.loads(Path(report.name).read_text())["results"]
    return result["median"], result["user"] + result["system"]


def main() -> None:
    """Print one line for each command."""
    with tempfile.TemporaryDirectory(prefix="cwm-") as home:
        homes.fill(Path(home))
        homes.clones(Path(home), "stem", WINDOWS - 3)
        environment = {**os.environ, "CWM_HOME": home, "PYTHONDONTWRITEBYTECODE": ""}
        print(f"{WINDOWS} windows, {RUNS} runs each, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        commands = {"python": _NOTHING, **{name: [*_PROGRAM, *words] for name, words in COMMANDS.items()}}
        for name, command in commands.items():
            elapsed, used = measured(command, environment if command != _PROGRAM else environment | COMPLETION)
            print(f"{name:16} {elapsed * 1000:6.0f} ms elapsed, {used * 1000:6.0f} ms of processor time")


if __name__ == "__main__":
    main()
