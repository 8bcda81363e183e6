"""Open WebUI as its page uses it: the server keeps the chats, and forwards the id of the chat with each request."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import uuid4

import httpx

from tests.support.clients.base import Said
from tests.support.clients.pypi import program
from tests.support.clients.serving import serving

START_S: Final = 240
"""It imports torch, and makes its database at its first start."""
_SETTINGS: Final[Mapping[str, str]] = {
    "ENABLE_FORWARD_USER_INFO_HEADERS": "true",  # with it goes the id of the chat
    "WEBUI_AUTH": "False",
    "ENABLE_OLLAMA_API": "false",
    # Requests of its own beside the conversation's, which would be counted with it.
    "ENABLE_TITLE_GENERATION": "false",
    "ENABLE_TAGS_GENERATION": "false",
    "ENABLE_FOLLOW_UP_GENERATION": "false",
    # Nothing is looked up in the network.
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "openai",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "true",
    "SCARF_NO_ANALYTICS": "true",
}


class OpenWebUi:
    """A chat in Open WebUI, whose server is started for each turn."""

    name: ClassVar[str] = "open-webui"
    identified: ClassVar[bool] = True
    rewritten_tokens: ClassVar[int] = 0

    def __init__(self, home: Path, url: str, model: str) -> None:
        self._program = program("open-webui", "open-webui", "open_webui")
        self._home, self._url, self._model = home, url, model

    async def say(self, words: str, resumed: str | None = None) -> Said:
        command = (self._program, "serve")
        with serving(command, self._home, {**_SETTINGS, **self._variables()}, "/health", START_S) as front:
            async with httpx.AsyncClient(base_url=front, timeout=180, trust_env=False) as page:
                return await self._say(page, words, resumed)

    async def _say(self, page: httpx.AsyncClient, words: str, resumed: str | None) -> Said:
        user = (await page.post("/api/v1/auths/signin", json={"email": "", "password": ""})).raise_for_status().json()
        page.headers["Authorization"] = f"Bearer {user['token']}"
        before = None if resumed is None else await self._chat(page, resumed)
        parent = None if before is None else before["history"]["currentId"]
        asked = {"id": str(uuid4()), "parentId": parent, "role": "user", "content": words}
        turn = {
            "model": self._model,
            "stream": False,
            "messages": [{"role": "user", "content": words}],  # its server puts the chat's messages before it
            "user_message": asked,
            "parent_id": parent,
            "id": str(uuid4()),
            **({} if resumed is None else {"chat_id": resumed}),
        }
        answer = (await page.post("/api/chat/completions", json=turn)).raise_for_status().json()
        chat_id = resumed or (await page.get("/api/v1/chats/")).raise_for_status().json()[0]["id"]
        usage = answer["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Said(chat_id, answer["choices"][0]["message"]["content"], cached, usage["prompt_tokens"])

    async def _chat(self, page: httpx.AsyncClient, chat_id: str) -> dict[str, Any]:
        """Return the chat as the page gets it when it is opened."""
        return dict((await page.get(f"/api/v1/chats/{chat_id}")).raise_for_status().json()["chat"])

    def _variables(self) -> dict[str, str]:
        secret = self._home / "secret"
        if not secret.exists():
            secret.write_text(secrets.token_hex(16))
        return {
            "DATA_DIR": str(self._home / "data"),
            "WEBUI_SECRET_KEY": secret.read_text(),
            "OPENAI_API_BASE_URL": f"{self._url}/v1",
            "OPENAI_API_KEY": "dummy",
        }
