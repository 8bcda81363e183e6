"""Say errors in the shell's words. The engine's messages name the tools and arguments of MCP."""

import re
from typing import Final

from cwm_connector.core.errors import Code, CWMError

WRONG_WORDS: Final = frozenset({Code.SESSION_ID, Code.WINDOW_NAME, Code.ARGUMENT})
"""Errors that a wrong command line or setting causes."""
_TOOLS: Final = {
    "window_list": "cwm ls",
    "session_list": "cwm sessions",
    "window_status": "cwm show",
    "window_name": "WINDOW",
    "session_id": "--session",
    "max_tokens": "--max-tokens",
    "continuation_prompt": "--prompt",
    "sort_by": "--sort",
    "sort_order": "--order",
    "state_filter": "--state",
    "created_after": "--after",
    "created_before": "--before",
    "idle_timeout_minutes": "--idle",
    "token_threshold": "--tokens",
    "naming_pattern": "--pattern",
    "keep_last": "--keep-last",
    "rate_mb_s": "--rate",
}
_TOOL: Final = re.compile(rf"(?<![\w'])({'|'.join(_TOOLS)})(?![\w'])")
"""A word of MCP that is not part of a quoted value."""
_EXAMPLE: Final = re.compile(r'write "(\w+)": (.+) and call again$')
"""The right form of an argument as JSON."""
_OPTION: Final = re.compile(r"^(limit|offset|rate|search|model)(?= (?:is|has|must be) )")


def in_shell_words(problem: CWMError) -> CWMError:
    """Return the error with the names of commands and options in place of those of tools and arguments."""
    message = _EXAMPLE.sub(_example, problem.message)
    message = _TOOL.sub(lambda found: _TOOLS[found[0]], message)
    return CWMError(problem.code, _OPTION.sub(r"--\1", message), **problem.context)


def _example(found: re.Match[str]) -> str:
    name = _TOOLS.get(found[1], f"--{found[1].replace('_', '-')}")
    value = found[2]
    if value.startswith(("[", "{")):
        return "correct it and call again"
    return f"write {name} {value.strip(chr(34))} and call again"


def exit_code(problem: CWMError) -> int:
    """Return 2 for a wrong command line, else 1."""
    return 2 if problem.code in WRONG_WORDS else 1
