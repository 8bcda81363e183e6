"""`cwm cat`: the text of a window, or its token ids where vLLM does not answer."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cwm_mcp.api.operations import Operations
from cwm_mcp.cli.app import app


def cwm(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch, filled: Path) -> None:
    """Let the window stem hold the tokens 0 to 777, and let vLLM say each as its number."""

    async def token_ids(self: Operations, window_name: str) -> range:
        return range(778)

    async def text_of(self: Operations, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    monkeypatch.setattr(Operations, "token_ids", token_ids)
    monkeypatch.setattr(Operations, "text_of", text_of)


@pytest.mark.parametrize(
    ("words", "first", "last", "count"),
    [
        ([], "0", "777", 778),
        (["--head", "3"], "0", "2", 3),
        (["--tail", "3"], "775", "777", 3),
        (["--from", "10", "--to", "12"], "10", "11", 2),
        (["--from", "770"], "770", "777", 8),
        (["--tail", "5000"], "0", "777", 778),
    ],
)
def test_a_part_of_the_conversation_is_printed(
    numbered: None, words: list[str], first: str, last: str, count: int
) -> None:
    shown = cwm("cat", "stem", *words).stdout.split()
    assert (shown[0], shown[-1], len(shown)) == (first, last, count)


@pytest.mark.parametrize("words", [["--tail", "0"], ["--head", "0"], ["--from", "9", "--to", "3"]])
def test_an_empty_part_prints_nothing(numbered: None, words: list[str]) -> None:
    ran = cwm("cat", "stem", *words)
    assert (ran.exit_code, ran.stdout.strip()) == (0, "")


def test_two_parts_at_once_are_refused(numbered: None) -> None:
    assert cwm("cat", "stem", "--head", "3", "--tail", "3").exit_code == 2
    assert cwm("cat", "stem", "--head", "3", "--from", "3").exit_code == 2


def test_without_vllm_token_ids_are_printed_and_stderr_says_why(filled: Path) -> None:
    ran = cwm("cat", "stem", "--tail", "3")
    assert (ran.exit_code, ran.stdout) == (0, "0 0 0\n")
    assert ran.stderr.startswith("Token ids are shown instead of text: no answer from vLLM")
    answer = json.loads(cwm("cat", "stem", "--tail", "3", "--json").stdout)
    assert (answer["first"], answer["end"], answer["token_ids"], answer["text"]) == (775, 778, [0, 0, 0], None)


def test_an_unknown_window_is_an_error(filled: Path) -> None:
    assert cwm("cat", "nothing").stderr.startswith("CWM-2002: ")
