"""docs/client-setup.md: each client has at most five lines to paste, which parse, and a word on what it can't do."""

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from typing import Any, Final

import pytest
import yaml

from tests.support.paths import ROOT

TEXT: Final = (ROOT / "docs" / "client-setup.md").read_text()
SECTIONS: Final = dict(part.split("\n", 1) for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:])
CLIENTS: Final = {
    "Claude Code", "Codex", "opencode", "Qwen Code", "pi", "aider", "Open WebUI", "OpenAI SDK", "LangChain", "LiteLLM",
}  # fmt: skip


def shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "json": json.loads,
    "python": lambda text: compile(text, "setup", "exec"),
    "sh": shell,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}


def test_every_client_of_the_issue_has_a_section() -> None:
    assert set(SECTIONS) == CLIENTS


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_the_lines_to_paste_parse_and_are_five_at_most(client: str) -> None:
    ((kind, lines),) = re.findall(r"```(\w+)\n(.*?)```", SECTIONS[client], re.DOTALL)
    PARSERS[kind](lines)
    assert len(lines.splitlines()) <= 5
    assert re.search(r"[Cc]an't:? ", SECTIONS[client])
