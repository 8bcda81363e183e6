"""Clients in Python: the OpenAI SDK, also behind a LiteLLM proxy, LangChain and aider."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from tests.support.clients.base import Said, run_client
from tests.support.clients.litellm_proxy import FORWARDING, KEY, proxy
from tests.support.clients.pypi import program
from tests.support.paths import ROOT

_TURNS = ROOT / "tests" / "support" / "clients" / "turns"


async def _turn(python: Path, script: str, home: Path, words: str, *arguments: str) -> Said:
    """Run one turn of a script. The last argument is the session's id."""
    command = (str(python), str(_TURNS / script), *arguments)
    variables = {"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    said = json.loads(await run_client(command, home, variables, words))
    return Said(arguments[-1], said["text"], said["cached"], said["prompt"])


class OpenAiSdk:
    """The OpenAI SDK with the session's id as a default header."""

    name: ClassVar[str] = "openai-sdk"
    identified: ClassVar[bool] = True
    rewritten_tokens: ClassVar[int] = 0
    url_key: ClassVar[str] = "dummy"

    def __init__(self, home: Path, url: str, model: str) -> None:
        self._python = program("langchain", "python", "openai")
        self._home, self._url, self._model = home, url, model

    async def say(self, words: str, resumed: str | None = None) -> Said:
        return await self._say(self._url, words, resumed)

    async def _say(self, url: str, words: str, resumed: str | None) -> Said:
        session = resumed or f"{self.name}-1"
        words_of = (url, self.url_key, self._model, str(self._home / "history.json"), session)
        return await _turn(self._python, "openai_turn.py", self._home, words, *words_of)


class BehindLiteLlm(OpenAiSdk):
    """The OpenAI SDK behind a LiteLLM proxy that passes the clients' headers on."""

    name: ClassVar[str] = "litellm"
    url_key: ClassVar[str] = KEY

    def __init__(self, home: Path, url: str, model: str) -> None:
        super().__init__(home, url, model)
        program("litellm", "litellm", "litellm")

    async def say(self, words: str, resumed: str | None = None) -> Said:
        with proxy(self._home, self._url, self._model, FORWARDING) as front:
            return await self._say(front, words, resumed)


class LangChain:
    """LangChain's ChatOpenAI as it is, which names no conversation."""

    name: ClassVar[str] = "langchain"
    identified: ClassVar[bool] = False
    rewritten_tokens: ClassVar[int] = 0

    def __init__(self, home: Path, url: str, model: str) -> None:
        self._python = program("langchain", "python", "langchain_openai")
        self._home, self._url, self._model = home, url, model

    async def say(self, words: str, resumed: str | None = None) -> Said:
        history = resumed or str(self._home / "history.json")
        return await _turn(
            self._python, "langchain_turn.py", self._home, words, self._url, "dummy", self._model, history
        )


class Aider:
    """aider in a folder without files, which it asks about code. Its history is a file that it restores.

    It puts the history before two messages that were there in the last turn too, and so rewrites that turn's end.
    """

    name: ClassVar[str] = "aider"
    identified: ClassVar[bool] = False
    rewritten_tokens: ClassVar[int] = 96

    def __init__(self, home: Path, url: str, model: str) -> None:
        self._python = program("aider", "python", "aider_chat")
        self._home, self._url, self._model = home, url, model

    async def say(self, words: str, resumed: str | None = None) -> Said:
        said = await _turn(self._python, "aider_turn.py", self._home, words, self._url, "dummy", self._model)
        return replace(said, session_id=str(self._home))
