"""Write the pages of docs/ that are made from the code: the commands, the tools, the error codes and the settings.

Run `python -m tools.reference`. A test fails while a page is not current.
"""

from pathlib import Path
from typing import Any

import typer

from cwm_connector.core.errors import CWMError
from cwm_mcp.cli.app import app
from cwm_mcp.cli.codes import CODES
from cwm_mcp.cli.group import ALIASES
from cwm_mcp.server.tools import TOOLS
from tools.settings_page import settings_page

DOCS = Path(__file__).resolve().parents[1] / "docs"


def pages() -> dict[str, str]:
    """Return the text of each page by the name of its file."""
    return {"cli.md": _commands(), "tools.md": _tools(), "errors.md": _errors(), "settings.md": settings_page()}


def _commands() -> str:
    group: Any = typer.main.get_command(app)
    lines = [
        "# The commands of cwm",
        "",
        "Made by `python -m tools.reference` from the help texts. `cwm COMMAND --help` prints the same. A command",
        "prints a sentence and details for a person. `--json` prints the result, or the error, for a program.",
        "`--quiet` prints only names. Exit codes: 0 for success, 1 for an error, 2 for a wrong command line.",
    ]
    for name, command in sorted(group.commands.items()):
        aliases = sorted(alias for alias, real in ALIASES.items() if real == name)
        lines += ["", f"## cwm {name}", "", _plain(command.help)]
        if aliases:
            lines += ["", f"Other names: {', '.join(f'`{alias}`' for alias in aliases)}."]
        rows = [_parameter(each) for each in command.params if each.name != "help"]
        lines += ["", "| argument or option | meaning |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _parameter(parameter: Any) -> str:
    names = ", ".join((*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = (parameter.metavar or parameter.name).upper()
    return f"| `{names}` | {_plain(parameter.help)} |"


def _plain(text: str) -> str:
    return text.replace("\\[", "[").replace("|", "\\|")


def _tools() -> str:
    lines = [
        "# The MCP tools",
        "",
        "Made by `python -m tools.reference` from the schemas. A failure carries a code of [errors.md](errors.md).",
    ]
    for tool in TOOLS:
        required = tool.parameters.get("required", [])
        lines += ["", f"## {tool.name}", "", tool.description or ""]
        if tool.parameters["properties"]:
            lines += ["", "| argument | type | |", "|---|---|---|"]
        for name, schema in tool.parameters["properties"].items():
            lines.append(f"| `{name}` | {_type(schema)} | {'required' if name in required else ''} |")
        answer = (tool.output_schema or {})["properties"]
        lines += ["", f"Returns {', '.join(f'`{name}`' for name in answer)}."]
    return "\n".join(lines) + "\n"


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {schema['items'].get('type', 'values')}"
    shown = str(schema.get("type", "value"))
    if "minimum" in schema:
        shown += f", at least {schema['minimum']}"
    if "maximum" in schema:
        shown += f", at most {schema['maximum']}"
    return f"{shown}, default `{schema['default']}`" if "default" in schema else shown


def _errors() -> str:
    rows = [
        f"| CWM-{int(code)} | {text.what} | {text.do} | {'yes' if CWMError(code, '').retryable else 'no'} |"
        for code, text in CODES.items()
    ]
    lines = [
        "# Errors",
        "",
        "Made by `python -m tools.reference` from `cwm_mcp/cli/codes.py`. `cwm help 4003` prints one of them.",
        "",
        "| code | meaning | what to do | may succeed later |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
