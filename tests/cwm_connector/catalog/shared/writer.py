"""A process that is one of several engines and changes the shared catalog: `python -m … URL NAMESPACE PATH NAME STEPS`.

It tells each change once it is acknowledged, one a line: `+window`, `-window`. What fails because Redis is away it
tries again until it is done, as a client would.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from cwm_connector.catalog.shared.catalog import RedisCatalog
from cwm_connector.core.errors import Code, CWMError
from tests.cwm_connector.catalog.engines import BRISK
from tests.cwm_connector.catalog.samples import at, chain, new_window


def main() -> None:
    url, namespace, path, engine, steps = sys.argv[1:]
    catalog = RedisCatalog.open(url, namespace, Path(path), limits=BRISK)

    def mine(name: str) -> bool:
        try:
            return catalog.window(name).session_id == engine
        except CWMError:
            return False

    def tell(text: str) -> None:
        print(text, flush=True)

    for step in range(int(steps)):
        name = f"{engine}{step}"
        until_done(lambda: catalog.commit_window(window(engine, name, step)), Code.WINDOW_EXISTS)  # noqa: B023
        tell(f"+{name}")
        # All engines want this one; one gets it.
        won = until_done(lambda: catalog.commit_window(window(engine, f"all{step}", step)), Code.WINDOW_EXISTS)  # noqa: B023
        if won or mine(f"all{step}"):
            tell(f"+all{step}")
        if step % 4 == 3:
            until_done(lambda: catalog.delete_window(f"{engine}{step - 2}"), Code.WINDOW_NOT_FOUND)  # noqa: B023
            tell(f"-{engine}{step - 2}")
            until_done(
                lambda: catalog.clone_window(name, f"{name}.clone", None, None, at(step)),  # noqa: B023
                Code.WINDOW_EXISTS,
            )
            tell(f"+{name}.clone")
    catalog.catch_up()


def window(engine: str, name: str, step: int):
    """Chunks are shared between the engines and with the step before."""
    return new_window(name, chain(f"c{step // 2}", 3 + step % 2), session_id=engine, created_at=at(step))


def until_done(call: Callable[[], object], done: Code) -> bool:
    """False if the catalog says that it is so already."""
    while True:
        try:
            call()
            return True
        except CWMError as problem:
            if problem.code is done:
                return False
            if not problem.retryable:
                raise


if __name__ == "__main__":
    main()
