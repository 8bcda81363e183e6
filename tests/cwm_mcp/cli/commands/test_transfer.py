"""`cwm export` and `cwm import`: what the engine is asked, and how its answer is shown."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Args, ExportArgs, ImportArgs
from cwm_connector.protocol.results import Exported, Imported
from cwm_connector.settings import Settings
from cwm_mcp.api.operations import Operations
from cwm_mcp.cli.app import app
from tests.cwm_mcp.canned import canned_engine

EXPORTED = {
    "window_name": "w",
    "path": "/somewhere/w.cwm",
    "bytes": 3 << 20,
    "chunks": 3,
    "token_count": 700,
    "restorable_tokens": 640,
    "duration_ms": 40.5,
}
IMPORTED = EXPORTED | {
    "new_bytes": 1 << 20,
    "shared_chunks": 2,
    "exported_as": "w",
    "frozen_at": "2026-01-02T03:04:05.678Z",
    "frozen_from": "alice",
}


@pytest.fixture
def cwm(home: Path, settings: Settings) -> Callable[..., tuple[Result, list[Args]]]:
    """Return a function that runs a command against an engine with these answers, and what the engine was asked."""

    def run(*words: str, **answers: dict[str, Any] | CWMError) -> tuple[Result, list[Args]]:
        async def both() -> tuple[Result, list[Args]]:
            async with canned_engine(settings, **answers) as canned:
                ran = await asyncio.to_thread(CliRunner().invoke, app, words)
                return ran, canned.asked

        return asyncio.run(both())

    return run


def test_the_engine_is_told_the_whole_path(
    cwm: Callable[..., tuple[Result, list[Args]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")
    ran, asked = cwm("export", "w", "-o", "w.cwm", "--json", EXPORT=EXPORTED)
    assert (json.loads(ran.stdout), asked) == (EXPORTED, [ExportArgs("w", str(tmp_path / "w.cwm"))])
    _, asked = cwm("export", "w", "--output", "~/w.cwm", "--force", EXPORT=EXPORTED)
    assert asked == [ExportArgs("w", "/home/anna/w.cwm", force=True)]
    ran, asked = cwm("import", "sub/w.cwm", "--json", IMPORT=IMPORTED)
    assert (json.loads(ran.stdout), asked) == (IMPORTED, [ImportArgs(str(tmp_path / "sub" / "w.cwm"))])
    _, asked = cwm("import", "/w.cwm", "--name", "v", "-t", "a", "-t", "b", IMPORT=IMPORTED)
    assert asked == [ImportArgs("/w.cwm", "v", ["a", "b"])]


def test_a_person_is_shown_sizes_and_what_was_there(cwm: Callable[..., tuple[Result, list[Args]]]) -> None:
    ran, _ = cwm("import", "/w.cwm", IMPORT=IMPORTED)
    sentence, following, _, *details = ran.stdout.splitlines()
    assert sentence == "Imported w from /somewhere/w.cwm: 700 tokens, 1.0 MiB new. It was w there."
    assert following == "Next: cwm thaw w"
    shown = dict(line.split(None, 1) for line in details)
    assert shown["new_bytes"].strip() == "1.0 MiB" and shown["shared_chunks"].strip() == "2"
    assert shown["frozen_from"].strip() == "alice"


def test_a_refusal_of_the_engine_is_one_line_with_its_code(cwm: Callable[..., tuple[Result, list[Args]]]) -> None:
    refusal = CWMError(
        Code.PASSPORT, "the exported window has weights 'a' and this engine 'b'; use the other", field="weights"
    )
    ran, _ = cwm("import", "/w.cwm", IMPORT=refusal)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [str(refusal)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["export", ".w", "-o", "x"], "CWM-1002: "),
        (["export", "w", "-o", "x"], "CWM-5001: "),
        (["import", "x"], "CWM-5001: "),
        (["import", "x", "--name", "a b"], "CWM-1002: "),
        (["import", "x", "-t", "a b"], "CWM-1003: "),
    ],
)
def test_a_wrong_word_or_no_engine_is_one_line(home: Path, words: list[str], line: str) -> None:
    ran = CliRunner().invoke(app, words)
    assert (ran.exit_code, ran.stdout) == (1 if "5001" in line else 2, "")
    (only,) = ran.stderr.splitlines()
    assert only.startswith(line)


def test_a_target_is_needed(home: Path) -> None:
    assert CliRunner().invoke(app, ["export", "w"]).exit_code == 2


def test_a_pipe_carries_the_file_and_leaves_nothing_behind(
    cwm: Callable[..., tuple[Result, list[Args]]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(self: Operations, args: ExportArgs, on_progress: object) -> Exported:
        Path(args.path).write_bytes(b"\0window\xff")  # noqa: ASYNC240
        return msgspec.convert({**EXPORTED, "path": args.path}, Exported)

    monkeypatch.setattr(Operations, "export", write)
    ran, _ = cwm("export", "w", "-o", "-")
    assert (ran.exit_code, ran.stdout_bytes) == (0, b"\0window\xff")
    assert list(home.glob("pipe-*")) == []


def test_what_comes_through_a_pipe_is_imported_from_a_private_file(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bytes, int]] = []

    async def read(self: Operations, args: ImportArgs, on_progress: object) -> Imported:
        path = Path(args.path)
        seen.append((path.read_bytes(), path.parent.stat().st_mode & 0o777))  # noqa: ASYNC240
        return msgspec.convert(IMPORTED, Imported)

    monkeypatch.setattr(Operations, "import_window", read)
    ran = CliRunner().invoke(app, ["import", "-", "--quiet"], input=b"\0window\xff")
    assert (ran.exit_code, ran.stdout) == (0, "w\n")
    assert seen == [(b"\0window\xff", 0o700)]
    assert list(home.glob("pipe-*")) == []
