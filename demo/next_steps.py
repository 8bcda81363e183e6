"""Print what to type next: on a model of one's own, and to the demo's engine if it was left running."""

import json

from rich.console import Console

from demo.story import RESUMED, STEM
from tests.support.engine import Engine

MODEL = "Qwen/Qwen3-8B"
CWM = ".venv/bin/cwm"
QUESTION = "How does a canal lock work, step by step?"
_BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]})
COMMANDS = (
    f"{CWM} serve {MODEL}",
    f"curl localhost:8000/v1/chat/completions -H 'X-Session-ID: talk' -H 'content-type: application/json' -d '{_BODY}'",
    f"{CWM} freeze talk",
)
"""Start vLLM, talk, freeze. The answer is long enough for a block, and `cwm freeze` says what to type after it."""

TRIES = (
    "tree",
    f"freeze {RESUMED} next-morning",
    f"diff {STEM} next-morning",
    f"chat {STEM}",
    "ui",
)
"""To the engine that was left running. Its last conversation has a turn that no window holds yet."""


def print_next(console: Console) -> None:
    """Print the three commands for a model of one's own. Each stands on one line, to be copied."""
    console.rule("[bold]Next, with a model of your own")
    for command in COMMANDS:
        _print_line(console, command)


def print_kept(console: Console, engine: Engine) -> None:
    """Print where the engine that was left running answers, what to try, and how to stop it."""
    console.rule("[bold]vLLM is still running")
    _print_line(console, f"export CWM_HOME={engine.home} CWM_VLLM_URL={engine.url}")
    for command in TRIES:
        _print_line(console, f"{CWM} {command}")
    console.print("  To stop it, and then to delete its windows and its log:")
    _print_line(console, f"kill {engine.pid}")
    _print_line(console, f"rm -r {engine.folder}")


def _print_line(console: Console, command: str) -> None:
    console.print(f"    {command}", markup=False, highlight=False, soft_wrap=True)
