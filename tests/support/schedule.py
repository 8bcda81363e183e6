"""Which tests run beside each other where pytest-xdist runs them in several workers."""

from typing import Final

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

_ENGINES: Final = "tests/engine/"
SHARED: Final = f"{_ENGINES} with the shared engine"
UNASKED: Final = f"{_ENGINES} with the engine that freezes by itself"
OF_UNASKED: Final = ("test_back_without_asking.py", "test_clients.py")
WITH_THEIR_OWN: Final = (
    "test_adapters.py",
    "test_architectures.py",
    "test_auto_freeze.py",
    "test_sharing.py",
    "test_soak.py",
    "test_traces.py",
)
WORKFLOWS: Final = "test_guide_workflows.py"
_ON_THE_SHARED_ONE: Final = "[small]"
TORTURE: Final = "tests/torture/test_torture.py"
_FIRST: Final = (SHARED, UNASKED, TORTURE)
"""The groups that take minutes. The other tests run beside them."""


def group_of(node_id: str) -> str:
    """Return the group of a test: its file, but the tests of one vLLM are one group."""
    path, _, test = node_id.partition("::")
    if not path.startswith(_ENGINES):
        return path
    name = path.removeprefix(_ENGINES)
    if name in OF_UNASKED:
        return UNASKED
    if name in WITH_THEIR_OWN or (name == WORKFLOWS and not test.endswith(_ON_THE_SHARED_ONE)):
        return path
    return SHARED


def rank_of(node_id: str) -> int:
    """Return the place of a test's group in the order to start in: the groups that take minutes come first."""
    group = group_of(node_id)
    if group in _FIRST:
        return _FIRST.index(group)
    return len(_FIRST) + (not group.startswith(_ENGINES))


class GroupScheduling(LoadFileScheduling):
    """Gives each worker a group of tests at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
