"""A process that changes a catalog step after step and acknowledges each: `python -m … PATH FIRST_STEP`.

The steps are fixed, so whoever reads the acknowledgements can say what the catalog has to hold.
"""

import os
import sys
from itertools import count
from pathlib import Path

from cwm_connector.catalog.base import Catalog
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from tests.cwm_connector.catalog.samples import at, chain, new_window

CHUNKS = 24
NEW = 4


def window_of(step: int) -> tuple[str, int]:
    """Name and number of chunks of what a commit step writes; it shares most chunks with the step before."""
    return f"w{step}", CHUNKS + NEW * (step % 2)


def do(catalog: Catalog, step: int) -> None:
    """Of four steps: two commits, a clone of the second, the deletion of the first."""
    match step % 4:
        case 0 | 1:
            name, length = window_of(step)
            chunks = chain(f"c{step // 4}", length)
            new = chunks if step % 4 == 0 else chunks[-NEW:]
            catalog.commit_window(new_window(name, chunks, stored=new, created_at=at(step), tags=["torture"]))
        case 2:
            catalog.clone_window(f"w{step - 1}", f"c{step}", "a clone", None, at(step))
        case _:
            catalog.delete_window(f"w{step - 3}")


def names_after(steps: int) -> set[str]:
    """What there is when the first `steps` steps are done."""
    names: set[str] = set()
    for step in range(steps):
        match step % 4:
            case 0 | 1:
                names.add(f"w{step}")
            case 2:
                names.add(f"c{step}")
            case _:
                names.remove(f"w{step - 3}")
    return names


def main() -> None:
    catalog = SqliteCatalog.open(Path(sys.argv[1]))
    for step in count(int(sys.argv[2])):
        do(catalog, step)
        os.write(sys.stdout.fileno(), b".")


if __name__ == "__main__":
    main()
