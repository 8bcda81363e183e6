"""The command starts fast, because it imports only what it needs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.settings import Settings
from tests.cwm_mcp.canned import FROZEN, canned_engine_on_a_thread
from tests.cwm_mcp.ui.serving import POLICY
from tests.support.paths import ROOT

_SLOW = (
    "pydantic",
    "typer",
    "rich",
    "asyncio",
    "shutil",
    "mcp",
    "httpx",
    "uvicorn",
    "starlette",
    "torch",
    "vllm",
    "redis",
)


def loaded_by(*words: str) -> set[str]:
    """Return which of the slow packages a command imports."""
    code = (
        f"import sys\nsys.argv = ['cwm', *{words!r}]\nfrom cwm_mcp.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded', *(name for name in {_SLOW!r} if name in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return set(ran.stdout.splitlines()[-1].split()[1:])


def test_the_version_is_told_without_importing_anything_slow() -> None:
    assert loaded_by("--version") == set()


@pytest.mark.parametrize("words", [["ls"], ["show", "stem"], ["sessions"]])
def test_a_list_is_read_without_typer_rich_and_an_event_loop(filled: Path, words: list[str]) -> None:
    assert loaded_by(*words) == set()


@pytest.mark.parametrize(
    "words", ["clone a b", "mv a b", "tag a", "rm a --force", "undo", "undo --list", "gc", "policy"]
)
def test_a_single_operation_needs_no_rich_and_no_event_loop(home: Path, settings: Settings, words: str) -> None:
    answers: dict[str, Any] = {
        "CLONE": {"source_window": "a", "target_window": "b", "shared_blocks": 3, "new_bytes": 0},
        "TAG": {"window_name": "b", "tags": [], "description": ""},
        "TRASH": {"window_name": "a", "kept_until": "2026-01-02T00:00:00.000Z", "space_freed_bytes": 0},
        "RESTORE": {"window_names": ["a"]},
        "TRASH_LIST": {"windows": []},
        "COLLECT": {"chunks_deleted": 0, "space_freed_bytes": 0, "catalog_bytes_freed": 0, "warning": None},
        "POLICY": POLICY,
    }
    with canned_engine_on_a_thread(settings, **answers) as engine:
        assert not loaded_by(*words.split()) & {"rich", "asyncio", "httpx", "mcp"}
    assert len(engine.asked) == 1


def test_the_answer_of_a_freeze_is_printed_without_rich(home: Path, settings: Settings) -> None:
    with canned_engine_on_a_thread(settings, FREEZE=FROZEN):
        assert not loaded_by("freeze", "s", "w") & {"rich", "httpx", "mcp"}


def test_a_name_is_completed_without_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_CWM_COMPLETE": "complete_bash", "COMP_WORDS": "cwm thaw ", "COMP_CWORD": "2"}.items():
        monkeypatch.setenv(name, value)
    assert loaded_by() == set()


@pytest.mark.parametrize("words", [["ls"], ["show", "nothing"], ["--help"]])
def test_a_command_without_http_loads_no_http_library(words: list[str]) -> None:
    assert not loaded_by(*words) & {"mcp", "httpx", "uvicorn", "starlette", "torch", "vllm", "redis"}


@pytest.mark.parametrize(("words", "collects"), [(["ls"], False), (["help"], True)])
def test_only_a_command_that_may_stay_collects_garbage(filled: Path, words: list[str], collects: bool) -> None:
    code = (
        f"import gc, sys\nsys.argv = ['cwm', *{words!r}]\nfrom cwm_mcp.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(gc.isenabled(), gc.get_freeze_count() > 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines()[-1] == f"{collects} True"


def test_ctrl_c_while_a_command_starts_is_one_line() -> None:
    code = (
        "import sys\nfrom cwm_mcp.cli import main\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer':\n            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\nsys.argv = ['cwm', 'freeze', 's']\nmain()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (130, "interrupted; cwm ls shows which windows there are\n")
