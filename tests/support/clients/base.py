"""What the tests' clients have in common: one turn as the client reports it, and the process of one run."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Said:
    """One turn, in the client's own words and figures."""

    session_id: str
    """The client's own name of the conversation. It resumes by it."""
    text: str
    cache_read_tokens: int
    """Tokens that were not computed again, as vLLM told the client."""
    prompt_tokens: int


class Client(Protocol):
    """A client that speaks one turn for each run, and resumes a conversation by its own means."""

    name: ClassVar[str]
    identified: ClassVar[bool]
    """Whether its requests carry the session's id, as far as it is set up here."""
    rewritten_tokens: ClassVar[int]
    """Tokens at the end of a turn, at most, that read otherwise when the client has resumed."""

    def __init__(self, home: Path, url: str, model: str) -> None: ...

    async def say(self, words: str, resumed: str | None = None) -> Said:
        """Speak one turn, in a new conversation or in the one to resume."""
        ...


async def run_client(
    command: Sequence[str], home: Path, variables: Mapping[str, str], words: str = "", limit_s: float = 180
) -> str:
    """Run a client to its end with `words` as its standard input, and return its standard output.

    Raises: RuntimeError with its whole output if it fails.
    """
    process = await asyncio.create_subprocess_exec(
        *command, cwd=home, env={"HOME": str(home), "NO_COLOR": "1", **variables},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(limit_s):
            out, err = await process.communicate(words.encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {out.decode()} {err.decode()}")
    return out.decode()


def events(lines: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of an output with one on each line, and skip other lines."""
    for line in lines.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
