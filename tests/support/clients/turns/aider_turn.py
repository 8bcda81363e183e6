"""Speak one turn with aider, whose chat history is in the current folder. The requests name no conversation.

Arguments: the server's URL, the key and the model. The words come on stdin. aider itself prints no cached tokens, so
they are taken from the answer that its library gives it.
"""

import contextlib
import json
import os
import sys
from typing import Any

import litellm
from aider.main import main

OPTIONS = (
    "--no-git --yes-always --no-stream --no-pretty --no-fancy-input --analytics-disable --no-check-update "
    "--no-show-release-notes --no-show-model-warnings --no-detect-urls --chat-mode ask --restore-chat-history "
    "--max-chat-history-tokens 8192"
)
url, key, name = sys.argv[1:]
os.environ |= {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": key}
model = f"openai/{name}"
answers: list[Any] = []
complete = litellm.completion


def completion(*arguments: Any, **options: Any) -> Any:
    """Complete as LiteLLM does, and keep the answer."""
    answers.append(complete(*arguments, **options))
    return answers[-1]


litellm.completion = completion
with contextlib.redirect_stdout(sys.stderr):
    main([*OPTIONS.split(), "--model", model, "--weak-model", model, "--message", sys.stdin.read()])
(answer,) = answers
details = answer.usage.prompt_tokens_details
cached = (details.cached_tokens if details else 0) or 0
text = answer.choices[0].message.content
print(json.dumps({"text": text, "cached": cached, "prompt": answer.usage.prompt_tokens}))
