"""What an installation relies on: which part imports what, and that the locks agree."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ENGINE_LIBRARIES = {"torch", "vllm", "lmcache"}
VLLM_PUBLIC = "vllm.distributed.kv_transfer.kv_connector.v1"
"""vLLM's package for connectors: base classes and the metrics they may send."""
LOCKS = ("cpu", "cuda")


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no source"
    return found


def imports(source: Path) -> Iterator[str]:
    """Absolute names of what the file imports at run time, inside functions too; not for types only."""
    pending: list[ast.AST] = [ast.parse(source.read_text(), str(source))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield from (f"{node.module}.{name.name}" for name in node.names)
        pending.extend(ast.iter_child_nodes(node))


def importers(package: str, library: str) -> dict[str, set[str]]:
    """File, relative to the repository, to what it imports of `library`."""
    found = {
        str(source.relative_to(ROOT)): {name for name in imports(source) if name.split(".")[0] == library}
        for source in sources(package)
    }
    return {source: names for source, names in found.items() if names}


def pins(lock: str) -> dict[str, str]:
    """Return each package's version; fail for a line that is not an exact pin (a range, a path, an address).

    A package that some Pythons need and others do not has a marker, which is left out here.
    """
    found: dict[str, str] = {}
    for line in (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9-]+)==([A-Za-z0-9.+]+)( ; python_version == .+)?", line)
            assert pin, f"requirements/{lock}.txt: {line!r} is no exact pin"
            assert pin[1] not in found, f"requirements/{lock}.txt pins {pin[1]} twice"
            found[pin[1]] = pin[2]
    return found


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# --- who imports what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["cwm_mcp", "context_window_manager"])
@pytest.mark.parametrize("library", sorted(ENGINE_LIBRARIES))
def test_the_clients_source_names_no_engine_library(package: str, library: str) -> None:
    assert importers(package, library) == {}


@pytest.mark.parametrize(
    "module",
    [
        "cwm_connector",
        "cwm_connector.protocol.calls",
        "cwm_connector.protocol.wire",
        "cwm_connector.settings",
        "cwm_mcp.server.app",
        "cwm_mcp.cli.app",
    ],
)
def test_what_a_client_imports_loads_no_engine_library(module: str) -> None:
    # A process of its own: this one may have loaded them for another test.
    code = f"import sys, {module}; print(*sorted({ENGINE_LIBRARIES!r} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


def test_lmcache_is_imported_only_by_the_tiers_and_by_paging() -> None:
    users = importers("cwm_connector", "lmcache")
    assert users, "nothing imports LMCache: this test looks in the wrong place"
    strays = {user for user in users if not user.startswith("cwm_connector/tiers/")} - {
        "cwm_connector/worker/paged_copy.py"
    }
    assert strays == set()


def test_vllm_internals_are_imported_only_by_compat() -> None:
    users = importers("cwm_connector", "vllm")
    assert "cwm_connector/compat/running.py" in users
    users = {user: names for user, names in users.items() if not user.startswith("cwm_connector/compat/")}
    internals = {
        user: {name for name in names if not name.startswith(f"{VLLM_PUBLIC}.")} for user, names in users.items()
    }
    assert {user: names for user, names in internals.items() if names} == {}


def test_the_distributions_name_runs_the_mcp_server() -> None:
    # An MCP client that hangs up at once: the server ends without an error and without a word on its channel.
    ran = subprocess.run(
        [sys.executable, "-m", "context_window_manager"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


# --- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["lmcache", "torch"])
def test_both_locks_pin_the_same_release(library: str) -> None:
    # A local part such as +cpu names a build of the same release.
    assert pins("cpu")[library].split("+")[0] == pins("cuda")[library].split("+")[0]


def test_each_lock_has_its_own_build_of_torch() -> None:
    assert pins("cpu")["torch"].endswith("+cpu")
    assert "+" not in pins("cuda")["torch"]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_the_projects_own_requirements(lock: str) -> None:
    extras = project()["optional-dependencies"]
    pinned = pins(lock)
    for text in [*project()["dependencies"], *extras[lock], *extras["dev"]]:
        wanted = Requirement(text)
        version = pinned[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version, prereleases=True), f"{text}, but the {lock} lock has {version}"


def test_a_client_needs_no_engine_library() -> None:
    heavy = {canonicalize_name(Requirement(text).name) for text in project()["dependencies"]} & ENGINE_LIBRARIES
    assert heavy == set()
