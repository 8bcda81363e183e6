"""`python -m tests.torture`: the torture from a shell. Exit status 0 only if nothing was lost, corrupt or made up."""

import json
import os
import shutil
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from tests.support import powercut

_FOLDER: Final = "CWM_TORTURE_FOLDER"
_APPEND_FSYNC: Final = "always"
"""A demotion need not wait for the server's next second."""


def main(
    loops: Annotated[int, typer.Option(help="Starts, each with work, an end and a look, over all lanes.")] = 1080,
    minutes: Annotated[float, typer.Option(help="Whatever is not through by then is a failure.")] = 25,
    seed: Annotated[int, typer.Option(help="What is done, and when it is meant to end, follows from it.")] = 1,
    lanes: Annotated[int, typer.Option(help="Stores that are tortured at the same time.")] = 2,
    acts: Annotated[int, typer.Option(help="Acknowledgements that a child is let live for, at most.")] = 150,
    windows: Annotated[int, typer.Option(help="Windows that may stand in a store at a time.")] = 16,
    faults: Annotated[bool, typer.Option(help="Plants each known bug as well, and fails if one is not found.")] = True,
    engine_loops: Annotated[int, typer.Option(help="Loops with a real vLLM server; each takes half a minute.")] = 0,
    soak_minutes: Annotated[float, typer.Option(help="Then soaks a real vLLM server for so long.")] = 0,
    keep: Annotated[bool, typer.Option(help="Leaves the stores of a failure for inspection.")] = False,
    report: Annotated[Path | None, typer.Option(help="Writes all figures here, as JSON.")] = None,
) -> None:
    deadline = time.monotonic() + minutes * 60
    folder = Path(os.environ.get(_FOLDER) or tempfile.mkdtemp(prefix="cwm-torture-")).resolve()
    good = False
    try:
        library = _under_the_shim(folder)
        found = _torture(folder, library, loops, deadline, str(seed), lanes, acts, windows, faults)
        good = bool(found["good"])
        if good and engine_loops:
            good = _torture_a_real_engine(folder, library, str(seed), engine_loops, deadline)
        if good and soak_minutes:
            found["soak"] = _soak(str(seed), soak_minutes, faults)
            good = bool(found["soak"]["good"])
        if report is not None:
            report.write_text(json.dumps(found))
    finally:
        if keep and not good:
            print(f"the stores are left in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(0 if good else 1)


def _under_the_shim(folder: Path) -> Path | None:
    """The shim's library once this process runs with it: it starts itself anew. None, and said, without a compiler."""
    if powercut.compiler() is None:
        print("no C compiler (cc, gcc) here: kill -9 only, no power cuts", flush=True)
        return None
    if _FOLDER not in os.environ:
        environment = os.environ | {"LD_PRELOAD": str(powercut.build(folder)), _FOLDER: str(folder)}
        _anew(environment)
    return Path(os.environ["LD_PRELOAD"])


def _anew(environment: dict[str, str]) -> NoReturn:
    os.execve(sys.executable, [sys.executable, "-m", "tests.torture", *sys.argv[1:]], environment)


def _torture_a_real_engine(folder: Path, library: Path | None, seed: str, loops: int, deadline: float) -> bool:
    from tests.torture.real import torture

    power = None
    if library is not None:
        power = powercut.PowerCut(library, folder / "real" / "store", folder / "real" / "image")
    tally = torture(power, seed, loops, deadline)
    print(tally.summary(), flush=True)
    return tally.loops == loops and not tally.violations


def _soak(seed: str, minutes: float, faults: bool) -> dict[str, Any]:
    from tests.torture.soak.rounds import soak  # imports torch and vLLM

    return soak(seed, time.monotonic() + minutes * 60, bugs=faults).report()


def _torture(
    folder: Path, library: Path | None, loops: int, deadline: float, seed: str, lanes: int, acts: int, windows: int,
    faults: bool,
) -> dict[str, Any]:  # fmt: skip
    from tests.torture.campaign import STRICT, Campaign, run  # imports torch and vLLM
    from tests.torture.faults import FAULTS, Fault
    from tests.torture.tally import Tally

    def campaign(name: str, loops: int, redis: str | None, fault: Fault | None = None) -> Campaign:
        root = folder / name / "store"
        power = None if library is None else powercut.PowerCut(library, root, folder / name / "image", strict=STRICT)
        return Campaign(
            root=root, seed=f"{seed}.{name}", loops=loops, deadline=deadline, acts=acts, keep=windows, power=power,
            redis=redis, fault=fault,
        )  # fmt: skip

    servers = shutil.which(os.environ.get("CWM_TEST_REDIS_SERVER", "redis-server")) is not None
    if not servers:
        print("no redis-server here: nothing is demoted", flush=True)
    began = time.monotonic()
    # Each lane is a fork of this process, which has everything imported and no threads yet.
    with get_context("fork").Pool(lanes) as pool:
        shares = [loops // lanes + (lane < loops % lanes) for lane in range(lanes)]
        tallies = pool.map(
            run,
            [
                campaign(str(lane), share, _APPEND_FSYNC if servers and lane % 2 else None)
                for lane, share in enumerate(shares)
            ],
            chunksize=1,
        )
        whole = Tally.of(tallies, time.monotonic() - began)
        print(*whole.violations, whole.summary(), sep="\n", flush=True)
        chosen = {
            name: fault
            for name, fault in FAULTS.items()
            if faults and (library or not fault.needs_power_cuts) and (servers or fault.redis is None)
        }
        tries = [campaign(name, fault.loops, fault.redis, fault) for name, fault in chosen.items()]
        tried = dict(zip(chosen, pool.map(run, tries, chunksize=1), strict=True))
    found = {name: next((str(each) for each in tried[name].violations if fault.is_found(each)), None)
             for name, fault in chosen.items()}  # fmt: skip
    for name, text in found.items():
        if text is None:
            print(tried[name].summary())
        other = "; ".join(map(str, tried[name].violations[:3])) or "nothing"
        said = " ".join((text or f"NOT FOUND, but {other}").split())
        print(f"planted {name}: {said[:400]} (loop {tried[name].loops})", flush=True)
    if whole.loops < loops and not whole.violations:
        print(f"only {whole.loops} of {loops} loops were through in time")
    return {
        "good": whole.loops == loops and not whole.violations and all(found.values()),
        "power_cuts": library is not None,
        "redis": servers,
        "tally": whole.report(),
        "faults": found,
    }


if __name__ == "__main__":
    typer.run(main)
