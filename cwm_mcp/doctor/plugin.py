"""Check the plugin for Claude Code. Claude Code itself is optional."""

import shlex
import shutil
import sys
from pathlib import Path

from cwm_mcp.doctor.report import Check, from_checkout

PLUGIN = Path(__file__).resolve().parents[1] / "plugin"
_PARTS = (".mcp.json", ".claude-plugin/plugin.json", "hooks/hooks.json")


def _python() -> str:
    """Return the variable that the plugin needs if the python3 on the path is not the one that runs this."""
    found = shutil.which("python3")
    same = found is not None and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()
    return "" if same else f"CWM_PYTHON={shlex.quote(sys.executable)} "


def check_plugin(plugin: Path = PLUGIN) -> Check:
    """Return an error if a file of the plugin is missing, or else how to use the plugin."""
    missing = [part for part in _PARTS if not (plugin / part).is_file()]
    if missing:
        message = f"the Claude Code plugin in {plugin} is missing {', '.join(missing)}"
        step = from_checkout("--force-reinstall --no-deps .")
        return Check(name="mcp", status="error", message=message, next=step)
    use = f"{_python()}claude --plugin-dir {shlex.quote(str(plugin))}"
    if shutil.which("claude") is None:
        return Check(name="mcp", status="ok", message=f"the plugin is complete; with Claude Code, run: {use}")
    return Check(name="mcp", status="ok", message=f"the plugin is complete; to use it, run: {use}")
