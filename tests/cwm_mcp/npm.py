"""Run MCP's own tools from npm, in exact versions: the inspector and the conformance suite."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.clients.npm import installed, node_folder, node_path

_PINNED: Final = {
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",
}
_RUN_S: Final = 120


@dataclass(frozen=True, slots=True)
class Ran:
    """How a tool ended, and its output."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Node:
    """Runs the tools with the pinned node."""

    modules: Path
    home: Path
    """HOME of the tools. The inspector writes a catalog there."""

    def run(self, tool: str, *arguments: str) -> Ran:
        """Run a tool to its end."""
        ran = subprocess.run(
            [str(node_folder() / "node"), str(self.modules / ".bin" / tool), *arguments],
            cwd=self.home,
            env={"PATH": node_path(), "HOME": str(self.home), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_S,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)


def mcp_tools(home: Path) -> Node:
    """Install the pinned tools once. Skip the test with the reason if npm cannot install them."""
    return Node(installed("mcp-tools", _PINNED), home)
