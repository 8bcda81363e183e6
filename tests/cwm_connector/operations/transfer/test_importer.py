"""importer.py: a window is imported whole, or refused and nothing is left."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from cwm_connector.core.errors import Code
from cwm_connector.core.identity import Passport
from cwm_connector.operations.transfer import archive_files, steps
from cwm_connector.protocol.calls import Op
from tests.support.archives import joined, split
from tests.support.miniature import Miniature, chunk_files
from tests.support.stores import (
    CHUNK_BYTES,
    forget_memory,
    frozen,
    text,
)
from tests.support.transfers import (
    RESTORABLE,
    TEXT,
    content_of,
    killed,
    names,
    put,
    refused,
)


async def test_an_import_stores_only_missing_chunks(here: Miniature, there: Miniature, file: Path) -> None:
    before = [path.stat().st_ino for path in chunk_files(here.settings.home)]
    again = await here.call(Op.IMPORT, path=str(file), window_name="again")
    assert (again["new_bytes"], again["shared_chunks"]) == (0, 3)
    assert [path.stat().st_ino for path in chunk_files(here.settings.home)] == before
    await frozen(there, "common", [*TEXT[:64], *text(5, chunks=1)])
    imported = await there.call(Op.IMPORT, path=str(file))
    assert (imported["new_bytes"], imported["shared_chunks"]) == (CHUNK_BYTES, 2)
    await there.call(Op.DELETE, window_name="common")
    forget_memory(there)
    await there.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await there.resume(TEXT, session_id="bob") == RESTORABLE


async def test_an_import_can_change_the_name_and_add_tags(there: Miniature, file: Path) -> None:
    await there.call(Op.IMPORT, path=str(file), window_name="from-anna", tags=["anna", "planning"])
    (window,) = (await there.call(Op.LIST))["windows"]
    assert (window["name"], sorted(window["tags"])) == ("from-anna", ["anna", "planning"])


async def test_a_window_of_another_model_is_refused_with_the_field_and_both_values(tmp_path: Path, file: Path) -> None:
    other = await Miniature.started(tmp_path / "other", passport=Passport({"weights": "large", "format": "1"}))
    problem = await refused(other, Code.PASSPORT, file)
    assert problem.context == {"field": "weights", "engine": "large", "window": "small"}
    assert "large" in problem.message and "small" in problem.message
    other.close()


@pytest.mark.parametrize(("field", "value"), [("model", "tiny"), ("block_tokens", 8), ("chunk_tokens", 64)])
async def test_a_window_of_another_model_name_or_geometry_is_refused(
    there: Miniature, file: Path, field: str, value: Any
) -> None:
    fields, parts = split(content_of(file))
    chunks = fields["chunks"]
    if field == "chunk_tokens":  # a file that is consistent in itself
        chunks = [[chunks[0][0], 64, [4096 + 2 * (CHUNK_BYTES - 4096)]]]
        fields["restorable_tokens"], parts = 64, parts[: 4096 + 2 * (CHUNK_BYTES - 4096)]
    put(file, joined(fields | {field: value, "chunks": chunks}, parts))
    problem = await refused(there, Code.PASSPORT, file)
    assert problem.context["field"] == field and str(problem.context["window"]) == str(value)


async def test_a_file_of_more_ranks_is_refused(there: Miniature, file: Path) -> None:
    fields, parts = split(content_of(file))
    chunks = [[key, tokens, sizes * 2] for key, tokens, sizes in fields["chunks"]]
    put(file, joined(fields | {"chunks": chunks}, parts * 2))
    assert (await refused(there, Code.PASSPORT, file)).context["field"] == "ranks"


@pytest.mark.parametrize("layout", ["NHD:" + "ab" * 32, "NHD:right"])
async def test_pages_whose_layout_does_not_match_the_passport_are_refused(tmp_path: Path, layout: str) -> None:
    """Every part says how its pages lie; all ranks' together are in the passport."""
    probe = await Miniature.started(tmp_path / "probe")
    own = hashlib.sha256(probe.worker._shape.layout).hexdigest()
    probe.close()
    passport = Passport({"weights": "small", "layout": layout.replace("right", own)})
    one = await Miniature.started(tmp_path / "one", passport=passport)
    await frozen(one, "w", TEXT)
    await one.call(Op.EXPORT, window_name="w", path=str(tmp_path / "w.cwm"))
    other = await Miniature.started(tmp_path / "other", passport=passport)
    if layout.endswith("right"):
        await other.call(Op.IMPORT, path=str(tmp_path / "w.cwm"))
    else:
        await refused(other, Code.CORRUPT, tmp_path / "w.cwm")
    one.close()
    other.close()


async def test_a_taken_name_is_refused(here: Miniature, there: Miniature, file: Path) -> None:
    await refused(here, Code.WINDOW_EXISTS, file)
    await refused(there, Code.WINDOW_NAME, file, window_name=".hidden")
    await refused(there, Code.ARGUMENT, file, tags=["no tag"])


async def test_an_import_over_the_disk_limit_is_refused_whole(tmp_path: Path, file: Path) -> None:
    small = await Miniature.started(tmp_path / "small", disk_cache_gb=2.5 * CHUNK_BYTES / (1 << 30))
    problem = await refused(small, Code.QUOTA, file)
    assert problem.context["needed_bytes"] == 3 * CHUNK_BYTES
    small.close()


@pytest.mark.parametrize("at", [0, 1, 3])
async def test_a_cancelled_import_leaves_nothing_and_delays_nobody(there: Miniature, file: Path, at: int) -> None:
    def cancel(done: int, *_: object) -> None:
        if done == at:
            importing.cancel()

    importing = asyncio.create_task(there.call(Op.IMPORT, cancel, path=str(file)))
    outcome = (await asyncio.gather(importing, return_exceptions=True))[0]
    if isinstance(outcome, dict):  # its commit had begun
        assert at == 3 and await names(there) == ["w"]
    else:
        assert isinstance(outcome, asyncio.CancelledError)
        assert await names(there) == [] and chunk_files(there.settings.home) == []
        assert (await there.call(Op.IMPORT, path=str(file)))["new_bytes"] == 3 * CHUNK_BYTES
    await there.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await there.resume(TEXT, session_id="bob") == RESTORABLE


async def test_a_file_that_does_not_answer_ends_the_import_and_frees_the_lock(
    there: Miniature, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEP_LIMIT_S", 0.2)
    read, hanging = archive_files.Source.read_into, []

    def hang(source: archive_files.Source, buffer: memoryview) -> None:
        hanging.append(buffer)
        time.sleep(1.5)
        read(source, buffer)

    monkeypatch.setattr(archive_files.Source, "read_into", hang)
    began = time.monotonic()
    problem = await refused(there, Code.READ_FAILED, file)
    assert time.monotonic() - began < 1 and "does not answer" in problem.message and hanging
    await asyncio.wait_for(frozen(there, "meanwhile", text(3)), 10)


@pytest.mark.parametrize("when", ["1", "3", "committed"])
async def test_a_killed_import_leaves_the_window_whole_or_absent(file: Path, tmp_path: Path, when: str) -> None:
    home = tmp_path / "killed"
    killed(Op.IMPORT, home, file, when)
    assert len(chunk_files(home)) >= int(when if when.isdecimal() else 3)
    later = await Miniature.started(home)
    if when == "committed":
        assert await names(later) == ["w"]
    else:
        assert await names(later) == [] and chunk_files(home) == []
        await later.call(Op.IMPORT, path=str(file))
    await later.call(Op.THAW, window_name="w", new_session_id="bob")
    assert await later.resume(TEXT, session_id="bob") == RESTORABLE
    later.close()


async def test_an_import_waits_for_the_chunk_lock(there: Miniature, file: Path) -> None:
    async with there.engine.chunk_lock:
        importing = asyncio.create_task(there.call(Op.IMPORT, path=str(file)))
        await asyncio.sleep(0.3)
        assert not importing.done() and chunk_files(there.settings.home) == []
    assert (await importing)["new_bytes"] == 3 * CHUNK_BYTES
