"""What is drawn without Rich is what Rich draws, to the byte."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from cwm_connector.protocol import results as m
from cwm_connector.protocol.trash import Restored, Trashed, TrashItem, TrashList
from cwm_mcp.cli.fast import answers
from cwm_mcp.cli.fast.drawing import draw
from cwm_mcp.cli.fast.parts import Line, parts
from cwm_mcp.cli.render import answer, renderable
from cwm_mcp.cli.sentences import Removed, Renamed
from tests.cwm_mcp.canned import FROZEN
from tests.cwm_mcp.cli.test_render import a_session
from tests.cwm_mcp.cli.test_terminal import in_a_terminal

_WINDOW = m.WindowItem(
    name="stem",
    state="frozen",
    tags=[],
    token_count=778,
    size_bytes=12_288,
    created_at="2026-01-01T00:00:00.000Z",
    storage_tier="disk",
    unique_bytes=4_096,
    model="m",
    session_id="talk",
    parent_window=None,
    description="",
)
_LETTERS = st.characters(max_codepoint=0x17F) | st.sampled_from(" …🎉漢\u0301")
TEXTS = st.text(_LETTERS, max_size=30)


def by_rich(
    result: msgspec.Struct, width: int, styled: bool, laid_out: Callable[[Any], RenderableType] = renderable
) -> str:
    colours: Literal["standard"] | None = "standard" if styled else None
    console = Console(file=io.StringIO(), width=width, force_terminal=styled, color_system=colours)
    with console.capture() as capture:
        console.print(laid_out(result))
    return capture.get()


def windows(*names: str, **fields: Any) -> m.WindowList:
    return m.WindowList([msgspec.structs.replace(_WINDOW, name=name, **fields) for name in names], len(names), False)


@pytest.mark.parametrize("styled", [True, False])
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_simple_lists_are_drawn_without_rich_and_look_the_same(width: int, styled: bool) -> None:
    session = msgspec.structs.replace(a_session("a title " * 5), heads=2, head="a", head_reason="it is last")
    for result in (
        windows(),
        windows("a", "experiment-17", tags=["project-x", "a-tag-of-many-letters", "größe"], parent_window="stem"),
        msgspec.structs.replace(windows("a", "b"), total=7),
        m.SessionList([a_session(None), session], 2, False),
    ):
        text = draw(parts(result) or [], width, styled)
        assert text == by_rich(result, width, styled) if width > 60 else text in (None, by_rich(result, width, styled))


ANSWERS: list[msgspec.Struct] = [
    msgspec.convert(FROZEN, m.Frozen),
    msgspec.structs.replace(
        msgspec.convert(FROZEN, m.Frozen), other_heads=[m.OtherHead("b", 9, "", None)], more_heads=2
    ),
    m.Cloned("a", "b", 3, 0),
    m.Deleted("a", 3, 0, 12_288),
    Trashed("a", "2026-01-02T00:00:00.000Z", 0),
    Removed([Trashed("a", "2026-01-02T00:00:00.000Z", 0), m.Deleted("b", 3, 0, 12_288)], 12_288),
    Removed([], 0),
    Restored(["a", "b"]),
    TrashList([]),
    TrashList([TrashItem("a", 778, 12_288, "2026-01-01T00:00:00.000Z", "2026-01-02T00:00:00.000Z")]),
    Renamed("a", "b"),
]


@pytest.mark.parametrize("styled", [True, False])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("result", ANSWERS, ids=lambda result: type(result).__name__)
def test_an_answer_is_drawn_without_rich_and_looks_the_same(result: msgspec.Struct, width: int, styled: bool) -> None:
    text = draw(answers.answer(result) or [], width, styled)
    expected = by_rich(result, width, styled, answer)
    assert text == expected if width > 80 else text in (None, expected)


@given(names=st.lists(TEXTS, min_size=1, max_size=3), title=TEXTS, width=st.integers(20, 200), styled=st.booleans())
def test_whatever_is_drawn_is_what_rich_draws(names: list[str], title: str, width: int, styled: bool) -> None:
    session = msgspec.structs.replace(a_session(title), heads=2, head="a", head_reason=title, head_names=names)
    for result in (windows(*names, tags=[title]), m.SessionList([session], 3, True)):
        text = draw(parts(result) or [], width, styled)
        assert text is None or text == by_rich(result, width, styled)


def test_wide_letters_and_long_lines_are_left_to_rich() -> None:
    assert draw(parts(windows("漢字")) or [], 80, styled=True) is None
    assert draw([Line("a word " * 10)], 60, styled=True) is None


@pytest.mark.parametrize("command", ["ls", "show branch", "sessions"])
def test_a_terminal_gets_the_picture_that_rich_draws(filled: Path, command: str) -> None:
    by_rich = in_a_terminal(command, 60, COLUMNS="100", FORCE_COLOR="1")
    assert in_a_terminal(command, 60, COLUMNS="100") == in_a_terminal(command, 100) == by_rich
