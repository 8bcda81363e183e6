"""Which tests run beside each other where pytest-xdist runs them in several workers."""

from typing import Final

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

_ENGINE: Final = "tests/engine/"
_FIRST: Final = (_ENGINE, "tests/torture/test_torture.py")
"""The groups that take minutes. The other tests run beside them."""


def group_of(node_id: str) -> str:
    """Return the group of a test: its file, but all tests with a real vLLM are one group."""
    path = node_id.partition("::")[0]
    return _ENGINE if path.startswith(_ENGINE) else path


def rank_of(node_id: str) -> int:
    """Return the place of a test's group in the order to start in: the groups that take minutes come first."""
    group = group_of(node_id)
    return _FIRST.index(group) if group in _FIRST else len(_FIRST)


class GroupScheduling(LoadFileScheduling):
    """Gives each worker a group of tests at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
