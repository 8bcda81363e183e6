"""A server that answers over HTTP like vLLM, with the small model's own tokenizer and chat template.

Its replies are canned. What a real vLLM answers to the same requests is tested in tests/engine.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from jinja2 import Template
from tokenizers import Tokenizer

from tests.support.engine import model_folder

NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template"
)
ANSWER = {
    "choices": [{"text": "The north gate.", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 24}},
}


def events(*bodies: object) -> bytes:
    """Return what vLLM streams: one event for each body, and the end."""
    return b"".join(f"data: {json.dumps(body)}\n\n".encode() for body in bodies) + b"data: [DONE]\n\n"


Body = dict[str, Any]
Answer = tuple[int, Any]


class VllmServer(ThreadingHTTPServer):
    """Records requests and answers them.

    `asked` has the bodies by path and `headers` those of the last request. `answers` replaces the answer of a path.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        folder = model_folder()
        if not (folder / "tokenizer.json").exists():
            pytest.skip("the small model is missing: run `make model`")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.template: Template | None = Template((folder / "chat_template.jinja").read_text())
        self.refusal = NO_TEMPLATE
        """The answer to a conversation if `template` is None."""
        self.max_model_len = 8192
        self.reply = "The north gate."
        """The text that it streams."""
        self.asked: dict[str, list[Body]] = {}
        self.headers: dict[str, str] = {}
        self.answers: dict[str, Answer | threading.Event] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def answer(self, path: str, body: Body) -> Answer:
        prepared = self.answers.get(path)
        if isinstance(prepared, threading.Event):
            prepared.wait(30)
            return 500, {}
        return prepared or _PATHS[path](self, body)

    def _tokenize(self, body: Body) -> Answer:
        text = body.get("prompt")
        if text is None:
            if self.template is None:
                return 400, {"error": {"message": self.refusal}}
            text = self.template.render(messages=body["messages"], add_generation_prompt=True)
        ids = self.ids(text)
        return 200, {"tokens": ids, "count": len(ids), "max_model_len": self.max_model_len}

    def _detokenize(self, body: Body) -> Answer:
        return 200, {"prompt": self.text(body["tokens"])}

    def _complete(self, body: Body) -> Answer:
        if not body.get("stream"):
            return 200, ANSWER
        ids = self.ids(self.reply)
        words = [{"choices": [{"text": self.text([id_]), "token_ids": [id_]}]} for id_ in ids]
        usage = {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": {"cached_tokens": 24}}
        return 200, events(*words, {"choices": [], "usage": usage})


_PATHS: dict[str, Callable[[VllmServer, Body], Answer]] = {
    "/tokenize": VllmServer._tokenize,
    "/detokenize": VllmServer._detokenize,
    "/v1/completions": VllmServer._complete,
}


class _Handler(BaseHTTPRequestHandler):
    server: VllmServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.setdefault(self.path, []).append(body)
        self.server.headers = {name.lower(): value for name, value in self.headers.items()}
        status, answer = self.server.answer(self.path, body)
        sent = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def vllm_server() -> Iterator[VllmServer]:
    with VllmServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            for prepared in server.answers.values():
                if isinstance(prepared, threading.Event):
                    prepared.set()
            server.shutdown()
            thread.join()
