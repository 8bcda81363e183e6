"""The MCP side: the plugin for Claude Code, and Claude Code itself, which not everybody has."""

import shlex
import shutil
from pathlib import Path

from cwm_mcp.doctor.report import Check, from_checkout

PLUGIN = Path(__file__).resolve().parents[1] / "plugin"
_PARTS = (".mcp.json", ".claude-plugin/plugin.json", "hooks/hooks.json")


def check(plugin: Path = PLUGIN) -> Check:
    missing = [part for part in _PARTS if not (plugin / part).is_file()]
    if missing:
        message = f"the Claude Code plugin in {plugin} lacks {', '.join(missing)}"
        step = from_checkout("--force-reinstall --no-deps .")
        return Check(name="mcp", status="error", message=message, next=step)
    use = f"claude --plugin-dir {shlex.quote(str(plugin))}"
    if shutil.which("claude") is None:
        return Check(name="mcp", status="ok", message=f"the plugin is whole; with Claude Code installed: {use}")
    return Check(name="mcp", status="ok", message=f"the plugin is whole; use it with: {use}")
