"""Take the pictures of the page in docs/. Run `python -m tools.pictures`. Needs Chromium.

The page is the real one, in a real browser. Its windows, sessions and figures are an example.
"""

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.catalog.results import AsRecorded, iso, window_status
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.control.server import ControlServer
from cwm_connector.control.thread import ControlThread
from cwm_connector.core.types import ChunkKey, Micros
from cwm_connector.core.units import GIB, MIB
from cwm_connector.protocol.calls import Args, Op, StatusArgs, TokensArgs
from cwm_connector.settings import Settings, load_settings
from tests.cwm_mcp import homes
from tests.cwm_mcp.ui.browser import Page, new_page
from tests.cwm_mcp.ui.conftest import READ, vllm
from tests.cwm_mcp.ui.serving import answers, serving, session

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
_COLOURS: Final = 128
_NOW: Final = datetime.now(UTC)
_QUESTION: Final = (
    "<|im_start|>user What did Ines Okafor find at the lower gate ? <|im_end|> <|im_start|>assistant She found that "
    "the second board of the sill had lifted by two centimetres , and that water ran under it . She closed the paddle "
    "and wrote the level down : 1.42 m at nine , 1.38 m at noon . <|im_end|> <|im_start|>user What should we do next ? "
    "<|im_end|> <|im_start|>assistant"
)
_ANSWERS: Final = {
    "ask-about-the-gauge": "Read the gauge board twice a day and compare it with the upper lock .",
    "write-to-the-boats": "Write to the boat owners that the lock is closed until Thursday .",
}
_WINDOWS: Final = (
    # name, session, tokens, hours ago, parent, tags, description
    ("lock-log-read", "lock-repair", 5120, 50, None, ("locks",), "The whole working log, read once"),
    (
        "lock-repair-evening",
        "lock-repair",
        5376,
        30,
        "lock-log-read",
        ("locks",),
        "Read and discussed",
    ),
    ("ask-about-the-gauge", "lock-repair", 5632, 7, "lock-repair-evening", ("locks", "idea"), "The gauge board first"),
    ("write-to-the-boats", "boats", 5632, 5, "lock-repair-evening", ("locks", "idea"), "A note to the owners first"),
    ("auth-bug-token-refresh", "debug-auth", 20480, 20, None, ("debug",), "The refresh races with the log-out"),
    ("auth-bug-after-fix", "debug-auth", 22016, 2, "auth-bug-token-refresh", ("debug",), "Both tests pass"),
    ("handbook", "handbook", 32768, 170, None, ("reference",), "The style guide and the API handbook"),
)

_WORDS: Final = sorted({*" ".join((_QUESTION, *_ANSWERS.values(), *(each[1] for each in _WINDOWS))).split()})
VOCABULARY: Final = {word: number for number, word in enumerate(_WORDS)}


class Example:
    """Answers as an engine would. Tokens and details come from the catalog."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        hours = {"last_active_at": _ago(0.05), "auto_freeze_at": _ago(-0.4)}
        heads = {
            "heads": 2,
            "head": "main",
            "head_reason": "it is the conversation that spoke last",
            "head_names": ["main", "explore-tests"],
        }
        sessions = (
            session(1, "Fix the token refresh", **heads, **hours) | {"session_id": "debug-auth", "token_count": 22140},
            session(2, "Boats", last_active_at=_ago(5), auto_freeze_at=None, heads=1)
            | {"session_id": "boats", "token_count": 5702, "state": "thawed"},
            session(3, "Lock repair", last_active_at=_ago(7), auto_freeze_at=None, heads=1)
            | {"session_id": "lock-repair", "token_count": 5690, "cached_tokens": 0, "state": "frozen"},
        )
        self._answers = answers(settings, *sessions)
        tiers = {
            "cpu": {"blocks": 204, "bytes": 9 * GIB, "limit_bytes": 16 * GIB},
            "disk": {"blocks": 311, "bytes": 14 * GIB, "limit_bytes": 50 * GIB},
            "redis": None,
        }
        self._answers["STATS"]["kv_store"] |= {"total_blocks": 311, "total_bytes": 14 * GIB, "tiers": tiers}
        moving = {"kind": "freeze", "name": "auth-bug-reviewed", "done": 61, "total": 86, "started_at": _ago(0.001)}
        self._answers["STATS"]["transfers"] = [moving]
        self._answers["POLICY"] |= {"next_action": {"session_id": "debug-auth", "reason": "idle", "due_at": _ago(-0.4)}}

    async def call(self, op: Op, args: Args, progress: Callable[[int, int, str], None]) -> Any:
        """Return the answer to one call."""
        catalog = SqliteCatalog.open_read_only(self._settings.catalog_path)
        try:
            if isinstance(args, TokensArgs):
                return {"window_name": args.window_name, "token_ids": catalog.token_ids_of(args.window_name)}
            if isinstance(args, StatusArgs) and args.window_name:
                chunks, row = catalog.chunks_of(args.window_name), catalog.window(args.window_name)
                children = catalog.children(args.window_name)
                return window_status(row, chunks, children, AsRecorded(chunks), include_blocks=args.include_blocks)
            return self._answers[op.name]
        finally:
            catalog.close()


def _ago(hours: float) -> str:
    return iso(Micros(int((_NOW - timedelta(hours=hours)).timestamp() * 1_000_000)))


def fill(settings: Settings) -> None:
    """Write the example's windows. A token is a word. A window goes on from its parent's words."""
    catalog = SqliteCatalog.open(settings.catalog_path)
    said: dict[str | None, list[int]] = {None: []}
    for name, session_id, tokens, hours, parent, tags, description in _WINDOWS:
        own = f"{_ANSWERS.get(name, session_id)} {_QUESTION}".split()
        missing = range(tokens - len(said[parent]))
        said[name] = [*said[parent], *(VOCABULARY[own[place % len(own)]] for place in missing)]
        ids = array("i", said[name])
        ends = range(homes.CHUNK_TOKENS, tokens + 1, homes.CHUNK_TOKENS)
        keys = [ChunkKey(sha256(ids[:end].tobytes()).digest()) for end in ends]
        new = homes.new_window(name, session_id, 0, tags=tags, parent=parent)
        catalog.commit_window(
            replace(
                new,
                token_ids=ids.tobytes(),
                restorable_tokens=tokens,
                chunks=keys,
                stored=[ChunkRow(key, homes.CHUNK_TOKENS, 8 * MIB) for key in keys],
                created_at=Micros(int((_NOW - timedelta(hours=hours)).timestamp() * 1_000_000)),
                description=description,
            )
        )
    catalog.close()


@contextmanager
def example_page() -> Iterator[Page]:
    """Open the page over the example."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cwm-")))
        os.environ["CWM_HOME"] = str(folder)
        settings = load_settings()
        fill(settings)
        url = stack.enter_context(vllm(lambda ids: " ".join(_WORDS[number] for number in ids)))
        thread = ControlThread()
        thread.start()
        stack.callback(thread.stop)
        server = ControlServer(settings.socket_path, Example(settings), "Qwen3-8B")
        thread.submit(server.start()).result(10)
        stack.callback(lambda: thread.submit(server.close()).result(10))
        served = stack.enter_context(serving(folder, "--no-browser", CWM_VLLM_URL=url))
        page = stack.enter_context(new_page(folder / "profile"))
        page.look()
        page.open(served.url)
        page.until(READ)
        yield page


def save(page: Page, name: str) -> None:
    """Write what the browser shows as a small PNG in docs/."""
    picture = Image.open(BytesIO(page.picture())).convert("RGB")
    path = DOCS / f"{name}.png"
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.relative_to(DOCS.parent), f"{path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Take all pictures."""
    with example_page() as page:
        page.look(width=1280, height=860)
        page.click("[data-heads] summary")
        page.value("document.activeElement.blur()")
        page.value("scrollTo(0, 0)")
        save(page, "ui")
        page.look(width=1280, height=860, dark=True)
        page.value("document.querySelector('tr[data-name=ask-about-the-gauge]').focus()")
        page.press("Enter")
        page.until("document.querySelector('#text pre')")
        page.value("document.querySelector('#diff-other').value = 'write-to-the-boats'")
        page.click("#diff-form button")
        page.until("document.querySelector('#diff-result figure')")
        page.value("document.querySelector('#details').scrollTop = 100000")
        save(page, "ui-window")
        page.press("Escape")
        page.look(width=390, height=844)
        page.value("scrollTo(0, document.querySelector('#windows-part').offsetTop - 10)")
        save(page, "ui-telephone")


if __name__ == "__main__":
    main()
