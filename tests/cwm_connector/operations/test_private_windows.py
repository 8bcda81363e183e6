"""A window that was frozen under a salt belongs to its new salt, and nobody can find out whether it is there.

The attack: tenant B guesses tenant A's prompt, block by block, with every id and salt that B may know. What B can see
of vLLM, the cached tokens and whether the request had to wait, is the same with and without A's windows.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from cwm_connector.protocol.calls import Op
from cwm_connector.step.jobs import Job, LoadJob
from cwm_connector.step.window_matches import FoundWindows, WindowQuestion
from tests.support.miniature import Miniature
from tests.support.vllm_parts import BLOCK_TOKENS

SECRET = list(range(1000, 1000 + 9 * BLOCK_TOKENS))
OPEN = list(range(5000, 5000 + 9 * BLOCK_TOKENS))
A_SALT, B_SALT = "of tenant A", "of tenant B"


@dataclass
class Asked:
    """A finder that is asked through a function."""

    ask: Callable[[WindowQuestion], "Future[FoundWindows] | None"]


async def prepare(engine: Miniature, with_secret: bool) -> str:
    """Freeze tenant B's open window and, perhaps, tenant A's private one. Return the salt of A's thaw."""
    await engine.serve(OPEN, "b")
    await engine.call(Op.FREEZE, session_id="b", window_name="open")
    if not with_secret:
        return "cwm-invented"
    await engine.serve(SECRET, "a", salt=A_SALT)
    await engine.call(Op.FREEZE, session_id="a", window_name="secret")
    await engine.call(Op.CLONE, source_window="secret", target_window="copy")
    await engine.call(Op.THAW, window_name="copy", new_session_id="b2")
    return str((await engine.call(Op.THAW, window_name="secret"))["cache_salt"])


async def seen_by_tenant_b(engine: Miniature) -> list[tuple[int, bool]]:
    """Return for each of B's requests the tokens that were loaded, and whether it had to wait for a look-up."""
    seen = []
    finder = engine.scheduler.window_matches.finder
    assert finder is not None
    waited: list[bool] = []
    ask = finder.ask

    def asked(question: WindowQuestion) -> "Future[FoundWindows] | None":
        answer = ask(question)
        waited.append(answer is not None)
        return answer

    engine.scheduler.window_matches.finder = Asked(asked)
    for session in (None, "a", "b", "b2", "a/agent", "new"):
        for salt in (None, B_SALT, A_SALT, "a", "cwm-guess"):
            for blocks in (1, 2, 3, 4, 8, 9):
                for text in (
                    SECRET[: blocks * BLOCK_TOKENS],
                    [*SECRET[: blocks * BLOCK_TOKENS], *range(9000, 9100)],
                    [*OPEN[: blocks * BLOCK_TOKENS], *range(9000, 9100)],
                ):
                    loaded = await engine.resume(text, session, salt)
                    seen.append((loaded, any(waited)))
                    waited.clear()
    return seen


def noting(submit: Callable[[Sequence[Job]], None], loads: list[LoadJob]) -> Callable[[Sequence[Job]], None]:
    """Return `submit` as a function that also adds the load jobs to `loads`."""

    def noted(jobs: Sequence[Job]) -> None:
        loads.extend(job for job in jobs if isinstance(job, LoadJob))
        submit(jobs)

    return noted


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("mode", ["session", "prefix", "off"])
async def test_what_others_see_does_not_depend_on_a_private_window(
    tmp_path: Path, mode: str, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for with_secret in (True, False):
        home = tmp_path / str(with_secret)
        engine = await Miniature.started(home, auto_thaw=mode)
        await prepare(engine, with_secret)
        if restarted:
            engine.close()
            engine = await Miniature.started(home, auto_thaw=mode)
        jobs: list[LoadJob] = []
        monkeypatch.setattr(engine.worker, "submit", noting(engine.worker.submit, jobs))
        seen.append((await seen_by_tenant_b(engine), [len(job.chunks) for job in jobs]))
        engine.close()
    assert seen[0] == seen[1]
    answers, jobs_of_b = seen[0]
    assert any(loaded for loaded, _ in answers) == (mode != "off") == bool(jobs_of_b)  # B's own window is found


async def test_a_private_window_comes_back_for_its_new_salt_alone(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    salt = await prepare(engine, with_secret=True)
    for _ in range(2):
        assert await engine.resume(SECRET, "a", salt) == len(SECRET)
        assert await engine.resume(SECRET, None, salt) == len(SECRET)
        assert await engine.resume(SECRET, "somebody", salt) == len(SECRET)
        assert await engine.resume(OPEN, "b", salt) == 0  # a salt alone decides
        assert [await engine.resume(SECRET, session) for session in ("a", "b2", None)] == [0, 0, 0]
        engine.close()
        engine = await Miniature.started(tmp_path)
    engine.close()


async def test_what_was_frozen_on_a_private_window_is_private(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    salt = await prepare(engine, with_secret=True)
    longer = [*SECRET, *range(7000, 7064)]
    await engine.serve(longer, "a", salt=salt)
    await engine.call(Op.FREEZE, session_id="a", window_name="later")
    assert await engine.resume(longer, "a") == 0
    thawed = await engine.call(Op.THAW, window_name="later")
    assert await engine.resume(longer, "a") == 0
    assert await engine.resume(longer, "a", thawed["cache_salt"]) == len(longer)
    engine.close()


async def test_a_stranger_who_names_the_session_disturbs_nothing(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path)
    salt = await prepare(engine, with_secret=True)
    for text in (SECRET, OPEN):
        for theirs in (None, B_SALT):
            await engine.serve([*text, 1, 2, 3], "a", salt=theirs)
    assert await engine.resume(SECRET, "a", salt) == len(SECRET)
    assert await engine.resume(SECRET, "a") == 0
    engine.close()


async def test_an_exported_private_window_is_imported_as_private(tmp_path: Path) -> None:
    engine = await Miniature.started(tmp_path / "home")
    await prepare(engine, with_secret=True)
    await engine.call(Op.EXPORT, window_name="secret", path=str(tmp_path / "file.cwm"))
    await engine.call(Op.EXPORT, window_name="open", path=str(tmp_path / "open.cwm"))
    engine.close()
    there = await Miniature.started(tmp_path / "there")
    for name in ("file", "open"):
        await there.call(Op.IMPORT, path=str(tmp_path / f"{name}.cwm"))
    assert await there.resume(SECRET) == 0
    assert await there.resume(OPEN) == len(OPEN)
    thawed = await there.call(Op.THAW, window_name="secret", new_session_id="a")
    assert await there.resume(SECRET, "a") == 0
    assert await there.resume(SECRET, "a", thawed["cache_salt"]) == len(SECRET)
    there.close()
