"""Thaw 100,000 times over an engine in miniature, and fail if anything grows: `python -m benchmarks.soak`.

Each thaw has a session of its own. The first tenth fills what is bounded and does not count.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

from cwm_connector.core.units import MIB
from tests.support.miniature import Miniature
from tests.support.soak import Left, soak

PARTS: Final = 10
GROWTH_BYTES: Final = 16 * MIB
"""How much more memory there may be after the last part than after the first."""
GROWTH_OBJECTS: Final = 5000


async def run(thaws: int) -> bool:
    """Print what is left after each part. Return whether it stayed flat."""
    with tempfile.TemporaryDirectory() as folder:
        engine = await Miniature.started(Path(folder))
        found: list[Left] = []
        async for left in soak(engine, thaws, every=thaws // PARTS):
            print(left, flush=True)
            found.append(left)
        engine.close()
    first, last = found[0], found[-1]
    return (
        last.resident_bytes - first.resident_bytes < GROWTH_BYTES
        and last.objects - first.objects < GROWTH_OBJECTS
        and last.files == first.files
    )


def main() -> None:
    """Run the soak. Exit with 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thaws", type=int, default=100_000)
    sys.exit(0 if asyncio.run(run(parser.parse_args().thaws)) else "something grew")


if __name__ == "__main__":
    main()
