"""For every test: no example of Hypothesis fails for being slow, which on a loaded machine says nothing of the code."""

from typing import Any

import pytest
from hypothesis import settings

from tests.support.schedule import GroupScheduling, rank_of

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling | None:
    """Replace the scheduler of `--dist loadfile`."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # the order is that of the collection
    return GroupScheduling(config, log)
